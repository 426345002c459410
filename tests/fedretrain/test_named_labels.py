"""Labels whose positions a file names, as the contract's positions."""

from typing import Any

import numpy as np
import pytest

from fedretrain.contract import Contract, InputSpec, Kind, OutputSpec
from fedretrain.dataset import from_arrays
from fedretrain.errors import DataMismatch


def contract(kind: Kind = "multiclass", *, named: bool = False) -> Contract:
    labels = ("owl", "cat") if kind == "binary" else ("owl", "cat", "bat")
    shape = (1,) if kind == "binary" else (3,)
    output = OutputSpec(name="out", shape=shape, kind=kind, loss="loss", labels=labels, named=named)
    inputs = (InputSpec(name="x", shape=(1,), dtype="float32"),)
    return Contract(inputs=inputs, outputs=(output,), preprocessing=None, architecture="", base="", variables=())


def read(y: Any, names: list[str] | None, of: Contract) -> Any:
    arrays = {"x": np.zeros((len(y), 1)), "y": np.asarray(y)}
    return from_arrays(arrays if names is None else {**arrays, "labels": np.array(names)}, of).y["out"]


def test_a_position_is_what_its_file_calls_it() -> None:
    """For one label in a row, two, and several; a name that the contract lacks may stand there unused."""
    assert read([0, 1, 1], ["cat", "owl", "dog"], contract()).tolist() == [1, 0, 0]
    assert read([0, 1], ["cat", "owl"], contract("binary")).tolist() == [1, 0]
    assert read([[1, 0, 0], [0, 1, 0]], ["cat", "owl", "dog"], contract("multilabel")).tolist() == [
        [0, 1, 0],
        [1, 0, 0],
    ]
    assert read([[0.25, 0.75]], ["bat", "owl"], contract("onehot")).tolist() == [[0.75, 0, 0.25]]
    assert read([2, 0], None, contract()).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("y", "names", "kind", "code"),
    [
        ([0, 2], ["cat", "owl", "dog"], "multiclass", "label-unknown"),
        ([0, 3], ["cat", "owl", "dog"], "multiclass", "label-unknown"),
        ([0.5], ["cat", "owl"], "multiclass", "label-unknown"),
        ([[0, 0, 1]], ["cat", "owl", "dog"], "multilabel", "label-unknown"),
        ([[0, 1]], ["cat", "owl", "dog"], "multilabel", "label-shape"),
        ([0], ["cat", "cat"], "multiclass", "data-dtype"),
        (["cat"], ["cat", "owl"], "multiclass", "data-dtype"),
    ],
)
def test_a_label_that_the_contract_lacks_is_refused(y: Any, names: list[str], kind: Kind, code: str) -> None:
    """By what is expected; the label itself is not told."""
    with pytest.raises(DataMismatch) as caught:
        read(y, names, contract(kind))
    assert caught.value.code == code
    assert "dog" not in str(caught.value)


def test_where_positions_have_moved_a_file_has_to_name_them() -> None:
    """A contract says so; one that does not is written as if there were no such thing."""
    with pytest.raises(DataMismatch, match="labels: expected the names of y's positions"):
        read([0], None, contract(named=True))
    assert read([0], ["cat", "owl", "bat"], contract(named=True)).tolist() == [1]
    assert "named" not in contract().model_dump(mode="json")["outputs"][0]
    assert contract(named=True).model_dump(mode="json")["outputs"][0]["named"] is True
    assert Contract.model_validate_json(contract(named=True).model_dump_json()) == contract(named=True)
