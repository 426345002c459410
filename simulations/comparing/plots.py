"""Accuracy on what is old and on what is new, round by round, as PNG; needs matplotlib."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedretrain import atomic

from .outcome import Outcome
from .summary import Way

_HALVES = (("old", "what the model in use could do"), ("new", "what has come"))
_ROWS = 16  # of the legend, beside panels of this height


def draw(title: str, found: Sequence[Way], file: Path) -> None:
    """Draw one line for each way, the mean over its seeds, in two panels.

    A panel need not show all of a line: one that starts from nothing would press the others together (``shown``).

    Args:
        title: Of the whole.
        found: Ways without any outcome are left out.
        file: Takes the picture.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        MachineError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.6, 4.2), layout="constrained")
    panels: list[Any] = list(figure.subplots(1, 2))
    for axes, (which, about) in zip(panels, _HALVES, strict=True):
        lines = {way.name: line(way.outcomes, which) for way in found if way.outcomes}
        for place, (name, (across, up)) in enumerate(lines.items()):
            axes.plot(across, up, label=name, linestyle=("-", "--", ":", "-.")[place // 10 % 4], linewidth=1.4)
        axes.set_ylim(shown([up for _, up in lines.values()]))
        axes.set(title=f"{which}: {about}", xlabel="rounds", ylabel="accuracy")
        axes.grid(color="0.92", linewidth=0.8)
    columns = math.ceil(len(panels[1].lines) / _ROWS)
    panels[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8, ncols=columns)
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


def shown(lines: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """From where to where an axis goes; None where no value is known.

    It has all last values, the greatest value, and all values of at least half of the lines.
    """
    known = [[value for value in up if math.isfinite(value)] for up in lines]
    known = [up for up in known if up]
    if not known:
        return None
    best = max(map(max, known))
    worst = min([*(up[-1] for up in known), statistics.median_low(map(min, known))])
    beyond = max(0.1 * (best - worst), 0.01)
    return max(0.0, worst - beyond), min(1.01, best + beyond)
