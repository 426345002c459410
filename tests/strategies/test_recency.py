"""What an example weighs by its age, and which examples are in a window; numbers by hand."""

import numpy as np
import pytest

from fedretrain.errors import ConfigurationError
from fedretrain.job import NamedConfig
from strategies.objective import Plain
from strategies.recency import DAY_S, weights
from strategies.registry import check_objectives, local_objective, objective_settings
from strategies.window import inside

DAYS = np.array([0.0, 10.0, 20.0, 20.0]) * DAY_S


def named(**settings: object) -> NamedConfig:
    return NamedConfig(name="fedavg", objectives=[settings])


def test_an_example_weighs_half_after_a_half_life() -> None:
    """Ages 20, 10, 0 and 0 days, half-life 10: 1/4, 1/2, 1, 1, over their mean 2.75 / 4."""
    np.testing.assert_allclose(weights(DAYS, 10), np.array([0.25, 0.5, 1, 1]) / 0.6875, rtol=1e-15)


def test_weights_need_no_clock_and_no_mercy() -> None:
    """Times that are shifted weigh the same; an age of a million half-lives weighs nothing, and nothing overflows."""
    np.testing.assert_array_equal(weights(DAYS, 10), weights(DAYS + 400 * DAY_S, 10))
    assert weights(np.array([0.0, DAY_S]), 1e-6).tolist() == [0, 2]
    assert weights(np.array([5.0]), 3).tolist() == [1]


@pytest.mark.parametrize(
    ("window", "rows"),
    [
        ({"days": 10}, [2, 3]),  # what is exactly ten days old is out
        ({"days": 10.5}, [1, 2, 3]),
        ({"examples": 1}, [3]),  # of two at a time the last in the file
        ({"examples": 3}, [1, 2, 3]),
        ({"examples": 9}, [0, 1, 2, 3]),
        ({"days": 15, "until": 10 * DAY_S}, [0, 1]),
        ({"examples": 1, "until": 10 * DAY_S}, [1]),
        ({"days": 15, "examples": 1, "until": -1.0}, []),
    ],
)
def test_a_window_holds_the_newest(window: dict[str, float], rows: list[int]) -> None:
    """By days, by number, up to a moment."""
    assert np.flatnonzero(inside(DAYS, **window)).tolist() == rows  # type: ignore[arg-type]


def test_both_add_nothing_to_a_step() -> None:
    """They are about data; the step stays the plain one. Their settings are checked with names."""
    both = NamedConfig(
        name="fedavg",
        objectives=[{"name": "recency", "half_life_days": 3}, {"name": "window", "days": 9, "until": "2026-06-01"}],
    )
    assert local_objective(both) == Plain()
    until = objective_settings(both)[1].until  # type: ignore[attr-defined]
    assert until.isoformat() == "2026-06-01T00:00:00+00:00"
    with pytest.raises(ConfigurationError, match=r"objectives\[0\]: expected days, examples, or both"):
        local_objective(named(name="window"))
    with pytest.raises(ConfigurationError, match=r"objectives\[0\]\.half_life_days: expected .* got 0"):
        local_objective(named(name="recency", half_life_days=0))
    with pytest.raises(ConfigurationError, match="'window' has no meaning with"):
        check_objectives(named(name="window", days=3), "replay")
    check_objectives(named(name="recency", half_life_days=3), "replay")
