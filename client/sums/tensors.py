"""What several sums need of a model: its answers, and which of its losses are about what."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from client.settings import make_losses
from fedretrain.contract import OutputSpec
from fedretrain.job import Loss, NamedConfig, TrainSection


def predictions(model: Any, x: Sequence[Any]) -> list[Any]:
    """Answers by output in inference mode, for inputs in the contract's order."""
    inputs = x[0] if len(x) == 1 else keras.tree.pack_sequence_as(model.input, list(x))
    return list(keras.tree.flatten(model(inputs, training=False)))


class OutputLosses:
    """The job's losses by output, without regularisation."""

    def __init__(self, train: TrainSection, outputs: tuple[OutputSpec, ...]) -> None:
        made = make_losses(train, outputs)
        self._losses = made if isinstance(made, list) else [made]
        self.logits = [_from_logits(train.loss, spec) for spec in outputs]

    def loss(self, output: int, labels: Any, prediction: Any) -> Any:
        """The mean loss of a batch, float32; labels must not be missing."""
        found = self._losses[output]
        return tf.constant(0.0) if found is None else tf.cast(tf.reduce_mean(found(labels, prediction)), tf.float32)


def missing(labels: Any) -> Any:
    """Which examples have no label for an output, bool [n] (``fedretrain.labels``)."""
    absent = tf.math.is_nan(labels) if labels.dtype.is_floating else labels < 0
    return tf.reduce_any(tf.reshape(absent, [tf.shape(labels)[0], -1]), axis=1)


def _from_logits(loss: Loss | dict[str, Loss] | None, spec: OutputSpec) -> bool:
    chosen = loss.get(spec.name) if isinstance(loss, dict) else loss
    return isinstance(chosen, NamedConfig) and bool(chosen.settings.get("from_logits"))
