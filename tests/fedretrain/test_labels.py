"""Labels of every kind, within and outside the label space."""

import numpy as np
import pytest

from fedretrain.contract import OutputSpec
from fedretrain.errors import DataMismatch
from fedretrain.labels import check_labels, labels_as_array


def spec(kind: str, *shape: int | None) -> OutputSpec:
    count = 0 if kind == "regression" else 2 if kind == "binary" else shape[-1] or 0
    return OutputSpec(name="out", shape=shape, kind=kind, loss="", labels=tuple(map(str, range(count))))  # type: ignore[arg-type]


def code(array: object, output: OutputSpec) -> tuple[str, str]:
    with pytest.raises(DataMismatch) as caught:
        check_labels(np.asarray(array), output, len(np.asarray(array)))
    assert "8.5" not in str(caught.value)
    return caught.value.code, caught.value.where


GOOD = [
    (spec("multiclass", 3), [0, 2, 1], (3,)),
    (spec("multiclass", 3), [[0], [2]], (2,)),
    (spec("multiclass", None, 3), [[0, 2], [1, 1]], (2, 2)),  # one label for each step of a sequence
    (spec("multiclass", 2), [True, False], (2,)),
    (spec("onehot", 3), [[0, 1, 0], [0.2, 0.3, 0.5]], (2, 3)),
    (spec("binary", 1), [0, 1, 1], (3, 1)),
    (spec("binary", 1), [[0.0], [1.0]], (2, 1)),
    (spec("binary"), [0, 1], (2,)),
    (spec("multilabel", 2), [[0, 0], [1, 1]], (2, 2)),
    (spec("regression", 1), [8.5, -1], (2, 1)),
    (spec("regression", 1), [[8.5]], (1, 1)),
    (spec("regression", 2, 2), np.zeros((1, 2, 2)), (1, 2, 2)),
]


@pytest.mark.parametrize(("output", "labels", "shape"), GOOD)
def test_labels_of_every_kind_become_what_the_loss_takes(output: OutputSpec, labels: object, shape: tuple[int]) -> None:
    """int32 [n] for classes, float32 in the output's shape otherwise; a last axis of 1 may be left out."""
    array = np.asarray(labels)
    check_labels(array, output, len(array))
    cast = labels_as_array(array, output)
    assert cast.shape == shape
    assert cast.dtype == (np.int32 if output.kind == "multiclass" else np.float32)


BAD = [
    (spec("multiclass", 3), [0, 3], "label-unknown", "out"),
    (spec("multiclass", 3), [0, -1], "label-unknown", "out"),
    (spec("multiclass", 3), [0, 1.5], "label-unknown", "out"),
    (spec("onehot", 2), [[0, 1], [8.5, 0]], "label-unknown", "out label 0 (0)"),
    (spec("onehot", 2), [[0, 1], [1, 1]], "label-unknown", "out"),
    (spec("binary", 1), [0, 2], "label-unknown", "out"),
    (spec("multilabel", 2), [[0, 1], [1, 8.5]], "label-unknown", "out label 1 (1)"),
    (spec("multiclass", 3), [[0, 1, 0]], "label-shape", "out"),  # onehot labels for a loss that takes numbers
    (spec("onehot", 3), [0, 1, 2], "label-shape", "out"),
    (spec("regression", 2), [[1.0]], "label-shape", "out"),
    (spec("regression", 1), [np.nan], "data-not-finite", "out"),
    (spec("regression", 1), [1e300], "data-not-finite", "out"),  # too large for float32
    (spec("multiclass", 3), [0, np.nan], "data-not-finite", "out"),
    (spec("multiclass", 3), ["a", "b"], "data-dtype", "out"),
]


@pytest.mark.parametrize(("output", "labels", "expected", "where"), BAD)
def test_labels_outside_the_space_are_refused(output: OutputSpec, labels: object, expected: str, where: str) -> None:
    """Fault 33: the output or the position of the label is named, never what was found."""
    assert code(labels, output) == (expected, where)


def test_another_number_of_rows_is_a_wrong_shape() -> None:
    """Labels and inputs belong together row by row."""
    with pytest.raises(DataMismatch, match="as many rows as the inputs") as caught:
        check_labels(np.zeros(3, int), spec("multiclass", 2), rows=4)
    assert caught.value.code == "label-shape"
