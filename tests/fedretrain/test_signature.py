"""Inputs and outputs as the contract has them: stable names, shapes, and the kind of labels a loss takes."""

from typing import Any

import keras
import pytest
from keras import layers

from fedretrain.architecture import build, to_json
from fedretrain.errors import ConfigurationError
from fedretrain.job import ContractSection, NamedConfig, TrainSection
from fedretrain.signature import input_names, input_specs, output_names, output_specs

from .models import attention, convolutional, nested


def ending_in(*shape: int | None) -> Any:
    x = layers.Input(shape, name="x")
    return keras.Model(x, layers.Identity(name="out")(x))


def output(loss: Any, *shape: int | None, labels: tuple[str, ...] | None = None) -> Any:
    return output_specs(ending_in(*shape), TrainSection(loss=loss), labels)[0]


@pytest.mark.parametrize(
    ("loss", "shape", "kind", "count"),
    [
        ("sparse_categorical_crossentropy", (3,), "multiclass", 3),
        ("sparse_categorical_crossentropy", (None, 3), "multiclass", 3),
        ("categorical_crossentropy", (3,), "onehot", 3),
        ("categorical_focal_crossentropy", (2,), "onehot", 2),
        ("binary_crossentropy", (1,), "binary", 2),
        ("binary_crossentropy", (4,), "multilabel", 4),
        ("binary_focal_crossentropy", (1,), "binary", 2),
        ("mean_squared_error", (1,), "regression", 0),
        ("huber", (2, 2), "regression", 0),
        (NamedConfig(name="sparse_categorical_crossentropy", from_logits=True), (3,), "multiclass", 3),
    ],
)
def test_the_kind_of_labels_follows_from_loss_and_shape(loss: Any, shape: Any, kind: str, count: int) -> None:
    """Labels are named by position unless the job names them; regression has none."""
    spec = output(loss, *shape)
    assert (spec.kind, spec.labels) == (kind, tuple(map(str, range(count))))
    assert (spec.name, spec.shape) == ("out", shape)


@pytest.mark.parametrize(
    ("loss", "shape", "says"),
    [
        ("sparse_categorical_crossentropy", (1,), "goes with binary_crossentropy"),
        ("categorical_crossentropy", (1,), "goes with binary_crossentropy"),
        ("sparse_categorical_crossentropy", (None,), "expected a known number of labels"),
        ("ctc", (4, 3), "'ctc' is not supported"),
        ({"other": "mse"}, (3,), r"a loss for each of the outputs \['out'\], got \['other'\]"),
    ],
)
def test_losses_that_do_not_go_with_an_output_are_refused(loss: Any, shape: Any, says: str) -> None:
    """In one line that names the loss or the output."""
    with pytest.raises(ConfigurationError, match=says):
        output(loss, *shape)


def test_labels_of_the_job_name_the_label_space() -> None:
    """Two names for a binary output; another number, or names that repeat, are refused."""
    assert output("binary_crossentropy", 1, labels=("no", "yes")).labels == ("no", "yes")
    assert output("sparse_categorical_crossentropy", 2, labels=("cat", "dog")).labels == ("cat", "dog")
    for labels in (("cat",), ("a", "b", "c"), ("a", "a")):
        with pytest.raises(ConfigurationError, match=r"contract\.labels: expected as many different names"):
            output("sparse_categorical_crossentropy", 2, labels=labels)
    with pytest.raises(ConfigurationError, match=r"contract\.labels"):
        output("mse", 2, labels=("a", "b"))


def test_labels_belong_to_the_one_output_that_has_some() -> None:
    """A regression beside it keeps none; one loss for all outputs is given to each."""
    model = nested()
    train = TrainSection(loss={"label": "sparse_categorical_crossentropy", "value": "mean_squared_error"})
    assert [spec.labels for spec in output_specs(model, train, ("a", "b", "c"))] == [("a", "b", "c"), ()]
    both = output_specs(model, TrainSection(loss="mean_squared_error"), None)
    assert [(spec.name, spec.kind) for spec in both] == [("label", "regression"), ("value", "regression")]


@pytest.mark.parametrize("make", [convolutional, nested, attention])
def test_names_stay_the_same_in_a_model_that_was_built_again(make: Any) -> None:
    """Keras numbers symbolic tensors by process; layers keep their names."""
    model = make()
    again = build(to_json(model))
    assert input_names(again) == input_names(model)
    assert output_names(again) == output_names(model)
    assert output_names(nested()) == ["label", "value"]
    assert input_names(convolutional()) == ["image"]


def test_dicts_give_names_in_keras_order() -> None:
    """Keys, sorted as Keras flattens them."""
    a, b = layers.Input((2,), name="zeta"), layers.Input((3,), name="alpha")
    model = keras.Model({"zeta": a, "alpha": b}, {"two": layers.Dense(1)(a), "one": layers.Dense(2)(b)})
    assert [(s.name, s.shape) for s in input_specs(model, ContractSection())] == [("alpha", (3,)), ("zeta", (2,))]
    assert output_names(model) == ["one", "two"]
    assert [t.shape[1:] for t in model.outputs] == [(2,), (1,)]


def test_ranges_and_columns_of_the_job() -> None:
    """They go to the input they name; names, numbers and order are checked."""
    model = keras.Sequential([layers.Input((2,), name="table"), layers.Dense(1)])
    section = ContractSection(columns=("age", "dose"), ranges={"table": (0, 9)})
    assert input_specs(model, section)[0].model_dump() == {
        "name": "table",
        "shape": (2,),
        "dtype": "float32",
        "low": 0,
        "high": 9,
        "columns": ("age", "dose"),
    }
    for wrong, says in (
        (ContractSection(columns=("age",)), r"contract\.columns: .* 1 names for inputs of shape \{'table': \[2\]\}"),
        (ContractSection(ranges={"tabel": (0, 1)}), r"contract\.ranges: expected names of inputs \['table'\]"),
        (ContractSection(ranges={"table": (1, 0)}), r"contract\.ranges\.table: expected the least value first"),
    ):
        with pytest.raises(ConfigurationError, match=says):
            input_specs(model, wrong)


def test_inputs_that_are_no_dense_numbers_are_refused() -> None:
    """Text and sparse tensors have no place in an npz of plain arrays."""
    for x, says in (
        (layers.Input((1,), dtype="string", name="words"), "input 'words': expected dense numbers, got dense string"),
        (layers.Input((1,), sparse=True, name="few"), "input 'few': expected dense numbers, got sparse"),
    ):
        with pytest.raises(ConfigurationError, match=says):
            input_specs(keras.Model(x, x), ContractSection())


def test_a_model_without_known_inputs_is_refused() -> None:
    """A Sequential that was never built has no shapes to put into a contract."""
    with pytest.raises(ConfigurationError, match=r"start it with keras\.Input"):
        input_names(keras.Sequential([layers.Dense(1)]))


def test_outputs_need_different_names() -> None:
    """One layer used for two outputs would make them indistinguishable."""
    x, head = layers.Input((2,)), layers.Dense(1, name="head")
    with pytest.raises(ConfigurationError, match="outputs of different names"):
        output_names(keras.Model(x, [head(x), head(x * 2)]))
