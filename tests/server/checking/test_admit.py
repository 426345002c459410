"""What a site says it counted: taken where it can be true, and refused for one reason where it cannot."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedretrain.checks import POLICY, Answer
from fedretrain.errors import RejectedUpdate
from server.checking.admit import site_check
from server.checking.document import SiteCheck

from .answers import SETTINGS, WATCHED, honest


def judged(answer: Answer, declared: int = 10) -> SiteCheck:
    return site_check(answer, "a", declared, WATCHED, SETTINGS)


def test_what_can_be_true_is_taken_as_it_is() -> None:
    """Cells by name, withheld ones None, sections that are not given with their reason."""
    answer = honest()
    answer.reasons["confusion"] = POLICY
    for window in answer.windows.values():
        window["confusion"]["y"][...] = -1
    answer.windows["recent"]["labels"]["y"][0] = -1
    answer.windows["recent"]["constant"]["column 0"][...] = 1
    found = judged(dataclasses.replace(answer, events=(("error", 86400),)))
    assert (found.site, found.min_count, found.epsilon) == ("a", 1, None)
    assert found.withheld == {"confusion": "policy", "age": "no times"}
    assert (found.reference.examples, found.recent.examples) == (4, 6)
    assert found.recent.histograms == {"column 0": (6, 0, 0)}
    assert found.recent.labels == {"y": (None, 5, 0, 0)}
    assert found.recent.confusion == {"y": ((None, None), (None, None))}
    assert found.recent.confidence_sum["y"][9] == pytest.approx(5.7)
    assert found.recent.constant == ("column 0",)
    assert found.recent.age == (None,) * 6
    assert found.business == {"revenue": (7.5, "EUR")}
    assert found.events == ((" error", 86400),)  # SETTINGS asks no detector


def cell(window: str, field: str, subject: str, place: Any, value: Any) -> Callable[[Answer], None]:
    def change(answer: Answer) -> None:
        answer.windows[window][field][subject][place] = value

    return change


def reason(section: str, code: int) -> Callable[[Answer], None]:
    return lambda answer: answer.reasons.update({section: code})


def examples(reference: int, recent: int) -> Callable[[Answer], None]:
    return lambda answer: answer.examples.update(reference=reference, recent=recent)


HISTOGRAM = ("recent", "histograms", "column 0")
LIES: dict[str, tuple[str, Callable[[Answer], Any]]] = {
    "more examples than declared": ("examples: expected at most 10", examples(4, 7)),
    "fewer than none": ("examples: expected at most 10", examples(-1, 6)),
    "a negative count": ("expected counts, or -1", cell("recent", "labels", "y", 1, -2)),
    "a count beyond all bounds": ("expected counts, or -1", cell("recent", "missing", "column 0", ..., 2**62)),
    "more in a histogram than there are": ("column 0: expected at most 6 examples, got 7", cell(*HISTOGRAM, 1, 1)),
    "fewer in a histogram than there are": ("column 0: expected 6 examples, got 5", cell(*HISTOGRAM, 0, 5)),
    "more labels than examples": ("labels y: expected at most 6 examples", cell("recent", "labels", "y", 0, 2)),
    "fewer answers than examples": ("predicted y: expected 6 examples", cell("recent", "predicted", "y", 0, 0)),
    "more confused than there are": ("confusion y: expected at most 4", cell("reference", "confusion", "y", (0, 1), 2)),
    "more right than labelled": ("right y: expected no more", cell("recent", "right", "y", 0, 1)),
    "more labelled than there are": ("labelled y: expected no more", cell("recent", "labelled", "y", [0, 9], [1, 5])),
    "sure beyond its bin": ("confidence_sum y: expected sums", cell("recent", "confidence_sum", "y", 9, 7000)),
    "more repeated than there are": ("duplicates: expected at most 6", cell("recent", "duplicates", "", ..., 7)),
    "constant twice over": ("constant: expected 0 or 1", cell("recent", "constant", "column 0", ..., 2)),
    "withheld and yet told": ("labels y: expected -1", reason("labels", POLICY)),
    "withheld and yet a number": ("business: expected nothing", reason("business", POLICY)),
    "no such reason": ("reason of labels: expected one of", reason("labels", 99)),
    "no smallest count": ("smallest count", lambda answer: dataclasses.replace(answer, min_count=0)),
    "noise without bound": ("epsilon", lambda answer: dataclasses.replace(answer, epsilon=1e-9)),
    "a time within a day": ("beginning of a day", lambda answer: dataclasses.replace(answer, events=(("error", 5),))),
    "a unit that clears the screen": ("printable unit", lambda answer: answer.business.update(revenue=(1, "\x1b[2J"))),
    "an endless number": ("finite number", lambda answer: answer.business.update(revenue=(float("inf"), ""))),
}  # fmt: skip


@pytest.mark.parametrize("what", LIES)
def test_what_cannot_be_true_is_refused_with_the_reason(what: str) -> None:
    """Each is one change to an answer that is taken without it."""
    expected, change = LIES[what]
    answer = honest()
    answer = change(answer) or answer
    with pytest.raises(RejectedUpdate, match=expected):
        judged(answer)


def test_noise_and_withheld_cells_are_allowed_for() -> None:
    """Sums may be off by as much as noise can be, and by anything where a cell is not told."""
    withheld = honest()
    withheld.windows["recent"]["histograms"]["column 0"][:] = -1, 2, 0
    assert judged(withheld).recent.histograms["column 0"] == (None, 2, 0)
    noisy = dataclasses.replace(honest(), epsilon=1.0)
    noisy.windows["recent"]["histograms"]["column 0"][:] = 9, 3, 0
    noisy.windows["recent"]["right"]["y"][9] = 8
    assert judged(noisy).epsilon == 1.0
    noisy.windows["recent"]["histograms"]["column 0"][0] = 200  # 6 and 40 for each of 3 cells are 126
    with pytest.raises(RejectedUpdate, match="expected at most 6 examples, got 203"):
        judged(noisy)


def test_rows_that_are_incomplete_are_told_where_no_other_is_left() -> None:
    """A sensor that fails leaves no complete example; how many are missing is what matters then."""
    answer = honest()
    answer.examples["recent"] = 0
    for field, by_subject in answer.windows["recent"].items():
        for cells in by_subject.values():
            cells[...] = 5000 if field == "missing" else -1
    found = judged(answer)
    assert (found.recent.examples, found.recent.missing) == (0, {"column 0": 5000})
    assert np.all([count is None for count in found.recent.histograms["column 0"]])
