"""An answer to a check, counted by hand; a section that is withheld or fails costs no other."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from client.checking.answer import Rules, answered
from client.checking.predictions import Answers
from client.checking.reading import Found
from client.checking.suppress import Guard
from fedretrain.checks import (
    FAILED,
    GIVEN,
    NO_LABELS,
    NO_TIMES,
    NOT_ASKED,
    NOT_DECLARED,
    POLICY,
    SECTIONS,
    TOO_FEW,
    Answer,
    CheckSettings,
)
from fedretrain.contract import Contract
from fedretrain.job import NamedConfig
from server.checking.admit import site_check

from .test_reading import NAN, contract, found, output

DAY = 86_400.0
SINCE = 100 * DAY
NOW = 110 * DAY + 3600
ROWS = 12
SETTINGS = CheckSettings(
    since=SINCE, labels=("maybe",), metrics=("revenue",), detector=NamedConfig(name="page-hinkley")
)


def site(**changes: Any) -> Found:
    """Six old and six recent examples and one recent with a gap; labels no, yes, no, ..., the last is unknown."""
    x = np.column_stack([np.arange(ROWS + 1) * 8.0, np.full(ROWS + 1, 7.0), np.ones(ROWS + 1)])
    x[ROWS, 0] = NAN
    time = np.array([98.0, 98, 98, 98, 98, 98, 100, 103, 109, 110, 110, NAN, 110]) * DAY
    y = np.array([0, 1] * 6 + [0])
    y[ROWS - 1] = 2
    return found({"x": x, "y": y, "timestamp": time, **changes}, labels=("maybe",))


def answers() -> Answers:
    """The model says "no" with 0.95 of the first nine, "yes" with 0.75 of the others."""
    no = np.array([0.95] * 9 + [0.25] * 3)
    return Answers({"y": np.column_stack([no, 1 - no])}, {})


def rules(least: int = 1, **changes: Any) -> Rules:
    whole = Rules(Guard(least), lambda _: True, lambda *_: {"revenue": (5.0, "EUR")}, lambda *_: None, NOW)
    return dataclasses.replace(whole, **changes)


def answer(of: Rules | None = None, data: Found | None = None, said: Answers | None = None, **asked: Any) -> Answer:
    settings = SETTINGS.model_copy(update=asked)
    return answered(data or site(), contract(), settings, said or answers(), of or rules())[0]


def test_every_count_by_hand() -> None:
    """A smallest count of 1, so that nothing is hidden."""
    got = answer()
    old, new = got.windows["reference"], got.windows["recent"]
    assert got.examples == {"reference": 6, "recent": 6}
    assert set(got.reasons.values()) == {GIVEN}
    assert (old["histograms"]["age"].tolist(), new["histograms"]["age"].tolist()) == ([6, 0], [1, 5])  # edge at 50
    assert [int(new["missing"][name]) for name in ("age", "height", "weight")] == [1, 0, 0]
    assert (int(new["constant"]["height"]), int(new["constant"]["age"])) == (1, 0)
    assert (old["labels"]["y"].tolist(), new["labels"]["y"].tolist()) == ([3, 3, 0, 0], [3, 2, 0, 1])
    assert (old["predicted"]["y"].tolist(), new["predicted"]["y"].tolist()) == ([6, 0], [3, 3])
    assert new["confusion"]["y"].tolist() == [[2, 1], [1, 1]]  # the unknown label is in no row
    assert new["confidence"]["y"].tolist() == [0] * 7 + [3, 0, 3]
    assert new["confidence_sum"]["y"].tolist() == [0] * 7 + [2250, 0, 2850]
    assert new["labelled"]["y"].tolist() == [0] * 7 + [3, 0, 3]
    assert new["right"]["y"].tolist() == [0] * 7 + [1, 0, 2]
    assert new["age"][""].tolist() == [3, 1, 2, 0, 0, 0]  # 0 (two, and one without a time), 1, 7 and 10 days
    assert int(new["duplicates"][""]) == 0
    assert got.business == {"revenue": (5.0, "EUR")}


def test_the_server_takes_what_a_site_counts() -> None:
    """With and without small counts and noise, whichever sections are withheld."""
    for guard in (Guard(1), Guard(2), Guard(5), Guard(5, 1.0, b"key"), Guard(5, 0.1, b"key")):
        for may in (lambda _: True, lambda name: name != "confidence", lambda name: name == "labels"):
            got = answer(rules(guard=guard, may=may))
            arrays = got.to_arrays(SETTINGS)
            told = Answer.from_arrays(arrays, contract(), SETTINGS)
            assert site_check(told, "north", ROWS, contract(), SETTINGS).min_count == guard.least


@pytest.mark.parametrize("section", SECTIONS)
def test_a_withheld_section_costs_no_other(section: str) -> None:
    """All its cells are -1 and its reason says why; the others are what they are without that."""
    whole, got = answer(), answer(rules(may=lambda name: name != section))
    assert {name for name, code in got.reasons.items() if code == POLICY} == {section}
    assert set(got.reasons.values()) <= {GIVEN, POLICY}
    same = [(np.array_equal(a, b), (b == -1).all()) for a, b in _pairs(whole, got)]
    assert all(equal or hidden for equal, hidden in same)
    assert section in ("business", "stream") or not all(equal for equal, _ in same)
    assert (got.business == {}) == (section == "business")


@pytest.mark.parametrize(("found", "why"), [({}, NOT_DECLARED), ({"revenue": None}, FAILED)])
def test_why_no_business_metric_is_told(found: dict[str, None], why: int) -> None:
    """A site that declares none of them has not failed."""
    got = answer(rules(metrics=lambda *_: found))
    assert (got.reasons["business"], got.business) == (why, {})


def test_a_section_that_fails_costs_no_other() -> None:
    """Whatever is raised; what it wrote before does not leave."""
    failed: list[str] = []

    def metrics(*_: Any) -> Any:
        raise RuntimeError("secret")

    bad = Answers({}, {})
    got = answer(rules(metrics=metrics, failed=lambda name, _: failed.append(name)), said=bad)
    assert set(failed) == {"predictions", "confusion", "confidence", "calibration", "quality", "business", "stream"}
    assert {name for name, code in got.reasons.items() if code == GIVEN} == {"histogram", "labels", "age"}
    assert all((cells == -1).all() for cells in got.windows["reference"]["missing"].values())


def test_small_windows_say_nothing() -> None:
    """Six examples where seven are needed; at six the small cells are hidden, and what is said of them with them."""
    assert answer(rules(7)).reasons["labels"] == TOO_FEW
    got = answer(rules(6))
    assert got.windows["recent"]["confidence_sum"]["y"].tolist() == [0] * 7 + [-1, 0, -1]
    assert got.windows["recent"]["right"]["y"].max() <= 0


def test_a_device_that_fails_is_told_of() -> None:
    """No complete example is left of the six recent rows: how many are missing is all there is to say of them."""
    x = np.column_stack([np.arange(12) * 8.0, np.full(12, 7.0), np.ones(12)])
    x[6:, 0] = NAN
    time = np.repeat([98.0, 101.0], 6) * DAY
    data = found({"x": x, "y": np.arange(12) % 2, "timestamp": time}, labels=("maybe",))
    got = answer(rules(5), data, Answers({"y": np.full((6, 2), 0.5)}, {}))
    assert (got.examples, got.reasons["quality"]) == ({"reference": 6, "recent": 0}, GIVEN)
    recent = got.windows["recent"]
    assert [int(recent["missing"][name]) for name in ("age", "height", "weight")] == [6, 0, 0]
    assert (int(recent["duplicates"][""]), int(recent["histograms"]["age"].max())) == (-1, -1)


def test_without_labels_times_or_a_model() -> None:
    """What needs them is missing with its reason, the rest is there."""
    data = found({"x": np.ones((8, 3))}, labels=("maybe",))
    got = answer(data=data, said=Answers({"y": np.full((8, 2), 0.5)}, {}))
    assert got.examples == {"reference": 0, "recent": 8}
    codes = {name: code for name, code in got.reasons.items() if code != GIVEN}
    unlabelled = dict.fromkeys(("labels", "confusion", "calibration"), NO_LABELS)
    assert codes == unlabelled | {"age": NO_TIMES, "stream": NO_TIMES}
    assert int(got.windows["recent"]["label_noise"][""]) == -1
    assert int(got.windows["recent"]["duplicates"][""]) == 7
    without = answered(data, contract(), SETTINGS, None, rules())[0]
    assert {name for name, code in without.reasons.items() if code == FAILED} == {
        *("predictions", "confusion", "confidence", "calibration", "stream")
    }
    asked = answer(metrics=(), statistics=("labels", "business"))
    assert {name for name, code in asked.reasons.items() if code != NOT_ASKED} == {"labels"}


def test_several_decisions_about_an_example() -> None:
    """A multilabel output is right where all labels are, with the product of their confidences."""
    several: Contract = contract(outputs=output("multilabel", ("a", "b"), (2,)), features=())
    data = found({"x": np.eye(3), "y": [[1, 1], [1, 0], [0, 0]]}, several)
    said = Answers({"y": np.array([[0.9, 0.8], [0.9, 0.6], [0.1, 0.2]])}, {})
    settings = CheckSettings(statistics=("labels", "predictions", "confusion", "confidence", "calibration"))
    got, _ = answered(data, several, settings, said, rules())
    recent = got.windows["recent"]
    assert recent["labels"]["y"].tolist() == [2, 1, 0]
    assert recent["predicted"]["y"].tolist() == [2, 2]
    assert recent["confidence"]["y"].tolist() == [0, 0, 0, 0, 0, 1, 0, 2, 0, 0]  # 0.72, 0.54, 0.72
    assert recent["right"]["y"].tolist() == [0, 0, 0, 0, 0, 0, 0, 2, 0, 0]
    assert (got.reasons["confusion"], recent["confusion"]) == (NOT_ASKED, {})


def test_a_change_for_the_worse_is_an_event_on_its_day() -> None:
    """Right for 400 examples, wrong from day 150 on: errors; the same in confidence where there are no labels."""
    n, days = 800, np.arange(800) / 8 + 100
    wrong = days >= 150
    no = np.where(wrong, 0.1, 0.9)
    said = Answers({"y": np.column_stack([no, 1 - no])}, {})
    x = {"x": np.ones((n, 3)), "timestamp": days * DAY}
    got = answer(data=found({**x, "y": np.zeros(n, int)}, labels=("maybe",)), said=said)
    assert {kind for kind, _ in got.events} == {"error"}
    assert 150 * DAY <= got.events[0][1] <= 154 * DAY
    unsure = Answers({"y": np.column_stack([np.where(wrong, 0.55, 0.99), np.where(wrong, 0.45, 0.01)])}, {})
    assert {kind for kind, _ in answer(data=found(x, labels=("maybe",)), said=unsure).events} == {"confidence"}


def _pairs(first: Answer, second: Answer) -> list[tuple[Any, Any]]:
    return [
        (cells, second.windows[window][field][subject])
        for window, fields in first.windows.items()
        for field, subjects in fields.items()
        for subject, cells in subjects.items()
    ]
