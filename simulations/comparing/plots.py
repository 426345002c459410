"""Accuracy on what is old and on what is new, round by round, as PNG; needs matplotlib."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedretrain import atomic

from .outcome import Outcome
from .summary import Way

_HALVES = (("old", "what the model in use could do"), ("new", "what has come"))


def draw(title: str, found: Sequence[Way], file: Path) -> None:
    """Draw one line for each way, the mean over its seeds, in two panels.

    Args:
        title: Of the whole.
        found: Ways without any outcome are left out.
        file: Takes the picture.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        MachineError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 4.2), layout="constrained")
    panels: list[Any] = list(figure.subplots(1, 2, sharey=True))
    for axes, (which, about) in zip(panels, _HALVES, strict=True):
        for place, way in enumerate(way for way in found if way.outcomes):
            across, up = line(way.outcomes, which)
            axes.plot(across, up, label=way.name, linestyle=("-", "--", ":", "-.")[place // 10 % 4], linewidth=1.4)
        axes.set(title=f"{which}: {about}", xlabel="rounds", ylabel="accuracy")
        axes.grid(color="0.92", linewidth=0.8)
    panels[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    figure.suptitle(title)
    with atomic.replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def line(outcomes: Sequence[Outcome], which: str) -> tuple[list[int], list[float]]:
    """Rounds, and the mean accuracy over the runs that were measured after so many."""
    by_round: dict[int, list[float]] = {}
    for outcome in outcomes:
        for point in outcome.curve:
            by_round.setdefault(point.round, []).append(getattr(point, which))
    across = sorted(by_round)
    return across, [statistics.fmean(by_round[n]) for n in across]
