"""A holdout's label that the contract does not know is named, for every kind of output."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedretrain.contract import Contract, InputSpec, OutputSpec
from fedretrain.dataset import check_dataset, load_npz
from fedretrain.errors import DataMismatch
from fedretrain.foreign import with_label


def contract(kind: Any, labels: tuple[str, ...]) -> Contract:
    shape = (1,) if kind == "binary" else (len(labels),)
    return Contract(
        inputs=(InputSpec(name="x", shape=(1,), dtype="float32"),),
        outputs=(OutputSpec(name="animal", shape=shape, kind=kind, loss="l", labels=labels),),
        preprocessing=None,
        architecture="a" * 64,
        base="b" * 64,
        variables=(),
    )


@pytest.mark.parametrize(
    ("kind", "y", "names", "got"),
    [
        ("multiclass", [0, 5, 1], None, "5"),
        ("multiclass", [0, 0.5, 1], None, "0.5"),
        ("multiclass", [0, 2, 1], ["dog", "cat", "owl"], "'owl'"),
        ("multiclass", [0, 7, 1], ["dog", "cat", "owl"], "7"),
        ("onehot", [[1, 0, 0], [0, 0, 1], [0, 1, 0]], ["dog", "cat", "owl"], "'owl'"),
        ("multilabel", [[1, 0, 1], [1, 1, 0], [0, 1, 0]], ["owl", "cat", "dog"], "'owl'"),
        ("multilabel", [[1, 0], [1, 0], [0, 3]], None, None),
        ("binary", [0, 1, 2], None, "2"),
    ],
)
def test_the_first_label_that_is_unknown_is_named(
    kind: str, y: Any, names: list[str] | None, got: str | None, tmp_path: Path
) -> None:
    """By its name where the file names positions; a share that is none has its position named already."""
    wanted, path = contract(kind, ("cat", "dog")), tmp_path / "holdout.npz"
    arrays: dict[str, Any] = {"x": np.zeros((3, 1)), "y": np.array(y)}
    np.savez(path, **arrays | ({} if names is None else {"labels": np.array(names)}))
    with pytest.raises(DataMismatch) as caught:
        check_dataset(load_npz(path, wanted), wanted)
    said = str(with_label(caught.value, path, wanted))
    assert said == (str(caught.value) if got is None else f"{caught.value}, got {got}")


def test_other_mismatches_stay_as_they_are(tmp_path: Path) -> None:
    """The file need not be readable for them."""
    error = DataMismatch("data-unreadable", "holdout.npz", "an npz file")
    assert with_label(error, tmp_path / "none.npz", contract("multiclass", ("cat", "dog"))) is error
