"""One simulation, from a task to its result: makes the demo where there is no job, starts the sites, runs.

Invariants:

- What ``--resume`` needs stands in the run's folder before the first round.
- Workers are started before anything slow is done here, so that both happen at once; none is left at the end.
- Whether the sites are local workers or nodes of Flower's runtime, the same job runs (``server.run``).
"""

import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from fedretrain.job import Job, load_job
from fedretrain.progress import Progress
from fedretrain.runfolder import RunFolder, read_kept
from fedretrain.simsites import simulated_sites

from .demo import ensure_demo
from .quiet import diverted_stderr
from .task import Task, check_quorum, overridden

if TYPE_CHECKING:
    from .pool import WorkerPool


def simulate(task: Task, progress: Progress) -> dict[str, Any]:
    """Run a task to its end.

    Returns:
        The result of ``server.run``; its seconds have ``demo``, where one was made, and ``command``, for all, beside
        them. A run that is finished already returns its result as it is.

    Raises:
        FedretrainError: As ``server.run.execute`` and ``simulations.demo.ensure_demo``.
    """
    began = time.monotonic()
    finished = task.root / "result.json"
    if finished.exists():
        return read_kept(finished)
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    with ExitStack() as stack:
        stack.enter_context(diverted_stderr(task.root / "logs" / "server.log"))
        pool = None
        if task.engine == "local":
            progress.say("starting the workers")
            pool = stack.enter_context(_workers(task))
        job, demo_seconds = _ready_job(task, progress)
        folder = RunFolder.create(task.out, task.run_id, job)
        task.write_settings()
        result = _run_local(task, job, folder, pool, progress) if pool else _run_flower(task, folder, progress)
    seconds = {"demo": demo_seconds} if task.recipe else {}
    seconds |= {**result["seconds"], "command": round(time.monotonic() - began, 3)}
    return {**result, "seconds": seconds}


def _workers(task: Task) -> "WorkerPool":
    from .devices import default_workers
    from .pool import WorkerPool

    workers = min(task.workers, task.sites) if task.workers else default_workers(task.sites)
    return WorkerPool(workers, logs=task.root / "logs")


def _ready_job(task: Task, progress: Progress) -> tuple[Job, float]:
    """The job, with the demo made if need be, and how many seconds that took."""
    began = time.monotonic()
    job = task.job
    if task.recipe is not None:
        made = load_job(ensure_demo(task.out / "demo", task.recipe, progress.say))
        job = job or overridden(made, task.rounds)
    if job is None:
        raise ValueError("a task has a job or a recipe")
    return _with_sites(job, task), round(time.monotonic() - began, 3)


def _with_sites(job: Job, task: Task) -> Job:
    """The job with the sites that take part: the first by name, where these are not all."""
    check_quorum(job, task.sites)
    if job.simulation is None or task.sites == len(simulated_sites(job)):
        return job
    return job.model_copy(update={"simulation": job.simulation.model_copy(update={"first": task.sites})})


def _run_local(task: Task, job: Job, folder: RunFolder, pool: "WorkerPool", progress: Progress) -> dict[str, Any]:
    """The result, with the sites in worker processes."""
    progress.say("loading TensorFlow and the model")
    from client.trainer import configure_process
    from server.events import EventLog
    from server.run import execute

    from .engine import LocalGrid
    from .worker import Sites

    configure_process()  # the gate computes as the trainers do
    sites = Sites(simulated_sites(job), folder.store, job.model.allow_modules, task.poison)
    tell = EventLog(folder, progress)
    with LocalGrid(sites, pool=pool, on_event=lambda event: tell(**event)) as grid:
        return execute(job, grid, folder, progress)


def _run_flower(task: Task, folder: RunFolder, progress: Progress) -> dict[str, Any]:
    """The result, on Flower's simulation runtime."""
    from .devices import default_workers
    from .flower import run_flower

    progress.say("starting Flower's simulation runtime")
    return run_flower(folder, task.sites, task.workers or default_workers(task.sites), progress)
