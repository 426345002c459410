"""Page-Hinkley by hand, what it finds and what it lets be, and what leaves the site: days."""

import inspect
import sys
from typing import Any

import numpy as np
import pytest

from client.streaming import DAY, Event, _made, alarms, events
from fedretrain.detectors import DEFAULT, RIVER, SETTINGS, PageHinkley
from fedretrain.errors import ConfigurationError
from fedretrain.jobtables import NamedConfig


def found(values: list[float], **settings: Any) -> list[int]:
    return list(alarms(np.array(values, float), PageHinkley(**settings)))


def test_the_sum_and_its_threshold_by_hand() -> None:
    """Delta 1/4; after 0, 0 come 1, 1, 1, with a variance that has 1/4 as one more observation.

    Means 1/3, 1/2, 3/5; sums 5/12, 2/3, 49/60; squared differences 2/3, 1, 6/5, so variances 11/48, 1/4, 29/120.
    The bounds are 2 threshold (variance + 1/6): for 0.9 they are 57/80, 3/4, 147/200, and the third is passed.
    """
    stream = [0.0, 0.0, 1.0, 1.0, 1.0]
    assert found(stream, delta=0.25, threshold=0.9, minimum=2) == [4]
    assert found(stream, delta=0.25, threshold=1.01, minimum=2) == []  # its bound is above 49/60
    assert found(stream, delta=0.25, threshold=0.79, minimum=2) == [3]  # below 2/3 there
    assert found(stream, delta=0.25, threshold=0.79, minimum=5) == [4]
    assert found(stream, delta=0.25, threshold=0.9, minimum=2, forgetting=0.5) == []  # 5/12, 11/24, 91/240


def test_after_an_event_everything_begins_anew() -> None:
    """The same stream once more is the same event once more, though the mean of all has risen."""
    stream = [0.0, 0.0, 1.0, 1.0, 1.0]
    assert found(stream * 3, delta=0.25, threshold=0.9, minimum=2) == [4, 9, 14]


def test_a_rise_is_found_and_a_fall_is_not() -> None:
    """Errors of a tenth become three tenths after 1,000 examples, and the other way round."""
    rng = np.random.default_rng(0)
    low, high = rng.random(1000) < 0.1, rng.random(1000) < 0.3
    times = DAY * np.arange(2000)
    [event] = events(np.concatenate([low, high]), times)
    assert 1000 < event.day // DAY < 1300
    assert event.detector == "page-hinkley"
    assert events(np.concatenate([high, low]), times) == []


def test_only_days_leave_and_each_once() -> None:
    """The day begins at midnight UTC, also before 1970; of several events of a day one is told."""
    stream = np.array([0.0, 0.0, 1.0, 1.0, 1.0] * 2)
    quick = NamedConfig(name="page-hinkley", delta=0.25, threshold=0.9, minimum=2)
    assert events(stream, 10 * DAY + 100.0 * np.arange(10), quick) == [Event("page-hinkley", 10 * DAY)]
    assert events(stream, -DAY - 1000.0 + np.arange(10), quick) == [Event("page-hinkley", -2 * DAY)]
    assert [e.day for e in events(stream, 10 * DAY + 0.5 * DAY * np.arange(10), quick)] == [12 * DAY, 14 * DAY]


def test_the_order_is_that_of_time() -> None:
    """Rows may lie in any order; what has no time or no value is left out."""
    rng = np.random.default_rng(1)
    values, times = np.repeat([0.1, 0.9], 200), DAY * np.arange(400.0)
    expected = events(values, times)
    assert len(expected) == 1
    order = rng.permutation(400)
    assert events(values[order], times[order]) == expected
    assert events(np.concatenate([values, [1, np.nan]]), np.concatenate([times, [np.nan, 5]])) == expected


def test_examples_of_one_day_that_lie_by_label_are_no_change() -> None:
    """Each day's errors stand behind its right answers in the file, as a folder of images has them."""
    day = np.repeat([0.0, 1.0], [900, 100])
    values, times = np.tile(day, 5), np.repeat(DAY * np.arange(5), 1000)
    assert len(found(values.tolist())) > 1
    assert events(values, times) == []
    assert events(np.zeros(0), np.zeros(0)) == []


@pytest.mark.parametrize(
    ("detector", "said"),
    [
        ({"name": "page-hinkly"}, "watch.detector: there is no 'page-hinkly'; did you mean 'page-hinkley'? Valid: "),
        (
            {"name": "page-hinkley", "lambda": 50},
            "watch.detector.lambda: unknown setting of page-hinkley; it has",
        ),
        ({"name": "page-hinkley", "delta": 0}, "watch.detector.delta: expected greater than 0 (rise of the mean"),
        ({"name": "page-hinkley", "minimum": 2.5}, "watch.detector.minimum: expected a valid integer"),
        ({"name": "adwin", "delta": "much"}, "watch.detector.delta: expected a number, got 'much'"),
    ],
)
def test_a_wrong_detector_is_refused_in_a_line(detector: dict[str, Any], said: str) -> None:
    """The key, what was expected, and the nearest there is; before anything is computed."""
    with pytest.raises(ConfigurationError) as caught:
        events(np.zeros(3), np.zeros(3), NamedConfig(**detector))
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_values_that_are_no_shares_are_a_mistake_of_ours() -> None:
    """The bound on the sum holds for values from 0 to 1."""
    with pytest.raises(ValueError, match=r"from 0 to 1, got 0\.0 to 2\.0"):
        events(np.array([0, 2]), np.zeros(2))
    assert events(np.array([-1e-7, 1 + 1e-7]), np.zeros(2)) == []  # as far as float32 goes
    with pytest.raises(ValueError, match="one time for each value"):
        events(np.zeros(3), np.zeros(2))


def test_without_river_the_site_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else takes its place."""
    monkeypatch.setitem(sys.modules, "river.drift", None)
    with pytest.raises(ConfigurationError, match=r"'adwin' needs river: pip install 'fedretrain\[river\]', or"):
        events(np.zeros(3), np.zeros(3), NamedConfig(name="adwin"))


def test_confidences_are_not_for_detectors_of_errors() -> None:
    """Said before river is looked for."""
    with pytest.raises(ConfigurationError, match="'ddm' takes errors alone, 0 or 1"):
        events(np.full(3, 0.5), np.zeros(3), NamedConfig(name="ddm"))


@pytest.mark.parametrize("name", RIVER)
def test_every_detector_of_river_finds_a_plain_change(name: str) -> None:
    """From no errors but a few to most being wrong; twice the same; its own settings are its own."""
    pytest.importorskip("river", reason="the extra river is not installed")
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.random(1000) < 0.05, rng.random(1000) < 0.8]).astype(float)
    times = DAY * np.arange(2000.0)
    first = events(values, times, NamedConfig(name=name))
    assert any(1000 <= event.day // DAY < 1400 for event in first)
    assert {event.detector for event in first} == {name}
    assert events(values, times, NamedConfig(name=name)) == first
    with pytest.raises(ConfigurationError, match=f"watch.detector.nothing: {name} does not take it; it has "):
        _made(NamedConfig(name=name, nothing=1))
    taken = inspect.signature(type(_made(NamedConfig(name=name)))).parameters
    assert set(SETTINGS[name]) == set(taken) - {"window"}  # which is no number


def test_the_default_is_page_hinkley_with_its_settings() -> None:
    """What the documentation says."""
    assert DEFAULT.name == "page-hinkley"
    assert PageHinkley() == PageHinkley(delta=0.025, threshold=10.0, forgetting=1.0, minimum=30)
