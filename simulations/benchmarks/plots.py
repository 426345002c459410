"""Accuracy against rounds and against seconds, as PNG; needs the dependency group ``bench`` (matplotlib)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedretrain import atomic
from fedretrain.errors import ConfigurationError

from .curves import Curve, Point, typical

if TYPE_CHECKING:
    from .mcmahan import Case

_COLOURS = {"iid": "#1f6fb4", "shards": "#d1491b"}
_COLUMNS = 2
_HEADROOM = 1.06  # beyond the last curve's end, so that the paper's mark is in sight
_SHOWN_BELOW = 0.08  # of accuracy below the target: what is before that is the first few rounds


def draw(cases: "Mapping[str, Case]", found: Mapping[str, Sequence[Curve]], folder: Path) -> list[Path]:
    """Draw ``accuracy-rounds.png`` and ``accuracy-seconds.png``: one panel for each case, one line for each run.

    Args:
        cases: By name.
        found: Runs by the name of their case.
        folder: Made if need be.

    Returns:
        The files.

    Raises:
        ConfigurationError: matplotlib is not installed.
        MachineError: The folder is not writable.
    """
    atomic.make_folder(folder)
    axes: list[tuple[str, str, Callable[[Point], float]]] = [
        ("rounds", "rounds", lambda point: point.round),
        ("seconds", "seconds since the command was started", lambda point: point.seconds),
    ]
    files = []
    for name, label, across in axes:
        figure = _figure(cases, found, label, across, marks=name == "rounds")
        files.append(folder / f"accuracy-{name}.png")
        with atomic.replacing(files[-1]) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
    return files


def _figure(
    cases: "Mapping[str, Case]",
    found: Mapping[str, Sequence[Curve]],
    label: str,
    across: Callable[[Point], float],
    *,
    marks: bool,
) -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ConfigurationError("matplotlib is not installed; install the dependency group bench") from None
    rows = -(-len(cases) // _COLUMNS)
    figure = Figure(figsize=(5.2 * min(_COLUMNS, len(cases)), 3.7 * rows), layout="constrained")
    panels = list(figure.subplots(rows, min(_COLUMNS, len(cases)), squeeze=False).flat)
    for axes in panels[len(cases) :]:
        axes.set_axis_off()
    for axes, (name, case) in zip(panels, cases.items(), strict=False):
        target, curves = case.setting.target, found[name]
        _lines(axes, case, curves, across)
        axes.axhline(target, color="0.5", linewidth=0.8, linestyle=":")
        if marks:
            axes.plot(case.paper, target, "x", color="0.3", markersize=9, label="McMahan et al. 2017")
        axes.set(title=case.title, xlabel=label, ylabel="test accuracy")
        lowest = min(curve.best[-1] for curve in curves)
        axes.set_ylim(min(target, lowest) - _SHOWN_BELOW, target + _SHOWN_BELOW / 8)
        furthest = max(across(point) for curve in curves for point in curve.points)
        axes.set_xlim(0, _HEADROOM * max(furthest, case.paper if marks else 0))
        axes.grid(color="0.92", linewidth=0.8)
        axes.legend(loc="lower right", frameon=False)
    return figure


def _lines(axes: Any, case: "Case", curves: Sequence[Curve], across: Callable[[Point], float]) -> None:
    """What was measured in every run, faint, and of the typical one the best accuracy so far."""
    colour, middle = _COLOURS[case.setting.split], typical(curves, case.setting.target)
    for curve in curves:
        at = [across(point) for point in curve.points]
        axes.plot(at, [point.accuracy for point in curve.points], color=colour, alpha=0.3, linewidth=0.8)
        if curve is middle:
            axes.plot(at, curve.best, color=colour, linewidth=1.6, label="best so far")
