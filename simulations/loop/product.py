"""The product, as a world has it on this machine: the model in use, runs, the gate, the registry.

Invariants: a run is the product's own (``server.run``), in warm worker processes; the model in use is the registry's
incumbent. Releases are signed at the time of this machine; a run's name says when it was in the world's time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.errors import ConfigurationError, DataMismatch, RunFailed
from fedretrain.job import Job, ModelSection
from fedretrain.runfolder import RunFolder
from fedretrain.simsites import simulated_sites
from server.registry import Registry
from simulations.digits import Part

from .policies import Carried
from .streams import START
from .world import LABELS, MODEL, World

if TYPE_CHECKING:
    from simulations.engine import LocalGrid
    from simulations.pool import WorkerPool


@dataclass(frozen=True)
class InUse:
    """The model in use: its file, its release if there is one, what its answers are called, and since when."""

    path: Path
    release: str | None
    labels: tuple[str, ...]
    since: datetime


class Product:
    """What runs in a world.

    Args:
        world: Where the files are.
        out: Output folder, with runs and registry.
        pool: Warm workers.
        tables: Of the job, beside those that every world has.
    """

    def __init__(self, world: World, out: Path, pool: "WorkerPool", tables: Mapping[str, Any]) -> None:
        self.world, self.out = world, out
        self._pool, self._tables = pool, tables
        self._use = InUse(world.folder / MODEL, None, LABELS[: world.stream.known], START)
        self._model: Any = None

    def job(self, step: int) -> Job:
        """What would be run at the end of a step."""
        seed = (1000 * self.world.stream.seed + step) % 2**32
        return self.world.job(self._use.path, self._use.labels, self._use.since, seed, self._tables)

    def accuracy(self, part: Part) -> float:
        """Of the model in use, in [0, 1]; a label that it does not know is one that it gets wrong."""
        if self._model is None:
            self._model = _built(self._use.path)
        found = np.asarray(self._model(part.x, training=False)).argmax(axis=-1)
        return float((np.array(self._use.labels)[found] == np.array(LABELS)[part.y]).mean())

    def grid(self, job: Job, folder: RunFolder) -> "LocalGrid":
        """The world's sites, as a run or a check of this job asks them; to be closed."""
        from simulations.engine import LocalGrid
        from simulations.worker import Sites

        return LocalGrid(Sites(simulated_sites(job), folder.store, job.model.allow_modules), pool=self._pool)

    def retrain(self, job: Job, run: str) -> Carried:
        """Run a job; what its sites, its data or the gate refuse is an outcome."""
        from server.run import execute

        try:
            folder = RunFolder.create(self.out, run, job)
            with self.grid(job, folder) as grid:
                result = execute(job, grid, folder)
        except (ConfigurationError, DataMismatch, RunFailed) as error:
            return Carried(run, None, str(error).split("\n", maxsplit=1)[0])
        finally:
            self._look()
        return Carried(run, result)

    def roll_back(self, release: str) -> None:
        """Put an older release in use again; raises ConfigurationError where there is none of this id."""
        Registry.open(self.out).rollback(release)
        self._look()

    def _look(self) -> None:
        """Find out what is in use."""
        incumbent = Registry.open(self.out).incumbent()
        if incumbent is None or incumbent.id == self._use.release:
            return
        labels, since = incumbent.contract.outputs[0].labels, self.world.stream.when(incumbent.lineage["run"])
        self._use = InUse(incumbent.folder / "model.keras", incumbent.id, labels, since)
        self._model = None


def _built(path: Path) -> Any:
    """The model in a file."""
    from fedretrain.architecture import build, set_weights
    from fedretrain.modelfile import load_base

    base = load_base(ModelSection(path=path))
    model = build(base.architecture)
    set_weights(model, base.weights)
    return model
