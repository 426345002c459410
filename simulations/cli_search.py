"""``fedretrain server search``: a job's settings tried out at the sites, before anybody retrains with them.

It stands among the server's commands because who decides how to retrain uses it, and here because a job's sites may be
simulated: ``server`` does not know of simulations, and ``fedretrain.cli`` puts the command in its place.

Invariants: importing this module loads neither NumPy nor Flower nor TensorFlow; nothing is released.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fedretrain.job import Job
    from fedretrain.progress import Progress
    from server.search import Place

app = typer.Typer(add_completion=False, rich_markup_mode=None)

FEDERATION = Path("federation")
SEARCHED = Path("searched")
TOLD = frozenset({"site-declined", "quarantined", "round-abandoned", "warning"})
"""Events of a trial that are told; the rest would make many runs look like one."""


@app.command()
def search(
    job: Annotated[Path, typer.Argument(metavar="JOB.toml", help="With a [search] table.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "--folder",
            help="Folder of the search, or the federation's; the same again goes on. Default: federation, for a job "
            "with simulated sites: searched.",
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, max=10_000, help="Instead of the job's.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=1000, help="Processes. Default: cores.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")] = False,
) -> None:
    """Try out settings of a job, judged by the sites' validation parts; nothing is released.

    A job with [simulation] is tried at its simulated sites, another one at the federation's, by `server up`.
    """
    from rich.console import Console

    from fedretrain.progress import Progress

    from .quiet import console_stream

    with console_stream() as stream, Progress(Console(file=stream)) as progress:
        found, file = _search(job, out, trials, workers, progress)
    if as_json:
        typer.echo(json.dumps(found, allow_nan=False))
        return
    for line in lines(found, file):
        typer.echo(line)


def _search(
    path: Path, out: Path | None, trials: int | None, workers: int | None, progress: "Progress"
) -> tuple[dict[str, Any], Path]:
    """The search's record (``server.search``), and the file that it stands in."""
    from fedretrain.job import load_job
    from server.federation import is_federation
    from server.search import Place

    job = _with_trials(load_job(path), trials)
    out = out or (FEDERATION if job.simulation is None else SEARCHED)
    if job.simulation is None or is_federation(out):
        return _in_federation(job, path, out, progress)
    place = Place.of_simulation(out.resolve())
    return _simulated(job, place, workers, progress), place.file


def _in_federation(job: "Job", path: Path, folder: Path, progress: "Progress") -> tuple[dict[str, Any], Path]:
    """The search, each trial by `server up`."""
    _check_tuner()
    from server.deployed import Deployed
    from server.federation import Federation
    from server.operations import check_members
    from server.search import Place
    from server.search import search as run

    from .quiet import diverted_stderr

    federation = Federation.open(folder)
    sites = Deployed(federation, progress)
    check_members(federation, job, path)
    with diverted_stderr(federation.log / "search.log"):
        job = complete(sites.job(job))
        place = Place.of_federation(federation.folder, job)
        return run(job, place, sites.trial, progress.say), place.file


def _simulated(job: "Job", place: "Place", workers: int | None, progress: "Progress") -> dict[str, Any]:
    """The search at simulated sites."""
    import importlib
    import os

    from fedretrain.simsites import simulated_sites

    from .quiet import diverted_stderr
    from .task import check_quorum

    check_quorum(job, len(simulated_sites(job)))
    _check_tuner()
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    with diverted_stderr(place.out / "logs" / "server.log"):
        importlib.import_module("keras_tuner")  # slow; what is wrong with it is said before the workers start
        return _on_workers(job, place, workers, progress)


def _check_tuner() -> None:
    """Raise ModuleNotFoundError where KerasTuner is not installed, before anything is written."""
    import sys
    from importlib.util import find_spec

    if sys.modules.get("keras_tuner") is None and find_spec("keras_tuner") is None:  # said before anything is written
        raise ModuleNotFoundError("No module named 'keras_tuner'", name="keras_tuner")


def _with_trials(job: "Job", trials: int | None) -> "Job":
    from server.search import section_of

    section = section_of(job)
    return job if trials is None else job.model_copy(update={"search": section.model_copy(update={"trials": trials})})


def _on_workers(job: "Job", place: "Place", workers: int | None, progress: "Progress") -> dict[str, Any]:
    """The search, with the sites in worker processes that serve all its trials."""
    from fedretrain.simsites import simulated_sites

    from .devices import default_workers
    from .pool import WorkerPool

    sources = simulated_sites(job)
    progress.say("starting the workers")
    with WorkerPool(min(workers or default_workers(len(sources)), len(sources)), logs=place.out / "logs") as pool:
        from client.trainer import configure_process
        from server.search import search as run
        from server.trial import run_trial

        from .engine import LocalGrid
        from .worker import Sites

        configure_process()

        def watch(event: Mapping[str, Any]) -> None:
            if event["event"] in TOLD:
                progress(event)

        sites = Sites(sources, place.out / "store", job.model.allow_modules)
        with LocalGrid(sites, pool=pool, on_event=watch) as grid:
            return run(complete(job), place, lambda part, folder: run_trial(part, grid, folder, watch), progress.say)


def complete(job: "Job") -> "Job":
    """The job with its optimizer written out, where the search sets one of its settings and the job names none."""
    from fedretrain.modelfile import load_base
    from fedretrain.settings import resolve_train
    from server.search import section_of

    places = section_of(job).space
    if job.train.optimizer is not None or not any(place.startswith("train.optimizer.") for place in places):
        return job
    optimizer = resolve_train(job.train, load_base(job.model).compile_config).optimizer
    return job.model_copy(update={"train": job.train.model_copy(update={"optimizer": optimizer})})


def lines(found: Mapping[str, Any], file: Path) -> Iterator[str]:
    """The trials, the best first, and what to write into the job."""
    from fedretrain.answers import table
    from server.search import told

    metric = found["search"]["metric"]
    sign = -1 if metric == "accuracy" else 1
    ranked: Sequence[Mapping[str, Any]] = sorted(
        found["trials"], key=lambda t: (t[metric] is None, sign * (t[metric] or 0), t["trial"])
    )
    rows: list[tuple[str, ...]] = [("trial", "loss", "accuracy", "seconds", "settings")]
    for trial in ranked:
        numbers = ["-" if trial[name] is None else f"{trial[name]:.4f}" for name in ("loss", "accuracy")]
        note = f"  ({trial['reason']})" if trial["reason"] else ""
        rows.append((str(trial["trial"]), *numbers, f"{trial['seconds']:.1f}", told(trial["values"]) + note))
    yield from table(rows)
    yield ""
    yield f"best by {metric} on the sites' validation parts, which no release is judged by: trial {found['best']}"
    best = next(trial for trial in found["trials"] if trial["trial"] == found["best"])
    yield from (f"  {place} = {json.dumps(value)}" for place, value in best["values"].items())
    yield f"all of it: {file}"
