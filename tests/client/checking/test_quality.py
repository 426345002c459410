"""Repeated examples and doubtful labels, and what training leaves out of a site's data."""

import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.checking.quality import Suspects, digests, doubtful, repeats, trainable
from fedretrain.dataset import Dataset, as_arrays, from_arrays
from fedretrain.errors import DataMismatch

from .test_reading import NAN, contract, found, output


def test_confident_disagreement_by_hand() -> None:
    """Thresholds: label 0 the mean of 0.9, 0.6 and 0.1, so 0.533; label 1 of 0.8 and 0.3, so 0.55.

    Example 2 is labelled 0, and the model is sure of 1 (0.9 >= 0.55); example 4 is labelled 1, and the model is sure of
    0 (0.7 >= 0.533). Example 5 has no label.
    """
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8], [0.7, 0.3], [0.9, 0.1]])
    assert doubtful(probabilities, np.array([0, 0, 0, 1, 1, -1])).tolist() == [False, False, True, False, True, False]


def test_a_label_that_no_example_has_is_never_the_better_one() -> None:
    """It has no threshold; an example that is sure of nothing is not suspected."""
    probabilities = np.array([[0.1, 0.2, 0.7], [0.5, 0.4, 0.1]])
    assert doubtful(probabilities, np.array([0, 1])).tolist() == [False, True]


def test_the_same_inputs_and_label_are_a_repetition() -> None:
    """Of three alike the later two; another label makes another example; time decides what came first."""
    data = Dataset({"x": np.ones((4, 3))}, {"y": np.array([0, 0, 1, 0])})
    rows = digests(as_arrays(data, contract()), contract())
    assert repeats(rows).tolist() == [False, True, False, True]
    assert repeats(rows, np.array([3.0, 1.0, 2.0, 2.0])).tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    ("kind", "shape", "labels", "y"),
    [
        ("multiclass", (2,), ("no", "yes"), [[0], [1]]),
        ("binary", (1,), ("0", "1"), [0, 1]),
        ("onehot", (2,), ("no", "yes"), [[0.0, 1], [0.9, 0.1]]),
        ("multilabel", (2,), ("a", "b"), [[0, 1], [1, 1]]),
        ("regression", (1,), (), [0.5, 1.5]),
    ],
)
def test_a_check_and_training_know_the_same_examples(
    kind: str, shape: tuple[int, ...], labels: tuple[str, ...], y: Any
) -> None:
    """Whichever form labels have: what a check suspects, training finds again."""
    of = contract(outputs=output(kind, labels, shape))
    arrays = {"x": np.eye(2, 3), "y": np.array(y)}
    trained, _ = trainable(from_arrays(arrays, of), of, (), frozenset())
    assert digests(found(arrays, of, ("new",)).data, of) == digests(trained, of)


def test_training_leaves_out_what_the_policy_says_and_nothing_else(tmp_path: Path) -> None:
    """By reason, each example once; what is not named is refused or kept as ever."""
    x = np.array([[1.0, 2, 3], [NAN, 2, 3], [1, 2, 101], [1, 2, 3], [4, 5, 6]])
    raw = Dataset({"x": x}, {"y": np.array([0, 0, 0, 0, 1])})
    suspects = Suspects(tmp_path / "checking" / "north.suspects")
    suspects.keep(digests(as_arrays(raw.take(np.array([4])), contract()), contract()))
    assert stat.S_IMODE((tmp_path / "checking" / "north.suspects").stat().st_mode) == 0o600
    data, left = trainable(raw, contract(), ("missing", "impossible", "duplicates", "label-noise"), suspects.read())
    assert data.x["x"].tolist() == [[1, 2, 3]]
    assert left == {"missing": 1, "impossible": 1, "duplicates": 1, "label-noise": 1}
    for rules in ((), ("missing",), ("duplicates", "label-noise")):
        with pytest.raises(DataMismatch):
            trainable(raw, contract(), rules, suspects.read())
    with pytest.raises(DataMismatch, match="data-empty"):
        trainable(raw.take(np.array([4])), contract(), ("label-noise",), suspects.read())
    with pytest.raises(DataMismatch):
        trainable(Dataset({"x": x}, {"y": np.array([0])}), contract(), ("missing", "impossible"), frozenset())
    assert Suspects(tmp_path / "none").read() == frozenset()
