"""A model and a layer of a site's own, which the traced loop cannot stand for."""

from typing import Any

import keras
import tensorflow as tf


class Halved(keras.Model):  # type: ignore[misc]
    """Its training step goes half as far."""

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step; reports the whole loss."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True), weights)
            half = loss / 2
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(half, [v.value for v in variables]), variables)
        return {"loss": loss}


class Looks(keras.layers.Layer):  # type: ignore[misc]
    """Decides in Python by the values it sees."""

    def call(self, inputs: Any) -> Any:
        """Twice the inputs where one is positive."""
        return 2 * inputs if float(tf.reduce_max(inputs)) > 0 else inputs

    def compute_output_spec(self, inputs: Any) -> Any:
        """The inputs' shape; without running ``call``."""
        return keras.KerasTensor(inputs.shape, inputs.dtype)
