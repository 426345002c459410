"""Accuracy against rounds and seconds, and where it crosses a target.

Format of a curve's file: one JSON object with the fields of ``Curve``.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fedretrain import atomic

from .watched import Watched


class Point(NamedTuple):
    """The global model after a round: its test accuracy, and when it was there, in seconds since the command began."""

    round: int
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class Curve:
    """One run.

    Attributes:
        made: What was run: setting and seed.
        points: From round 0, the initial model, on.
        seconds: Of the whole command.
        cpu: CPU seconds of it.
        memory: The most bytes its processes held at once.
    """

    made: dict[str, Any]
    points: tuple[Point, ...]
    seconds: float
    cpu: float
    memory: int

    @classmethod
    def of(cls, made: dict[str, Any], run: Watched) -> "Curve":
        """The curve of a run with a ``[monitor]``."""
        [first] = run.of("round-started")[:1]
        there = {0: first.seconds} | {m.event["round"]: m.seconds for m in run.of("round-finished")}
        read = [m.event for m in run.of("monitored") if m.event["round"] in there]
        points = tuple(Point(e["round"], e["metrics"]["accuracy"], there[e["round"]]) for e in read)
        return cls(made, points, run.seconds, run.cpu, run.memory)

    @property
    def best(self) -> tuple[float, ...]:
        """At each point the best accuracy until then."""
        return tuple(max(p.accuracy for p in self.points[: i + 1]) for i in range(len(self.points)))

    @property
    def seconds_per_round(self) -> float:
        """On average, from the beginning of the first to the end of the last."""
        first, last = self.points[0], self.points[-1]
        return (last.seconds - first.seconds) / max(1, last.round - first.round)

    def crossing(self, target: float) -> float | None:
        """The round at which ``best``, joined by straight lines, reaches the target; None where it does not.

        So does the paper (section 3): it makes the curve monotonic and interpolates between rounds.
        """
        best = self.best
        for before, after, low, high in zip(self.points, self.points[1:], best, best[1:], strict=False):
            if low < target <= high:
                return before.round + (after.round - before.round) * (target - low) / (high - low)
        return None

    def seconds_to(self, target: float) -> float | None:
        """When the first model that reaches the target is there; None where none does."""
        return next((p.seconds for p in self.points if p.accuracy >= target), None)

    def write(self, file: Path) -> None:
        """Write the file; raises MachineError."""
        atomic.make_folder(file.parent)
        atomic.write_json(file, asdict(self))

    @classmethod
    def read(cls, file: Path, made: dict[str, Any]) -> "Curve | None":
        """The curve in a file; None where there is none, or one of another setting."""
        if not file.exists():
            return None
        value = json.loads(file.read_bytes())
        if value["made"] != made:
            return None
        return cls(**value | {"points": tuple(Point(*point) for point in value["points"])})


def typical(curves: Sequence[Curve], target: float) -> Curve:
    """The run whose crossing is the median one, the slower of two; runs that do not cross come last."""
    ordered = sorted(curves, key=lambda curve: curve.crossing(target) or float("inf"))
    return ordered[len(ordered) // 2]
