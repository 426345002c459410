"""Models made of others: what stays bit for bit, what is new, and what is refused."""

import json
from typing import Any

import keras
import numpy as np
import pytest

from fedretrain.architecture import build, set_weights, to_json, weights_of
from fedretrain.errors import ConfigurationError, ModelRefused
from fedretrain.job import NamedConfig
from fedretrain.modelfile import BaseModel
from fedretrain.signature import output_names
from fedretrain.surgery import fresh_weights, gives_logits, units, with_head, with_labels

L = keras.layers
DENSE = NamedConfig(name="Dense", units=2)
X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def base(*outputs: Any, x: Any) -> BaseModel:
    model = keras.Model(x, outputs[0] if len(outputs) == 1 else list(outputs))
    weights = [np.zeros_like(w) if w.dtype == np.int64 else w for w in weights_of(model)]  # as a base model has them
    return BaseModel(to_json(model), weights, None)


def softmax_behind() -> BaseModel:
    """Layers that a model must not lose: a nested one, statistics, a seed."""
    inner = keras.Sequential([keras.Input((4,)), L.Dense(6, name="a"), L.BatchNormalization(name="b")], name="inner")
    x = keras.Input((4,), name="x")
    y = L.Dropout(0.5, name="drop")(inner(x))
    return base(L.Softmax(name="s")(L.Dense(3, name="d", use_bias=False)(y)), x=x)


def two_outputs(**last: Any) -> BaseModel:
    x = keras.Input((4,), name="x")
    y = L.Dense(6, name="trunk")(x)
    return base(L.Dense(1, name="age")(y), L.Dense(3, name="kind", bias_initializer="uniform", **last)(y), x=x)


def predicted(of: BaseModel) -> Any:
    model = build(of.architecture)
    set_weights(model, of.weights)
    return keras.tree.map_structure(np.asarray, model(X, training=False))


def layers(of: BaseModel) -> list[str]:
    return [layer["config"]["name"] for layer in json.loads(of.architecture)["config"]["layers"]]


def test_other_rows_leave_everything_else_as_it_was() -> None:
    """Through a Softmax layer behind the head: the ratios of the labels that stay are the same."""
    old = softmax_behind()
    new = with_labels(old, "s", [(2,), (), (0,), (1,)], 7, "extend")
    assert layers(new) == layers(old)
    for before, after in zip(old.weights[:-1], new.weights[:-1], strict=True):
        assert after.tobytes() == before.tobytes()
    assert np.ascontiguousarray(new.weights[-1][:, [2, 3, 0]]).tobytes() == old.weights[-1].tobytes()
    was, now = predicted(old), predicted(new)
    np.testing.assert_allclose(now[:, [2, 3, 0]] / now[:, [2]], was / was[:, [0]], rtol=1e-5)
    same = with_labels(old, "s", [(2,), (), (0,), (1,)], 7, "extend")
    other = with_labels(old, "s", [(2,), (), (0,), (1,)], 8, "extend")
    assert same.weights[-1].tobytes() == new.weights[-1].tobytes() != other.weights[-1].tobytes()


def test_one_of_several_outputs_gets_other_rows() -> None:
    """A sigmoid for each label; a merged one starts from the mean row, and log 2 on the bias of two."""
    old = two_outputs(activation="sigmoid")
    new = with_labels(old, "kind", [(1,), (0, 2)], 0, "extend")
    assert layers(new) == layers(old)
    kernel, bias = old.weights[-2:]
    np.testing.assert_allclose(new.weights[-2], np.stack([kernel[:, 1], (kernel[:, 0] + kernel[:, 2]) / 2], 1))
    np.testing.assert_allclose(new.weights[-1], [bias[1], (bias[0] + bias[2]) / 2 + np.log(2)], rtol=1e-6)
    age, kind = predicted(new)
    np.testing.assert_array_equal(age, predicted(old)[0])
    np.testing.assert_allclose(kind[:, 0], predicted(old)[1][:, 1], rtol=1e-6)
    assert units(old, "kind", "extend") == ("kind", 3)


