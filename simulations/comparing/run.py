"""All runs of a comparison, one after the other, in one process and with the same warm workers.

Invariants:

- A run is the product's own: the same files, rounds, gate and registry as ``fedretrain simulate`` (``server.run``).
- Every way starts from the same model and data; for each seed both are made anew.
- What a way refuses is an outcome, not the end of the comparison.
"""

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedretrain.errors import ConfigurationError, DataMismatch, RunFailed
from fedretrain.job import Job, load_job
from fedretrain.runfolder import RunFolder
from fedretrain.simsites import simulated_sites
from simulations.scenarios.registry import Drift, examples
from simulations.scenarios.write import write

from .outcome import Outcome, Point, Refused
from .rounds import HOLDOUTS, Kept

if TYPE_CHECKING:
    from simulations.pool import WorkerPool

Say = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        scenario: A drift's name.
        ways: Names of example jobs (``simulations/examples``), in the order of the table.
        seeds: Each decides the data, the model in use and the training.
        sites: How many sites share the data.
    """

    scenario: str
    ways: tuple[str, ...]
    seeds: tuple[int, ...]
    sites: int

    def check(self) -> None:
        """Raises ConfigurationError where a name is unknown."""
        Drift(self.scenario, 0, self.sites)
        known = [job.stem for job in examples()]
        for way in self.ways:
            if way not in known:
                near = difflib.get_close_matches(way, known, n=1, cutoff=0.0)[0]
                raise ConfigurationError(
                    f"--modes: there is no {way!r}; did you mean {near!r}? Valid: {', '.join(known)}"
                )


Found = tuple[str, int, Outcome | Refused]


def compare(what: Comparison, folder: Path, workers: int, say: Say) -> Iterator[Found]:
    """Every way with every seed: its name, the seed, what came of it.

    Args:
        what: What is compared; checked.
        folder: Takes scenarios and runs, a folder for each.
        workers: Worker processes.
        say: Told what is being done, one short line at a time.

    Raises:
        FedretrainError: What is not the affair of one way: a full disk, no worker left, no scikit-learn.
    """
    from client.trainer import configure_process
    from simulations.pool import WorkerPool

    with ExitStack() as stack:
        pool = stack.enter_context(WorkerPool(workers, logs=folder / "logs"))
        configure_process()
        for seed in what.seeds:
            data = folder / f"{what.scenario}-{seed}"
            if not data.exists():
                write(Drift(what.scenario, seed, what.sites), data, say)
            for way in what.ways:
                say(f"{what.scenario}, seed {seed}: {way}")
                yield way, seed, _outcome(data, way, seed, folder / f"{what.scenario}-{seed}-{way}", pool)


def _outcome(data: Path, way: str, seed: int, out: Path, pool: "WorkerPool") -> Outcome | Refused:
    file = data / f"{way}.toml"
    if not file.exists():
        return Refused("means nothing in this scenario")
    try:
        job = load_job(file)
        job = job.model_copy(update={"train": job.train.model_copy(update={"seed": seed})})
        folder = RunFolder.create(out, way, job)
        kept = Kept(folder, out / "rounds")
        result = _run(job, folder, pool, kept)
        return _read(result, kept.curve(job))
    except (ConfigurationError, DataMismatch, RunFailed) as error:
        return Refused(str(error).split("\n", maxsplit=1)[0])


def _run(job: Job, folder: RunFolder, pool: "WorkerPool", kept: Kept) -> dict[str, Any]:
    from server.run import execute
    from simulations.engine import LocalGrid
    from simulations.worker import Sites

    sites = Sites(simulated_sites(job), folder.store, job.model.allow_modules, {})
    with LocalGrid(sites, pool=pool) as grid:
        return execute(job, grid, folder, kept)


def _read(result: dict[str, Any], curve: Sequence[Point]) -> Outcome:
    """An outcome from a run's result; of an online job the first segment's gate knows the model that it began with."""
    holdouts = {holdout["name"]: holdout for holdout in result["gate"]["holdouts"]}
    before, after = ([_number(holdouts[name][which]) for name in HOLDOUTS] for which in ("incumbent", "candidate"))
    if "segments" in result:
        before = [curve[0].old, curve[0].new]
    return Outcome(
        before=Point(0, *before),
        after=Point(len(result["rounds"]), *after),
        at_sites=_at_sites(result["rounds"][-1]["metrics"]),
        curve=curve,
        released=result["outcome"] == "released",
        nbytes=result["bytes"]["total"],
        seconds=result["seconds"]["prepare"] + result["seconds"]["rounds"],
    )


def _at_sites(metrics: Mapping[str, float]) -> float:
    common = metrics.get("val-accuracy", math.nan)
    return metrics.get("val-personal-accuracy", common)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
