"""Not too much, not too often, not at the wrong time."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fedretrain.planning import PlanSection
from server.deciding.hours import Hours, opens, site_hours
from server.deciding.limits import cool_down, over_budget
from server.deciding.plan import Cost

from .cases import NOW, QUIET, ago, past, same

NONE = Hours((), "UTC")


def budget(**limits: Any) -> PlanSection:
    return PlanSection.model_validate({"budget": {"period": "30d", **limits}})


@pytest.mark.parametrize(
    ("limits", "free"),
    [
        ({"retrainings": 3}, None),
        ({"retrainings": 2}, 10),  # the one of 20 days ago leaves the period in 10
        ({"retrainings": 1}, 25),
        ({"seconds": 300}, None),
        ({"seconds": 299}, 10),
        ({"bytes": 2_000_000, "retrainings": 1}, 25),  # both, and the later counts
        ({"kwh": 0.1}, None),  # never measured
    ],
)
def test_a_budget_frees_itself(limits: dict[str, Any], free: int | None) -> None:
    """Two runs of 100 s and 1 MB, 20 and 5 days ago, and one older than the period; the next costs as much."""
    evidence = replace(QUIET, past=(past(31), past(20), past(5)))
    found = over_budget(Cost(same(100), same(1e6)), evidence, budget(**limits))
    assert (found and found[0]) == (None if free is None else NOW + timedelta(days=free))


def test_what_costs_more_than_all_is_never_affordable() -> None:
    """There is no time to wait for."""
    found = over_budget(Cost(same(100)), QUIET, budget(seconds=99))
    assert found is not None
    assert found[0] is None
    assert "99" in found[1]
    assert over_budget(Cost(), QUIET, budget(retrainings=0)) is not None


def test_cools_down_from_the_latest_of_release_and_retraining() -> None:
    """A release counts also where no retraining is known, as after a roll-back."""
    policy = PlanSection(cool_down="3d")
    assert cool_down(replace(QUIET, released_at=ago(3)), policy) is None
    for evidence in (replace(QUIET, released_at=ago(2)), replace(QUIET, past=(past(2),))):
        found = cool_down(evidence, policy)
        assert found is not None
        assert found[0] == ago(-1)


def test_hours_over_midnight_in_their_zone() -> None:
    """22:00 to 06:00 in Berlin is 21:00 to 05:00 UTC in winter and 20:00 to 04:00 in summer."""
    night = Hours(("22:00-06:00",), "Europe/Berlin")
    for month, first, last in ((1, 21, 5), (7, 20, 4)):
        for hour in range(24):
            moment = datetime(2026, month, 10, hour, tzinfo=UTC)
            assert night.hold(moment) is (hour >= first or hour < last), moment
        noon = datetime(2026, month, 10, 12, tzinfo=UTC)
        assert opens(noon, night, {}) == (noon.replace(hour=first), ())


def test_waits_for_all_sites_where_there_is_such_a_time() -> None:
    """Where there is none, for the earliest at which most can, and never outside the server's own hours."""
    at = {name: Hours((window,), "UTC") for name, window in {"a": "13:00-15:00", "b": "14:30-18:00"}.items()}
    assert opens(NOW, NONE, at) == (NOW.replace(hour=14, minute=30), ())
    assert opens(NOW, Hours(("12:00-14:00",), "UTC"), at) == (NOW.replace(hour=13), ("b",))
    assert opens(NOW, NONE, {}) == (NOW, ())
    assert opens(NOW, Hours(("08:00-12:00",), "UTC"), {}) == (NOW.replace(day=11, hour=8), ())


def test_hours_that_a_site_says_are_its_text_and_no_more() -> None:
    """What is no time window is passed over, and what the operator was told counts before what the site said."""
    said = replace(
        QUIET, site_hours=(("a", ("08:00-09:00", "99:99-00:00", "x")), ("b", ("?",)), ("c", ("01:00-02:00",)))
    )
    policy = PlanSection.model_validate(
        {"zone": "Europe/Paris", "site_hours": {"c": {"hours": ("03:00-04:00",), "zone": "Asia/Tokyo"}}}
    )
    assert site_hours(said, policy) == {
        "a": Hours(("08:00-09:00",), "Europe/Paris"),
        "c": Hours(("03:00-04:00",), "Asia/Tokyo"),
    }
