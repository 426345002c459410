"""Which variables of a model train, and which stay as they are."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from fedretrain.architecture import to_json, weights_of
from fedretrain.errors import ConfigurationError, ModelRefused
from fedretrain.variables import freeze, prepare_model, variable_specs

from .models import attention, convolutional, nested, predictions, randomized


def rules(model: Any) -> dict[str, str]:
    """Rule by "layer/variable", the last two parts of Keras' path; seeds are numbered by Keras and go by "seed"."""
    specs = variable_specs(model)
    names = ["seed" if "seed" in v.path else "/".join(v.path.split("/")[-2:]) for v in model.variables]
    return dict(zip(names, (s.rule for s in specs), strict=True))


def test_rules_of_a_model_that_is_not_frozen() -> None:
    """Weights train, moving statistics are averaged, seeds are local."""
    assert rules(convolutional()) == {
        "conv1/kernel": "train",
        "conv1/bias": "train",
        "norm/gamma": "train",
        "norm/beta": "train",
        "norm/moving_mean": "average",
        "norm/moving_variance": "average",
        "seed": "local",
        "head/kernel": "train",
        "head/bias": "train",
    }


def test_a_frozen_batch_normalization_keeps_all_four() -> None:
    """gamma, beta and the moving statistics; the other layers go on training."""
    model = convolutional()
    assert freeze(model, ["conv*", "norm"]) == ("conv1", "norm")
    found = rules(model)
    assert {found[f"norm/{name}"] for name in ("gamma", "beta", "moving_mean", "moving_variance")} == {"keep"}
    assert found["conv1/kernel"] == "keep"
    assert found["head/kernel"] == "train"


def test_a_frozen_batch_normalization_runs_in_inference_mode() -> None:
    """It normalizes by its moving statistics, also in training, and leaves them alone; a free one does neither."""
    x = np.random.default_rng(0).normal(5, 2, (8, 6, 6, 2)).astype(np.float32)
    model = convolutional()
    layer = model.get_layer("norm")
    free = np.asarray(layer(x, training=True))
    assert abs(free.mean()) < 0.01
    assert np.asarray(layer.moving_mean).any()
    model = convolutional()
    freeze(model, ["norm"])
    layer = model.get_layer("norm")
    frozen = np.asarray(layer(x, training=True))
    assert np.allclose(frozen, np.asarray(layer(x, training=False)))
    assert abs(frozen.mean() - 5) < 0.2
    assert not np.asarray(layer.moving_mean).any()


def test_normalization_and_integers_are_kept() -> None:
    """Adapted numbers and counters are never trained nor averaged."""
    found = rules(nested())
    assert {found[f"normalization/{name}"] for name in ("mean", "variance", "count")} == {"keep"}


def test_recurrent_and_attention_layers_train() -> None:
    """Their inner layers too; dropout inside them has seeds."""
    found = rules(attention())
    assert {"local", "train"} == set(found.values())
    assert [s.rule for s in variable_specs(attention())].count("local") == 3


def test_an_integer_table_and_a_frozen_layer_of_the_base_are_kept() -> None:
    """What the model itself does not train stays, without a pattern."""

    class Counter(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.count = self.add_weight(name="count", shape=(2,), dtype="int32", initializer="zeros")

        def call(self, x):
            return x

    base = layers.Dense(3, name="base", trainable=False)
    model = keras.Sequential([layers.Input((2,)), base, Counter(name="counter"), layers.Dense(1, name="top")])
    assert model.get_layer("counter").count.trainable
    found = rules(model)
    assert (found["base/kernel"], found["counter/count"], found["top/kernel"]) == ("keep", "keep", "train")


@pytest.mark.parametrize(
    ("patterns", "paths", "frozen"),
    [
        (["outer"], ("outer",), {"dense1", "norm", "dense2", "top"}),
        (["outer/inner"], ("outer/inner",), {"dense1", "norm", "dense2"}),
        (["outer/inner/dense*"], ("outer/inner/dense1", "outer/inner/dense2"), {"dense1", "dense2"}),
        (["outer/*"], ("outer/inner", "outer/top"), {"dense1", "norm", "dense2", "top"}),
        (["*/*/norm"], ("outer/inner/norm",), {"norm"}),
        (["each/step", "lstm"], ("each/step", "lstm"), {"step", "lstm_cell"}),
        (["each", "l[s]tm"], ("each", "lstm"), {"step", "lstm_cell"}),
    ],
)
def test_patterns_reach_into_nested_models(patterns: list[str], paths: tuple[str, ...], frozen: set[str]) -> None:
    """outer/inner is a layer in a model or wrapper; a model takes everything in it along; a star stops at a slash."""
    model = nested()
    assert freeze(model, patterns) == paths
    found = rules(model)
    for name, rule in found.items():
        layer = name.split("/")[0]
        assert name == "seed" or (rule == "keep") == (layer in {*frozen, "normalization"}), name


def test_a_star_alone_does_not_reach_into_nested_models() -> None:
    """dense* means layers of the model itself; the nearest path is named."""
    with pytest.raises(
        ConfigurationError, match=r"'dens\*', which matches none; the nearest layer is 'outer/inner/dense"
    ):
        freeze(nested(), ["dens*"])


def test_nothing_left_to_train_is_refused() -> None:
    """By patterns, or because the model trains nothing."""
    with pytest.raises(
        ConfigurationError, match=r"expected some variables left to train, got none after freezing \['\*'\]"
    ):
        freeze(convolutional(), ["*"])
    model = convolutional()
    model.trainable = False
    with pytest.raises(ConfigurationError, match="got none"):
        freeze(model, [])


def test_unsupported_variables_are_refused() -> None:
    """bfloat16 has no counterpart in plain NumPy."""
    model = keras.Sequential([layers.Input((2,)), layers.Dense(1, dtype="bfloat16", name="d")])
    with pytest.raises(ConfigurationError, match=r"d/kernel': expected one of .* got bfloat16"):
        variable_specs(model)


def test_a_prepared_model_is_the_base_frozen() -> None:
    """Same outputs, flags set, and the architecture it was built from unchanged."""
    model = randomized(nested())
    text, weights = to_json(model), weights_of(model)
    ready = prepare_model(text, ["outer/inner*"], (), weights)
    assert all(np.array_equal(a, b) for a, b in zip(predictions(ready), predictions(model), strict=True))
    assert rules(ready)["dense1/kernel"] == "keep"
    assert rules(ready)["top/kernel"] == "train"
    with pytest.raises(ModelRefused, match="expected at most"):
        prepare_model(text, [], (), weights[:3])


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.SpectralNormalization(layers.Dense(3), name="odd"),
        lambda: layers.LSTM(3, stateful=True, name="odd"),
    ],
    ids=["spectral normalization", "stateful recurrence"],
)
def test_state_without_a_rule_is_refused_unless_frozen(layer: Any) -> None:
    """A layer that changes its own state in training is named; frozen, it is kept like any other."""
    stateful = layer()
    shape = (2, 4) if isinstance(stateful, layers.LSTM) else (4,)
    model = keras.Sequential([keras.Input(shape, batch_size=2), stateful, layers.Dense(2, name="top")])
    with pytest.raises(ConfigurationError, match="layer 'odd'"):
        variable_specs(model)
    freeze(model, ["odd"])
    assert {spec.rule for spec in variable_specs(model)} - {"local"} == {"train", "keep"}
