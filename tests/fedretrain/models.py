"""Small models of every shape that the product has to handle."""

from typing import Any

import keras
import numpy as np
from keras import layers


def convolutional(name: str = "digits") -> Any:
    """One image in, three classes out; every rule of a variable occurs in it."""
    return keras.Sequential(
        [
            layers.Input((6, 6, 1), name="image"),
            layers.Rescaling(1 / 16, name="rescaling"),
            layers.Conv2D(2, 3, activation="relu", name="conv1"),
            layers.BatchNormalization(name="norm"),
            layers.Dropout(0.2, name="dropout"),
            layers.Flatten(name="flatten"),
            layers.Dense(3, activation="softmax", name="head"),
        ],
        name=name,
    )


def nested() -> Any:
    """Two inputs, two outputs, nested models, a wrapper, graph operations and a Normalization that has seen data."""
    inner = keras.Sequential(
        [
            layers.Input((4,), name="inner_input"),
            layers.Dense(3, name="dense1"),
            layers.BatchNormalization(name="norm"),
            layers.Dense(2, name="dense2"),
        ],
        name="inner",
    )
    outer = keras.Sequential([layers.Input((4,), name="outer_input"), inner, layers.Dense(2, name="top")], name="outer")
    left, right = layers.Input((4,), name="left"), layers.Input((5, 4), name="right")
    normalization = layers.Normalization(name="normalization")
    normalization.adapt(np.random.default_rng(0).normal(3, 2, (50, 4)))
    a = outer(normalization(left))
    b = layers.TimeDistributed(layers.Dense(2, name="step"), name="each")(right)
    b = layers.LSTM(2, name="lstm")(b)
    joined = layers.Concatenate(name="joined")([a * 2.0 + 1.0, b])
    outputs = [layers.Dense(3, activation="softmax", name="label")(joined), layers.Dense(1, name="value")(joined)]
    return keras.Model([left, right], outputs, name="nested")


def attention() -> Any:
    """Attention, recurrence in both directions, and a layer that is used twice."""
    x = layers.Input((4, 6), name="sequence")
    shared = layers.Dense(6, name="shared")
    y = layers.MultiHeadAttention(2, 3, dropout=0.1, name="attention")(shared(x), shared(shared(x)))
    y = layers.Bidirectional(layers.GRU(2, dropout=0.1, name="gru"), name="both")(layers.Add()([x, y]))
    return keras.Model(x, layers.Dense(1, activation="sigmoid", name="out")(y), name="attention_model")


def randomized(model: Any) -> Any:
    """The model with weights of its own in every float variable, and caches of them up to date."""
    from fedretrain.architecture import set_weights, weights_of

    rng = np.random.default_rng(1)
    weights = [rng.uniform(0.1, 1, w.shape).astype(w.dtype) if w.dtype.kind == "f" else w for w in weights_of(model)]
    set_weights(model, weights)
    return model


def predictions(model: Any) -> list[np.ndarray]:
    """Outputs on fixed examples, in inference mode."""
    rng = np.random.default_rng(2)
    x = [rng.random((3, *t.shape[1:])).astype(np.float32) for t in model.inputs]
    return [np.asarray(t) for t in keras.tree.flatten(model(x if len(x) > 1 else x[0], training=False))]
