"""The contract that follows from a model and a job."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedretrain.architecture import build, fingerprint, to_json
from fedretrain.derive import derive_contract
from fedretrain.digest import weights_digest
from fedretrain.errors import ConfigurationError, DataMismatch
from fedretrain.job import Job, parse_job
from fedretrain.modelfile import BaseModel, load_base
from fedretrain.settings import resolve_train

from .models import convolutional, nested


class Case:
    """A job with its files in a folder."""

    def __init__(self, folder: Path, model: Any, **tables: Any) -> None:
        self.folder = folder
        model.save(folder / "base.keras")
        self.tables = {"model": {"path": "base.keras"}} | tables

    def holdout(self, name: str, **arrays: Any) -> None:
        np.savez(self.folder / f"{name}.npz", **arrays)
        self.tables.setdefault("holdout", []).append({"name": name, "path": f"{name}.npz"})

    def job(self) -> Job:
        return parse_job(self.tables, self.folder / "job.toml")

    def base(self) -> BaseModel:
        return load_base(self.job().model)

    def contract(self) -> Any:
        job, base = self.job(), self.base()
        return derive_contract(job, base, resolve_train(job.train, base.compile_config))


def images(folder: Path, **tables: Any) -> Case:
    model = convolutional()
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    case = Case(folder, model, **tables)
    x = np.linspace(2, 10, 4 * 36).reshape(4, 6, 6, 1)
    case.holdout("old", x=x, y=np.array([0, 1, 2, 0]))
    case.holdout("new", x=x + 4, y=np.array([0, 1, 2, 0]))
    return case


def test_the_contract_of_a_job(tmp_path: Path) -> None:
    """Everything from the model, the labels from the job, ranges from the holdouts: a span to both sides."""
    case = images(tmp_path, contract={"labels": ["a", "b", "c"], "preprocessing": "none yet"})
    case.tables["model"]["freeze"] = ["conv*", "norm"]
    for holdout in ("old", "new"):
        with np.load(tmp_path / f"{holdout}.npz") as arrays:
            np.savez(tmp_path / f"{holdout}.npz", preprocessing="none yet", **arrays)
    contract = case.contract()
    assert contract.inputs[0].model_dump() == {
        "name": "image",
        "shape": (6, 6, 1),
        "dtype": "float32",
        "low": 2 - 12,
        "high": 14 + 12,
        "columns": None,
    }
    assert contract.outputs[0].model_dump() == {
        "name": "head",
        "shape": (3,),
        "kind": "multiclass",
        "loss": "sparse_categorical_crossentropy",
        "labels": ("a", "b", "c"),
    }
    base = case.base()
    assert contract.architecture == fingerprint(base.architecture) == fingerprint(to_json(build(base.architecture)))
    assert contract.base == weights_digest(base.weights)
    assert [s.rule for s in contract.changing_specs] == ["train", "train"]
    assert case.contract().digest == contract.digest


def test_ranges_of_the_job_go_first(tmp_path: Path) -> None:
    """The holdouts are then checked against them like any data."""
    assert images(tmp_path, contract={"ranges": {"image": [0, 16]}}).contract().inputs[0].high == 16
    with pytest.raises(DataMismatch, match=r"data-range at holdout 'new' image column .*: expected at most 12"):
        images(tmp_path, contract={"ranges": {"image": [0, 12]}}).contract()


def test_a_constant_input_gets_a_range_all_the_same(tmp_path: Path) -> None:
    """One to both sides where there is no span."""
    case = images(tmp_path)
    case.tables["holdout"] = []
    case.holdout("old", x=np.full((2, 6, 6, 1), 5), y=np.array([0, 1]))
    spec = case.contract().inputs[0]
    assert (spec.low, spec.high) == (4, 6)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"y": np.array([0, 1, 3, 0])}, "unknown at holdout 'bad' head: expected whole numbers from 0 to 2, got 3"),
        ({"x": np.zeros((4, 6, 5, 1))}, "data-shape at holdout 'bad' image"),
        ({"x": np.full((4, 6, 6, 1), np.nan)}, "data-not-finite at holdout 'bad' image column 0,0,0"),
        ({"y": np.array([None] * 4)}, "data-unreadable at holdout 'bad' bad.npz"),
    ],
)
def test_a_holdout_that_does_not_fit_is_named(arrays: dict[str, Any], says: str, tmp_path: Path) -> None:
    """Before anything is trained."""
    case = images(tmp_path)
    case.holdout("bad", **({"x": np.zeros((4, 6, 6, 1)), "y": np.zeros(4, int)} | arrays))
    with pytest.raises(DataMismatch) as caught:
        case.contract()
    assert says in str(caught.value)


def test_a_holdouts_output_must_be_there(tmp_path: Path) -> None:
    """The gate would only find out after training."""
    case = images(tmp_path)
    case.tables["holdout"][0]["output"] = "haed"
    with pytest.raises(ConfigurationError, match=r"holdout\.old\.output: expected one of .*\['head'\], got 'haed'"):
        case.contract()


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    """By name in the files, in Keras' order in the contract."""
    model = nested()
    model.compile("adam", {"label": "sparse_categorical_crossentropy", "value": "mse"})
    case = Case(tmp_path, model)
    case.holdout(
        "old",
        **{"x.left": np.ones((2, 4)), "x.right": np.ones((2, 5, 4)), "y.label": [0, 2], "y.value": [0.5, 7]},
    )
    contract = case.contract()
    assert [(i.name, i.shape, i.low, i.high) for i in contract.inputs] == [
        ("left", (4,), 0, 2),
        ("right", (5, 4), 0, 2),
    ]
    assert [(o.name, o.kind) for o in contract.outputs] == [("label", "multiclass"), ("value", "regression")]
