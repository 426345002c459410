"""Accuracy over time under each policy, one panel for each scenario, as PNG; needs matplotlib."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedretrain import atomic

from .conditions import ABOUT
from .outcome import Course
from .summary import Found, grouped

_COLUMNS = 2
_STYLES = {"never": ("0.45", "--"), "schedule": ("#d1491b", "-"), "planner": ("#1f6fb4", "-")}


def draw(title: str, courses: Sequence[Course], file: Path) -> None:
    """Draw one line for each policy, the mean over its seeds, and a dot where a model was released with any seed.

    Args:
        title: Of the whole.
        courses: At least one.
        file: Takes the picture.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        MachineError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    found = grouped(courses)
    scenarios = list(dict.fromkeys(course.scenario for course in courses))
    height = -(-len(scenarios) // _COLUMNS)
    figure = Figure(figsize=(10.4, 2.9 * height + 0.5), layout="constrained")
    panels: list[Any] = list(figure.subplots(height, _COLUMNS, squeeze=False).flat)
    for axes in panels[len(scenarios) :]:
        axes.set_axis_off()
    for axes, scenario in zip(panels, scenarios, strict=False):
        _panel(axes, scenario, found)
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    with atomic.replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _panel(axes: Any, scenario: str, found: Found) -> None:
    for (name, policy), courses in found.items():
        if name != scenario:
            continue
        up = line(courses)
        colour, style = _STYLES[policy]
        axes.plot(range(len(up)), up, label=policy, color=colour, linestyle=style, linewidth=1.4)
        at = [step for step in range(len(up)) if any(course.records[step].released for course in courses)]
        axes.plot(at, [up[step] for step in at], "o", color=colour, markersize=3.5)
    axes.set_title(f"{scenario}: {ABOUT[scenario]}", fontsize=9)
    axes.set(xlabel="step", ylabel="accuracy")
    axes.grid(color="0.92", linewidth=0.8)


def line(courses: Sequence[Course]) -> list[float]:
    """The mean over the worlds, step by step."""
    return [statistics.fmean(records) for records in zip(*(_accuracies(course) for course in courses), strict=True)]


def _accuracies(course: Course) -> list[float]:
    return [record.accuracy for record in course.records]