def test_probabilities_and_logits_are_told_apart() -> None:
    """By what the last layer does, whichever it is."""
    assert not gives_logits(softmax_behind(), "s")
    assert not gives_logits(two_outputs(activation="sigmoid"), "kind")
    assert gives_logits(two_outputs(), "kind")
    x = keras.Input((4,), name="x")
    for function in (keras.ops.softmax, keras.ops.sigmoid, keras.activations.softmax):
        made = base(function(L.Dense(3)(x)), x=x)
        assert not gives_logits(made, output_names(build(made.architecture))[0])


def test_a_head_stands_where_it_is_told_to() -> None:
    """In place of an output's last layers, or on a layer further below; what is not needed any more goes."""
    head = [NamedConfig(name="Dense", units=5), NamedConfig(name="Dropout", rate=0.1), NamedConfig(name="Softmax")]
    new = with_head(softmax_behind(), None, None, head, 0)
    assert layers(new) == ["x", "inner", "drop", "head_1", "head_2", "s"]
    assert predicted(new).shape == (5, 5)
    below = with_head(softmax_behind(), None, "inner", head, 0)
    assert layers(below) == ["x", "inner", "head_1", "head_2", "s"]
    assert [w for w in below.weights if w.dtype == np.int64 and w.any()] == []  # states of random layers are 0
    again = with_head(new, None, "drop", head, 0)
    assert layers(again)[3:] == ["head_3", "head_4", "s"]  # names that the model has are not taken twice
    two = two_outputs()
    one = with_head(two, "kind", None, [DENSE], 0)
    assert layers(one) == ["x", "trunk", "age", "kind"]
    np.testing.assert_array_equal(predicted(one)[0], predicted(two)[0])


def test_fresh_weights_follow_from_the_seed_alone() -> None:
    """Whatever the process drew before, and bias and statistics start as the architecture says."""
    old = softmax_behind()
    keras.utils.set_random_seed(5)
    one = fresh_weights(old, 3)
    keras.utils.set_random_seed(6)
    for before, after in zip(one, fresh_weights(old, 3), strict=True):
        assert after.tobytes() == before.tobytes()
    assert one[0].tobytes() != old.weights[0].tobytes()
    assert not one[1].any()


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: with_labels(two_outputs(), "sex", [(0,)], 0, "extend"), "one of the model's outputs ['age', "),
        (lambda: units(two_outputs(), None, "extend"), "extend.output: expected one of the model's outputs"),
        (lambda: units(averaged(), None, "extend"), "got Average 'both'; name the layer a new head is to stand on"),
        (lambda: with_head(averaged(), None, "both", [DENSE], 0), ""),
        (lambda: with_head(two_outputs(), "kind", "tronk", [DENSE], 0), "got 'tronk'; did you mean 'trunk'?"),
        (lambda: with_head(two_outputs(), "kind", None, "json:loads", 0), "transfer.head: TypeError: the JSON object"),
        (lambda: with_head(two_outputs(), "kind", None, "json:nothing", 0), "expected a function 'nothing' in the"),
        (lambda: with_head(two_outputs(), "kind", None, "tests.fedretrain.test_surgery:hidden", 0), "Lambda"),
    ],
)
def test_what_cannot_be_made_is_refused_in_a_line(make: Any, line: str) -> None:
    """With what was expected; a function of the operator's own passes the allow-list too."""
    if not line:
        assert predicted(make()).shape == (5, 2)
        return
    with pytest.raises((ConfigurationError, ModelRefused)) as caught:
        make()
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def averaged() -> BaseModel:
    x = keras.Input((4,), name="x")
    return base(L.Average(name="both")([L.Dense(3, name="a")(x), L.Dense(3, name="b")(x)]), x=x)


def hidden(x: Any) -> Any:
    return L.Lambda(lambda y: y)(x)
