"""Situations with the plan that each must lead to. Written by hand; their plans stand in ``golden``.

``python -m tests.server.deciding.cases`` writes the plans anew: read the difference before it is committed.
"""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fedretrain.planning import PlanSection
from server.deciding.evidence import Estimate, Evidence, Past, Signal
from server.deciding.plan import Cost, Plan, Range
from server.deciding.planner import decide

GOLDEN = Path(__file__).parent / "golden"
NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)


def estimate(value: float, n: int = 400, reach: float = 0.03) -> Estimate:
    return Estimate(value, round(value - reach, 6), round(value + reach, 6), n)


def ago(days: float) -> datetime:
    return NOW - timedelta(days=days)


def past(days: float, action: str = "replay", **changes: Any) -> Past:
    """A retraining of 100 s and 1 MB that gained 0.05."""
    usual = {"gain": 0.05, "forgetting": 0.0, "seconds": 100.0, "bytes": 1_000_000, "site_seconds": 300.0}
    fixed = {"kwh": None, "released": True, "new_examples": 400}
    return Past(at=ago(days), action=action, **{**usual, **fixed, **changes})


def same(seconds: float) -> Range:
    return Range(seconds, seconds, seconds)


QUIET = Evidence(NOW, "r2", ago(10), new_examples=400, old_examples=4000, sites=5, previous_release="r1")
FELL = replace(QUIET, metric=estimate(0.8), reference=estimate(0.95))
COVARIATE = Signal("covariate", 0.6, 3, 5, 2, "brightness")
DRIFTED = replace(FELL, signals=(COVARIATE,))
CURVE = (0.7, 0.8, 0.84, 0.86, 0.87, 0.88)

CASES: dict[str, tuple[Evidence, PlanSection, dict[str, Cost]]] = {
    "no-evidence": (Evidence(NOW, too_little=True), PlanSection(schedule="1d", volume=1, metric_below=0.9), {}),
    "nothing-fired": (QUIET, PlanSection(schedule="30d", volume=1000, metric_below=0.9), {}),
    "too-little-data": (replace(QUIET, too_little=True), PlanSection(), {}),
    "covariate": (DRIFTED, PlanSection(), {}),
    "unlabelled": (replace(QUIET, signals=(COVARIATE,), expected_accuracy=0.93), PlanSection(), {}),
    "harmless-drift": (replace(DRIFTED, metric=estimate(0.95)), PlanSection(), {}),
    "hysteresis": (
        replace(DRIFTED, metric=estimate(0.85), signals=(replace(COVARIATE, checks=1),)),
        PlanSection(),
        {},
    ),
    "sure-loss": (replace(DRIFTED, signals=(replace(COVARIATE, checks=1),)), PlanSection(), {}),
    "concept": (
        replace(FELL, signals=(COVARIATE, Signal("concept", 0.15, 1, 5, 3, "digit"))),
        PlanSection(),
        {"replay": Cost(same(100), same(1e6), same(300), None, 2)},
    ),
    "label-shift": (replace(FELL, signals=(Signal("label", 0.3, 0, 5, 2),)), PlanSection(), {}),
    "quality": (replace(QUIET, signals=(Signal("quality", 0.3, 1, 5, 4, "missing age"),)), PlanSection(), {}),
    "much-more-of-the-same": (replace(QUIET, new_examples=800), PlanSection(volume=800), {}),
    "little-more-of-the-same": (replace(QUIET, new_examples=799), PlanSection(volume=799), {}),
    "schedule": (QUIET, PlanSection(schedule="10d"), {}),
    "new-site": (replace(QUIET, new_sites=("clinic-f",)), PlanSection(), {}),
    "new-labels": (replace(QUIET, new_labels=(("8", 30), ("9", 5)), unknown_labels=2), PlanSection(), {}),
    "metric-below": (replace(FELL, new_examples=2000), PlanSection(metric_below=0.85), {}),
    "metric-not-surely-below": (FELL, PlanSection(metric_below=0.82), {}),
    "no-new-data": (replace(DRIFTED, new_examples=49), PlanSection(), {}),
    "cool-down": (replace(DRIFTED, past=(past(0.9),)), PlanSection(), {}),
    "cool-down-doubled": (
        replace(DRIFTED, past=(past(9), past(3, released=False), past(1.5, released=False))),
        PlanSection(),
        {},
    ),
    "budget": (
        replace(DRIFTED, past=(past(20), past(5))),
        PlanSection.model_validate({"budget": {"retrainings": 2, "period": "30d"}}),
        {},
    ),
    "budget-leaves-the-cheaper": (
        replace(DRIFTED, past=(past(5),)),
        PlanSection.model_validate({"budget": {"seconds": 185.0}}),
        {"replay": Cost(same(100), same(1e6), same(300), None, 1)},
    ),
    "hours": (DRIFTED, PlanSection(hours=("22:00-06:00",), zone="Europe/Berlin"), {}),
    "site-hours": (
        replace(DRIFTED, site_hours=(("a", ("13:00-14:00",)), ("b", ("13:30-15:00", "no hours")))),
        PlanSection(),
        {},
    ),
    "roll-back": (
        replace(FELL, released_at=ago(0.5), previous_metric=estimate(0.9)),
        PlanSection(metric_below=0.85),
        {},
    ),
    "roll-back-explained-by-drift": (
        replace(DRIFTED, released_at=ago(2), previous_metric=estimate(0.9)),
        PlanSection(),
        {},
    ),
    "experience": (
        replace(
            DRIFTED,
            past=(
                *(past(days, gain=0.02, predicted=0.1, curve=CURVE) for days in (40, 30, 20)),
                past(15, "incremental", gain=0.09, predicted=0.1, curve=CURVE),
            ),
        ),
        PlanSection(),
        {"replay": Cost(same(100), same(1e6), same(300), None, 3), "incremental": Cost(same(80), runs=1)},
    ),
    "not-recovered": (
        replace(QUIET, metric=estimate(0.8), reference=estimate(0.8), past=(past(10, curve=CURVE),)),
        PlanSection(),
        {},
    ),
    "not-allowed": (DRIFTED, PlanSection(actions=("extend",)), {}),
    "declined": (
        replace(DRIFTED, sites=3, declined=(("replay", ("clinic-a", "clinic-b")),), needed=2),
        PlanSection(),
        {},
    ),
}


def made(name: str) -> Plan:
    return decide(*CASES[name])


if __name__ == "__main__":
    for name in CASES:
        text = json.dumps(made(name).to_json(), indent=1, sort_keys=True, ensure_ascii=False)
        (GOLDEN / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")
