"""Holdouts: what does not fit is said before any round, and uses are counted by content and run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedretrain.contract import Contract, InputSpec, OutputSpec, VariableSpec
from fedretrain.dataset import Dataset
from fedretrain.errors import ConfigurationError, MachineError
from fedretrain.job import Job, TrainSection, parse_job
from server.holdouts import FILE, count_uses, holdout_digest, load_holdouts, record_use

CONTRACT = Contract(
    inputs=(InputSpec(name="pixels", shape=(2,), dtype="float32", columns=("left", "right")),),
    outputs=(OutputSpec(name="digit", shape=(3,), kind="multiclass", loss="s", labels=("zero", "one", "two")),),
    preprocessing=None,
    architecture="a" * 64,
    base="b" * 64,
    variables=(VariableSpec(shape=(2, 3), dtype="float32", rule="train"),),
)


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., Job]:
    """A job with one holdout, "old", of the arrays given; other keys are the holdout's settings."""
    (tmp_path / "base.keras").touch()

    def make(settings: dict[str, Any] | None = None, **arrays: Any) -> Job:
        np.savez(tmp_path / "old.npz", **arrays)
        holdout = {"name": "old", "path": "old.npz", **(settings or {})}
        return parse_job({"model": {"path": "base.keras"}, "holdout": [holdout]}, tmp_path / "job.toml")

    return make


def refusal(job: Job, train: TrainSection | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_holdouts(job, CONTRACT, train)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_holdouts_come_in_the_dtypes_keras_takes(make_job: Callable[..., Job]) -> None:
    """float64 and int64 arrays become the contract's, slices stay."""
    job = make_job(x=np.zeros((4, 2)), y=np.arange(4) % 3, slice=np.array(["a", "b", "a", "b"]))
    ((section, data),) = load_holdouts(job, CONTRACT)
    assert section.name == "old"
    assert (data.x["pixels"].dtype, data.y["digit"].dtype) == (np.float32, np.int32)
    assert data.slices is not None
    assert data.slices.tolist() == ["a", "b", "a", "b"]


def test_labels_the_model_does_not_know_are_refused(make_job: Callable[..., Job]) -> None:
    """The line names the holdout, its file, the output, the valid labels and the one that was found."""
    text = refusal(make_job(x=np.zeros((4, 2)), y=np.array([0, 1, 2, 77])))
    assert text.startswith("holdout 'old': ")
    assert "old.npz" in text
    assert "label-unknown at digit" in text
    assert text.endswith("whole numbers from 0 to 2, got 77")
    named = make_job(x=np.zeros((4, 2)), y=np.arange(4), labels=np.array(["zero", "one", "two", "three"]))
    assert refusal(named).endswith("labels among ['zero', 'one', 'two'], got 'three'")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros((4, 3)), "y": np.zeros(4)}, "data-shape"),
        ({"x": np.full((4, 2), np.nan), "y": np.zeros(4)}, "data-not-finite at pixels column 0 (left)"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0)}, "data-empty"),
        ({"y": np.zeros(4)}, "data-missing"),
        ({"x": np.array([{}, {}]), "y": np.zeros(2)}, "pickle"),
    ],
)
def test_other_data_that_do_not_fit_are_refused(
    make_job: Callable[..., Job], arrays: dict[str, Any], said: str
) -> None:
    """Shape, NaN, emptiness, a missing array and pickled objects: one line each."""
    assert said in refusal(make_job(**arrays))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"metric": "auc"}, "metric 'auc' needs two labels, and 'digit' (multiclass) has 3"),
        ({"output": "digits"}, "output: expected one of digit, got 'digits'; did you mean 'digit'?"),
    ],
)
def test_a_metric_that_does_not_fit_is_refused_with_the_data(
    make_job: Callable[..., Job], settings: dict[str, Any], said: str
) -> None:
    """It would be found at the gate, after all rounds, otherwise."""
    assert said in refusal(make_job(settings, x=np.zeros((4, 2)), y=np.zeros(4)))


def test_the_jobs_first_metric_counts_where_the_holdout_names_none(make_job: Callable[..., Job]) -> None:
    """metrics = ["auc"] of a model with three labels is refused as well."""
    job = make_job(x=np.zeros((4, 2)), y=np.zeros(4))
    assert "metric 'auc'" in refusal(job, TrainSection(metrics=("AUC",)))


def holdout(**changes: Any) -> Dataset:
    fields: dict[str, Any] = {"x": {"a": np.arange(6.0).reshape(3, 2)}, "y": {"b": np.arange(3)}}
    return Dataset(**{**fields, **changes})


def test_digest_is_of_the_content() -> None:
    """Equal arrays have equal digests; any change of an array, weight, slice or name has another."""
    changed = [
        holdout(x={"a": np.arange(6.0).reshape(3, 2) + 1}),
        holdout(x={"other": np.arange(6.0).reshape(3, 2)}),
        holdout(y={"b": np.array([0, 1, 1])}),
        holdout(sample_weight=np.ones(3, np.float32)),
        holdout(slices=np.array(["a", "", "a"])),
        holdout(slices=np.array(["a", "", "ä"])),
    ]
    digests = {holdout_digest(data) for data in (holdout(), *changed)}
    assert holdout_digest(holdout()) in digests
    assert len(digests) == 7


def test_uses_are_counted_once_for_each_run(tmp_path: Path) -> None:
    """A resumed run does not count twice; holdouts are counted apart; before any run there are none."""
    assert count_uses(tmp_path, ["d1"]) == {"d1": 0}
    assert record_use(tmp_path, "run-1", ["d1", "d2"]) == {"d1": 1, "d2": 1}
    assert record_use(tmp_path, "run-1", ["d1", "d2"]) == {"d1": 1, "d2": 1}
    assert record_use(tmp_path, "run-2", ["d1"]) == {"d1": 2}
    assert count_uses(tmp_path, ["d1", "d2", "d3"]) == {"d1": 2, "d2": 1, "d3": 0}
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": "x", "uses": {}}', b'{"uses": {"d": 3}}'])
def test_a_damaged_count_is_an_error_and_stays(tmp_path: Path, content: bytes) -> None:
    """Counting from zero in silence would hide uses from an auditor."""
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(MachineError, match="expected the count of holdout uses"):
        record_use(tmp_path, "run-1", ["d1"])
    assert (tmp_path / FILE).read_bytes() == content
