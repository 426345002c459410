"""A stream as files, as far as it has come: what ``fedretrain simulate`` would need to run a job at any moment.

Layout of the folder::

    model.keras          the model in use when the world begins
    old.npz, new.npz     holdouts of the last step (``simulations.loop.streams.Step``)
    sites/NAME.npz       all that a site has read so far, with ``timestamp`` and the names of the labels
"""

import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from fedretrain import atomic
from fedretrain.job import Job, parse_job
from simulations.digits import Part
from simulations.scenarios.base import SiteData

from .conditions import DIGITS
from .streams import Step, Stream, joined

MODEL = "model.keras"
LABELS = tuple(map(str, range(DIGITS)))
MODE = "replay"
"""How a job retrains where nobody says otherwise: what has come since the release, mixed with what was there before."""
ROUNDS = 10


class World:
    """A stream that has come so far.

    Args:
        stream: What it is.
        folder: Takes the files; made if need be.
        model: The model in use when it begins; copied.

    Raises:
        MachineError: The disk is full or not writable.
    """

    def __init__(self, stream: Stream, folder: Path, model: Path) -> None:
        self.stream, self.folder = stream, folder
        self._read: dict[str, list[SiteData]] = {name: [data] for name, data in stream.history().items()}
        atomic.make_folder(folder / "sites")
        with atomic.disk_errors(folder):
            shutil.copyfile(model, folder / MODEL)

    def go_on(self, step: int) -> Step:
        """Let a step pass: write what is there at its end; raises MachineError."""
        found = self.stream.step(step)
        for name, data in found.sites.items():
            self._read.setdefault(name, []).append(data)
        for name, parts in self._read.items():
            whole = joined(parts)
            self._write(f"sites/{name}", whole.part, {"timestamp": whole.time})
        for name, part in {"old": found.old, "new": found.new}.items():
            self._write(name, part, {})
        return found

    def job(  # what differs from one moment to the next
        self, model: Path, labels: Sequence[str], since: datetime, seed: int, tables: Mapping[str, Any]
    ) -> Job:
        """What would be run from a model, with ``tables`` of the job file beside those that are the same for all.

        Args:
            model: The model in use.
            labels: What its answers are called.
            since: When that was released; what was made from then on is new.
            seed: Of the training.
            tables: Such as "watch" and "plan".

        Raises:
            ConfigurationError: A table is not what it has to be.
        """
        raw = {
            "model": {"path": str(model)},
            "train": {
                "mode": MODE,
                "since": since,
                "rounds": ROUNDS,
                "optimizer": {"name": "adam", "learning_rate": 0.001},
                "validation_fraction": 0.2,
                "seed": seed,
            },
            "holdout": [
                {"name": "old", "path": "old.npz", "margin": 0.05},
                {"name": "new", "path": "new.npz", "must": "improve"},
            ],
            "contract": {"labels": list(labels)},
            "simulation": {"sites": "sites/*.npz"},
            **tables,
        }
        return parse_job(raw, self.folder / "job.toml")

    def _write(self, name: str, part: Part, more: Mapping[str, Any]) -> None:
        file = self.folder / f"{name}.npz"
        with atomic.replacing(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, allow_pickle=False, x=part.x, y=part.y, labels=np.array(LABELS), **more)
