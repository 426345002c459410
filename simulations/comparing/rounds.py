"""A run's models round by round: kept while it goes on, measured when it is over.

Only a run's last checkpoints stay in its folder, so each is linked elsewhere when it is announced. Measuring is done as
the gate does it, and changes nothing about the run.
"""

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedretrain import atomic
from fedretrain.job import Job, MonitorSection
from fedretrain.runfolder import RunFolder
from server.checkpoint import HISTORY, Checkpoints
from server.holdouts import load_holdout
from server.plan import Plan, make_plan
from server.yardstick import Yardstick

from .outcome import Point

HOLDOUTS = ("old", "new")


class Kept:
    """Keeps the checkpoints of the run in ``folder``, and of its segments, in ``keep``; is told the run's events."""

    def __init__(self, folder: RunFolder, keep: Path) -> None:
        self._folder = folder
        self._keep = keep
        self._runs = folder.root.parent
        atomic.make_folder(keep)

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Keep what a ``checkpoint`` event is about."""
        if event["event"] != "checkpoint":
            return
        name = f"round-{event['round']:04d}.safetensors"
        segments = [path / "state" for path in self._runs.glob(f"{self._folder.run_id}.*")]
        for state in (self._folder.state, *segments):
            place = self._keep / f"{event['round']:04d}"
            if (state / name).exists() and not place.exists():
                place.mkdir()
                os.link(state / name, place / name)
                shutil.copyfile(state / HISTORY, place / HISTORY)

    def curve(self, job: Job) -> list[Point]:
        """Accuracy on both holdouts of what the first round started from, and after each round.

        Raises:
            FedretrainError: As ``server.plan.make_plan``.
        """
        plan = make_plan(job, self._folder.run_id)
        yardsticks = [_yardstick(plan, name) for name in HOLDOUTS]
        weights = plan.base.weights
        states = {0: plan.start or [weights[i] for i in plan.contract.changing]}
        for place in sorted(self._keep.iterdir()):
            state = Checkpoints(place).newest
            if state is not None:
                states[state.round] = plan.own(state.params)
        return [Point(n, *(_accuracy(y, params) for y in yardsticks)) for n, params in sorted(states.items())]


def _yardstick(plan: Plan, name: str) -> Yardstick:
    section = next(holdout for holdout in plan.job.holdout if holdout.name == name)
    monitor = MonitorSection(path=section.path, metric="accuracy")
    job = plan.job.model_copy(update={"monitor": monitor})
    return Yardstick(dataclasses.replace(plan, job=job), load_holdout(section, plan.contract, plan.train))


def _accuracy(yardstick: Yardstick, params: Any) -> float:
    reading = yardstick.read(params)
    return float("nan") if reading is None else reading.metrics.get("accuracy", float("nan"))
