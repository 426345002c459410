"""What worlds came to, by scenario and policy, over the seeds: values, a table, JSON, and what that says of the goals.

A spread is the standard deviation between seeds (``simulations.comparing.summary.Spread``).
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from simulations.benchmarks.environment import Environment
from simulations.benchmarks.table import Table, number
from simulations.comparing.summary import Spread, told

from .conditions import ABOUT
from .outcome import Course
from .worlds import Comparison

TABLE = "compare-policies"
COLUMNS = ("scenario", "policy", "accuracy over time, %", "last step, %", "retrainings", "released", "MB", "seconds")
CLOSE = 0.01
"""Accuracies over time that differ by less are called equal."""

Found = Mapping[tuple[str, str], Sequence[Course]]


def grouped(courses: Sequence[Course]) -> Found:
    """By scenario and policy, in the order in which they came."""
    found: dict[tuple[str, str], list[Course]] = {}
    for course in courses:
        found.setdefault((course.scenario, course.policy), []).append(course)
    return found


def rows(found: Found) -> Iterator[tuple[str, ...]]:
    """The table's cells."""
    for (scenario, policy), courses in found.items():
        yield (
            scenario,
            policy,
            Spread.of([course.accuracy for course in courses]).text(100),
            Spread.of([course.records[-1].accuracy for course in courses]).text(100),
            number(statistics.fmean(course.retrainings for course in courses)),
            number(statistics.fmean(course.releases for course in courses)),
            number(statistics.fmean(course.nbytes for course in courses) / 1e6),
            number(statistics.fmean(course.seconds for course in courses)),
        )


def verdicts(found: Found) -> list[str]:
    """What the planner came to beside the other policies, one sentence for each scenario that has them."""
    lines = []
    for scenario in dict.fromkeys(scenario for scenario, _ in found):
        of = {policy: found[scenario, policy] for name, policy in found if name == scenario}
        if "planner" in of:
            lines.append(f"{scenario}: the planner {_verdict(of)}.")
    return lines


def _verdict(of: Mapping[str, Sequence[Course]]) -> str:
    mean = {policy: statistics.fmean(course.accuracy for course in courses) for policy, courses in of.items()}
    runs = {policy: statistics.fmean(course.retrainings for course in courses) for policy, courses in of.items()}
    said = [f"retrains {runs['planner']:.1f} times"]
    if "never" in of:
        said.append(f"is {_beside(mean['planner'] - mean['never'])} never to retrain")
    if "schedule" in of:
        share = f", with {runs['planner'] / runs['schedule']:.0%} of its retrainings" if runs["schedule"] else ""
        said.append(f"is {_beside(mean['planner'] - mean['schedule'])} the schedule{share}")
    return ", ".join(said)


def _beside(difference: float) -> str:
    if abs(difference) < CLOSE:
        return f"as good ({100 * difference:+.1f} points) as"
    return f"{abs(100 * difference):.1f} points {'better' if difference > 0 else 'worse'} than"


def table(what: Comparison, courses: Sequence[Course], environment: Environment, command: str) -> Table:
    """One row for each scenario and policy."""
    found = grouped(courses)
    title = f"Policies over {what.steps} steps, {told(what.seeds)}"
    note = (
        "Accuracy over time: mean over the steps of that of the model in use on what was current. "
        f"The schedule retrains every {what.every} steps. Equal: less than {100 * CLOSE:.0f} point apart."
    )
    made = Table(TABLE, title, COLUMNS, command=command, environment=environment)
    made.note = "\n".join([note, "", *(f"- {line}" for line in verdicts(found))]).rstrip()
    for row in rows(found):
        made.add(*row)
    return made


def as_json(what: Comparison, courses: Sequence[Course], environment: Environment) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        **asdict(what),
        "worlds": [course_json(course) for course in courses],
        "verdicts": verdicts(grouped(courses)),
        "environment": asdict(environment),
    }


def course_json(course: Course) -> dict[str, Any]:
    """One world."""
    return {
        "scenario": course.scenario,
        "about": ABOUT[course.scenario],
        "policy": course.policy,
        "seed": course.seed,
        "accuracy": course.accuracy,
        "retrainings": course.retrainings,
        "releases": course.releases,
        "bytes": course.nbytes,
        "seconds": round(course.seconds, 3),
        "steps": [asdict(record) for record in course.records],
    }
