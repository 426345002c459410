"""Training through Keras' own ``train_step``, batch by batch, for models that the traced loop cannot stand for."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .graph import Piece, take

_OWN = ("fit", "make_train_function", "train_on_batch", "train_step")


def trains_itself(model: "keras.Model") -> bool:
    """Whether the model's class overrides how Keras trains."""
    return any(getattr(type(model), name) is not getattr(keras.Model, name) for name in _OWN)


def fit(model: "keras.Model", piece: Piece, batch: int) -> float:
    """What ``model.fit`` does with these batches in this order.

    Returns:
        The sum of losses times examples; 0 where the model reports none, NaN where one is not finite.
    """
    total = 0.0
    for start in range(0, len(piece.rows), batch):
        rows = piece.rows[start : start + batch]
        x, y, weights = take(piece.parts, tf.constant(rows))
        inputs = x[0] if len(x) == 1 else keras.tree.pack_sequence_as(model.input, x)
        labels = y[0] if len(y) == 1 else keras.tree.pack_sequence_as(model.output, y)
        model.reset_metrics()  # else the loss would be the mean over all batches so far
        logs: dict[str, Any] = model.train_on_batch(inputs, labels, *weights, return_dict=True)
        total += float(np.asarray(logs.get("loss", 0.0))) * len(rows)
    return total
