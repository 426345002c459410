"""What counts as a change of meaning, with counts made by hand: one output, two bins of confidence, two classes."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from server.checking.document import Window
from server.drift.concept import ask_concept
from server.drift.question import Question, answer
from server.drift.windows import Windows
from simulations.benchmarks.drift import GUARDINGS
from simulations.benchmarks.drift_worlds import NOTHING, check


def window(sure: tuple[int, int], unsure: tuple[int, int], classes: Sequence[tuple[int, int]]) -> Window:
    """Right answers of how many, in both bins, and in both classes."""
    spare = check(1, 1, 1, GUARDINGS[0], NOTHING).sites["site-00"].recent
    (a, m), (b, n) = classes
    return replace(
        spare,
        examples=m + n,
        right={"y": (0, 0, 0, 0, 0, unsure[0], 0, 0, 0, sure[0])},
        labelled={"y": (0, 0, 0, 0, 0, unsure[1], 0, 0, 0, sure[1])},
        labels={"y": (m, n, 0)},
        confusion={"y": ((a, m - a), (n - b, b))},
    )


BEFORE = window((950, 1000), (500, 1000), ((700, 1000), (750, 1000)))


def ask(since: Window, moved: float = 0.0, labels_changed: bool = False, withheld: frozenset[str] = frozenset()) -> str:
    """The verdict where these inputs moved."""
    windows = Windows("a", BEFORE, since, withheld, 1, None)
    question = ask_concept([windows], "y", "a", moved, labels_changed, 0.01)
    assert isinstance(question, Question)
    (found,) = answer([question], 0.01)
    return found.verdict


def test_less_sure_and_as_often_wrong_at_that_is_no_change_of_meaning() -> None:
    """Most examples are unsure ones, of which half were always wrong: accuracy falls from 72 to 54 %, in each class."""
    assert ask(window((171, 180), (910, 1820), ((520, 1000), (561, 1000)))) == "no drift"


def test_other_frequencies_are_no_change_of_meaning() -> None:
    """A class that was always the harder one comes nine times as often; within classes all is as before."""
    harder = replace(BEFORE, labels={"y": (1000, 1000, 0)}, confusion={"y": ((500, 500), (50, 950))})
    since = window((800, 1000), (290, 1000), ((900, 1800), (190, 200)))
    windows = Windows("a", harder, since, frozenset(), 1, None)
    question = ask_concept([windows], "y", "a", 0.0, True, 0.01)
    assert question is not None
    assert question.effect == pytest.approx(0.0)
    assert answer([question], 0.01)[0].verdict == "no drift"


def test_worse_at_equal_confidence_and_in_each_class_is_one() -> None:
    """Both fell by 20 points; not where 30 % of the inputs moved, which new inputs alone may have cost."""
    since = window((750, 1000), (300, 1000), ((500, 1000), (550, 1000)))
    assert ask(since) == "drift"
    assert ask(since, moved=0.3) == "no drift"


def test_without_a_confusion_matrix_changed_frequencies_leave_it_open() -> None:
    """Confidence alone cannot tell the two apart."""
    since = window((750, 1000), (300, 1000), ((500, 1000), (550, 1000)))
    assert ask(since, withheld=frozenset({"confusion"})) == "drift"
    assert ask(since, withheld=frozenset({"confusion"}), labels_changed=True) == "too little data"
