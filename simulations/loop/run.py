"""One world from its first step to its last, under one policy."""

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Protocol

from fedretrain.job import Job
from simulations.digits import Part

from .outcome import Record
from .policies import Carried, Decision, Moment, Policy
from .streams import RUN, Step, Stream


class Runs(Protocol):
    """What a world needs of ``simulations.loop.product.Product``."""

    def job(self, step: int) -> Job:
        """What would be run at the end of a step."""

    def accuracy(self, part: Part) -> float:
        """Of the model in use."""

    def retrain(self, job: Job, run: str) -> Carried:
        """Run a job."""

    def roll_back(self, release: str) -> None:
        """Put an older release in use again."""


class GoesOn(Protocol):
    """What a world needs of ``simulations.loop.world.World``."""

    @property
    def stream(self) -> Stream:
        """What it is."""

    def go_on(self, step: int) -> Step:
        """Let a step pass."""


def run(world: GoesOn, product: Runs, policy: Policy) -> Iterator[Record]:
    """Let a world pass step by step, and do what the policy decides at the end of each.

    Raises:
        FedretrainError: What is no outcome: a full disk, no worker left, a registry that does not verify.
    """
    for step in range(world.stream.steps):
        at = world.stream.ends(step)
        found = world.go_on(step)
        accuracy = product.accuracy(found.current)
        decision = policy.decide(Moment(step, at, product.job(step)))
        yield _record(step, at, accuracy, decision, _carry_out(product, policy, decision, step))


def _carry_out(product: Runs, policy: Policy, decision: Decision, step: int) -> tuple[Carried, float]:
    """What came of the decision, and how many seconds that took."""
    carried = Carried("", None)
    if decision.job is None and decision.roll_back is None:
        return carried, 0.0
    began = time.monotonic()
    if decision.roll_back is not None:
        product.roll_back(decision.roll_back)
    elif decision.job is not None:
        carried = product.retrain(decision.job, f"{RUN}{step:03d}")
    policy.learn(decision, carried)
    return carried, time.monotonic() - began


def _record(step: int, at: datetime, accuracy: float, decision: Decision, carried_in: tuple[Carried, float]) -> Record:
    carried, seconds = carried_in
    result = carried.result or {}
    released = decision.roll_back is not None or result.get("release") is not None
    outcome = f"; refused: {carried.refused}" if carried.refused else "; rejected by the gate" if not released else ""
    return Record(
        step=step,
        at=f"{at:%Y-%m-%d}",
        accuracy=accuracy,
        action=decision.action,
        why=decision.why + (outcome if decision.job is not None else ""),
        retrained=decision.job is not None,
        released=released,
        nbytes=decision.nbytes + (result["bytes"]["total"] if result else 0),
        seconds=decision.seconds + seconds,
        document=decision.document,
    )
