"""Drift over time as a picture: for each feature how far it moved, pooled and per site, check after check.

Invariant: every number in the picture stands in the history; needs matplotlib (extra ``plot``), and NumPy through it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedretrain import atomic

if TYPE_CHECKING:
    from .drift.findings import Findings

POOLED: Final = "all sites"
MOST: Final = 24
"""Panels of one picture; of more subjects those that moved furthest are drawn."""
NAMED: Final = 6
"""Sites without a point that are named."""
_ACROSS: Final = 3
_UNITS: Final = {"covariate": "PSI", "label": "PSI", "concept": "accuracy lost", "quality": "share gained"}


@dataclass(frozen=True)
class Point:
    """What one check found about one subject at one site."""

    at: datetime
    effect: float
    drift: bool


@dataclass(frozen=True)
class Panel:
    """One subject over time: points by site, ``POOLED`` first."""

    kind: str
    subject: str
    lines: Mapping[str, tuple[Point, ...]]

    @property
    def furthest(self) -> float:
        """The greatest effect there ever was."""
        return max(abs(point.effect) for line in self.lines.values() for point in line)


def panels(history: "Sequence[Findings]") -> list[Panel]:
    """Every subject of the history, in order of kind and name; what had too little data has no point.

    Args:
        history: The findings of each check, oldest first.
    """
    found: dict[tuple[str, str], dict[str, list[Point]]] = {}
    for one in history:
        at = datetime.fromisoformat(one.at)
        for finding in one.findings:
            if finding.kind in _UNITS and finding.verdict != "too little data":
                line = found.setdefault((finding.kind, finding.subject), {}).setdefault(finding.site or POOLED, [])
                line.append(Point(at, finding.effect, finding.verdict == "drift"))
    order = list(_UNITS)
    keys = sorted(found, key=lambda key: (order.index(key[0]), key[1]))
    return [Panel(*key, {site: tuple(found[key][site]) for site in _sites(found[key])}) for key in keys]


def chosen(found: Sequence[Panel]) -> list[Panel]:
    """Of more than ``MOST`` panels those whose subject moved furthest for its kind, in the order they had."""
    if len(found) <= MOST:
        return list(found)
    scale = {kind: max((p.furthest for p in found if p.kind == kind), default=1.0) or 1.0 for kind in _UNITS}
    ranked = sorted(range(len(found)), key=lambda i: (-found[i].furthest / scale[found[i].kind], i))
    return [found[i] for i in sorted(ranked[:MOST])]


def unanswered(history: "Sequence[Findings]", drawn: Sequence[Panel]) -> list[str]:
    """Sites that were asked about and have no point in any panel."""
    asked = {finding.site for one in history for finding in one.findings if finding.site is not None}
    return sorted(asked - {site for panel in drawn for site in panel.lines})


def draw(history: "Sequence[Findings]", file: Path, effect: float | None = None) -> int:
    """Draw the history; a filled point is drift, an open one is none, and a dashed line the least effect that counts.

    Args:
        history: The findings of each check, oldest first.
        file: Takes the picture, PNG.
        effect: ``watch.effect``, of inputs and labels; None where nobody knows.

    Returns:
        How many subjects were left out, because there are more than ``MOST``.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        MachineError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    found = panels(history)
    drawn = chosen(found)
    performance = _performance(history)
    count = len(drawn) + len(performance)
    rows = max(1, -(-count // _ACROSS))
    figure = Figure(figsize=(4.2 * _ACROSS, 2.6 * rows + 0.6), layout="constrained")
    axes = iter(figure.subplots(rows, _ACROSS, squeeze=False).flat)
    colours = _colours(drawn)
    for panel, place in zip(drawn, axes, strict=False):
        _draw_panel(place, panel, colours, _least(panel, effect))
    for (output, line), place in zip(performance.items(), axes, strict=False):
        _draw_performance(place, output, line)
    for place in axes:
        place.set_axis_off()
    if colours:
        figure.legend(*_legend(colours), loc="outside lower center", ncols=min(6, len(colours) + 1), frameon=False)
    left = len(found) - len(drawn)
    title = f"{len(history)} checks" + (f"; {left} subjects that moved less are left out" if left else "")
    if silent := unanswered(history, drawn):
        more = f" and {len(silent) - NAMED} more" if len(silent) > NAMED else ""
        title += f"; no point of {', '.join(silent[:NAMED])}{more}: too little data"
    figure.suptitle(title, fontsize=10)
    with atomic.replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return left


def _sites(lines: Mapping[str, Any]) -> list[str]:
    """``POOLED`` first, then the sites by name."""
    return sorted(lines, key=lambda site: (site != POOLED, site))


def _colours(drawn: Sequence[Panel]) -> dict[str, str]:
    """One colour a site, the same in every panel; beyond nine sites they come again."""
    sites = _sites({site: None for panel in drawn for site in panel.lines})
    return {site: "black" if site == POOLED else f"C{i % 9}" for i, site in enumerate(sites)}


def _legend(colours: Mapping[str, str]) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=colour, linewidth=2 if s == POOLED else 1) for s, colour in colours.items()]
    least = Line2D([], [], color="0.5", linewidth=0.8, linestyle="--")
    return [*lines, least], [*colours, "least effect that counts"]


