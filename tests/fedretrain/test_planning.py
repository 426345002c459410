"""The [plan] table: what it takes, and how it says what it does not."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fedretrain.errors import ConfigurationError
from fedretrain.planning import PlanSection, duration
from fedretrain.tomlfile import check_toml


def plan(**table: Any) -> PlanSection:
    return check_toml(table, PlanSection, Path("job.toml"))


def test_lengths_of_time() -> None:
    """A whole number and a unit."""
    assert duration("90s") == timedelta(seconds=90)
    assert duration("6h") == timedelta(hours=6)
    assert duration("2w") == timedelta(days=14)
    for wrong in ("6", "h", "1.5h", "-1d", "0d", " 1d", "1 d", "1y"):
        with pytest.raises(ConfigurationError, match="expected a whole number and one of"):
            duration(wrong)


def test_a_whole_table_is_read() -> None:
    """Every key of the example, by what it means."""
    found = plan(
        metric_below=0.9,
        schedule="30d",
        volume=1000,
        hours=["22:00-06:00"],
        zone="Europe/Berlin",
        budget={"period": "30d", "retrainings": 4},
        auto={"actions": ["incremental"], "seconds": 3600},
        site_hours={"clinic-a": {"hours": ["20:00-23:00"], "zone": "Europe/London"}},
    )
    assert found.budget.retrainings == 4
    assert found.auto.actions == ("incremental",)
    assert found.site_hours["clinic-a"].zone == "Europe/London"


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({"schedule": "monthly"}, "schedule: expected a whole number and one of s, m, h, d, w"),
        ({"zone": "Mars/Base"}, "zone: expected a time zone such as"),
        ({"zone": "../etc"}, "zone: expected a time zone such as"),
        ({"hours": ["22-6"]}, 'hours.0: expected times such as "22:00-06:00"'),
        ({"hysteresis": 0}, "hysteresis: expected at least 1"),
        ({"metric_below": 1.5}, "metric_below: expected at most 1"),
        ({"metric_below": 0.0}, "metric_below: expected more than 0"),
        ({"metric_bellow": 0.9}, "metric_bellow: unknown key; did you mean 'metric_below'"),
        (
            {"actions": ["nothing"]},
            "actions: expected some of incremental, replay, transfer, full, extend, roll-back, got 'nothing'",
        ),
        ({"budget": {"kwhs": 1.0}}, "budget.kwhs: unknown key; did you mean 'kwh'"),
    ],
)
def test_a_mistake_is_named(table: dict[str, Any], line: str) -> None:
    """Key, what was expected, what to write."""
    with pytest.raises(ConfigurationError) as caught:
        plan(**table)
    assert line in str(caught.value)
