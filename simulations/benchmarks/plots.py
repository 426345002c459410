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
_SPLITS = {"iid": "IID", "shards": "two shards a site"}
_HEADROOM = 1.06  # beyond the last curve's end, so that the paper's mark is in sight
_SHOWN_BELOW = 0.08  # of accuracy below the target: what is before that is the first few rounds


def draw(cases: "Mapping[str, Case]", found: Mapping[str, Sequence[Curve]], folder: Path) -> list[Path]:
    """Draw ``accuracy-rounds.png`` and ``accuracy-seconds.png``: one panel for each model, one line for each run.

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
    models = sorted({case.setting.model for case in cases.values()})
    figure = Figure(figsize=(5.2 * len(models), 4.2), layout="constrained")
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        mine = {name: case for name, case in cases.items() if case.setting.model == model}
        for name, case in mine.items():
            _lines(axes, case, found[name], across)
            if marks:
                axes.plot(case.paper, case.setting.target, "x", color=_COLOURS[case.setting.split], markersize=9)
        target = max(case.setting.target for case in mine.values())
        axes.axhline(target, color="0.5", linewidth=0.8, linestyle=":")
        axes.set(title=f"{model.upper()}, to {100 * target:g} % (dotted)", xlabel=label, ylabel="test accuracy")
        lowest = min(curve.best[-1] for name in mine for curve in found[name])
        axes.set_ylim(min(target, lowest) - _SHOWN_BELOW, target + _SHOWN_BELOW / 8)
        furthest = max(across(p) for name in mine for curve in found[name] for p in curve.points)
        papers = [case.paper for case in mine.values()] if marks else []
        axes.set_xlim(0, _HEADROOM * max([furthest, *papers]))
        axes.grid(color="0.92", linewidth=0.8)
        if marks:
            axes.plot([], [], "x", color="0.4", label="McMahan et al. 2017")
        axes.legend(loc="lower right", frameon=False)
    return figure


def _lines(axes: Any, case: "Case", curves: Sequence[Curve], across: Callable[[Point], float]) -> None:
    """All runs of a case, the typical one in full colour with the best accuracy so far above what was measured."""
    colour, middle = _COLOURS[case.setting.split], typical(curves, case.setting.target)
    for curve in curves:
        at = [across(point) for point in curve.points]
        axes.plot(at, [p.accuracy for p in curve.points], color=colour, alpha=0.25, linewidth=0.8)
        if curve is middle:
            axes.plot(at, curve.best, color=colour, linewidth=1.6, label=_SPLITS[case.setting.split])