def _least(panel: Panel, effect: float | None) -> float | None:
    """The least effect that counts as drift of the subject; None where there is no single one."""
    from .drift import concept, quality

    if panel.kind == "concept":
        return concept.FLOOR
    if panel.kind == "quality":
        own = panel.subject.partition(" ")[0]
        return {"duplicates": quality.REPEATED_RISE, "constant": None}.get(own, quality.FLOOR)
    return effect


def _draw_panel(axes: Any, panel: Panel, colours: Mapping[str, str], least: float | None) -> None:
    for site, line in panel.lines.items():
        times, colour = [point.at for point in line], colours[site]
        axes.plot(times, [p.effect for p in line], color=colour, linewidth=1.8 if site == POOLED else 0.8)
        for point in line:
            face = colour if point.drift else "white"
            axes.plot([point.at], [point.effect], "o", color=colour, markerfacecolor=face, markersize=4)
    if least is not None:
        axes.axhline(least, color="0.5", linewidth=0.8, linestyle="--")
    if all(point.effect >= 0 for line in panel.lines.values() for point in line):
        axes.set_ylim(bottom=0.0)
    axes.set_title(f"{panel.kind}: {panel.subject}", fontsize=9)
    axes.set_ylabel(_UNITS[panel.kind], fontsize=8)
    _finish(axes)


def _performance(history: "Sequence[Findings]") -> dict[str, list[tuple[datetime, Any, float | None]]]:
    """By output: time, accuracy since the release with its interval, and as confidence has it; of all together."""
    found: dict[str, list[tuple[datetime, Any, float | None]]] = {}
    for one in history:
        for told in one.performance:
            if told.site is None and not (told.recent is None and told.expected is None):
                line = found.setdefault(told.output, [])
                line.append((datetime.fromisoformat(one.at), told.recent, told.expected))
    return dict(sorted(found.items())[:MOST])


def _draw_performance(axes: Any, output: str, line: Sequence[tuple[datetime, Any, float | None]]) -> None:
    known = [(at, e) for at, e, _ in line if e is not None]
    if known:
        below = [e.value - e.low for _, e in known]
        above = [e.high - e.value for _, e in known]
        axes.errorbar(
            [at for at, _ in known], [e.value for _, e in known], [below, above], color="black", marker="o",
            markersize=4, linewidth=1.4, capsize=2, label="by labels, 95 %",
        )  # fmt: skip
    guessed = [(at, value) for at, _, value in line if value is not None]
    if guessed:
        axes.plot(*zip(*guessed, strict=True), color="0.5", linestyle="--", marker=".", label="by confidence alone")
    axes.set_title(f"accuracy: {output}", fontsize=9)
    axes.legend(fontsize=7, frameon=False)
    _finish(axes)


def _finish(axes: Any) -> None:
    from matplotlib import dates

    of_time: Any = dates  # it has no types of its own
    locator = of_time.AutoDateLocator(minticks=2, maxticks=6)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(of_time.ConciseDateFormatter(locator))
    axes.xaxis.get_offset_text().set_size(7)
    axes.tick_params(labelsize=7)
    axes.grid(color="0.92", linewidth=0.8)
