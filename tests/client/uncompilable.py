"""A layer of a site's own that TensorFlow traces and XLA does not compile."""

from typing import Any

import keras
import tensorflow as tf


class Outside(keras.layers.Layer):  # type: ignore[misc]
    """Adds, in the forward pass, a number that Python says."""

    def call(self, inputs: Any) -> Any:
        """The inputs and one more."""
        one = tf.py_function(lambda: tf.constant(1.0), [], tf.float32)
        return inputs + tf.ensure_shape(one, [])

    def compute_output_spec(self, inputs: Any) -> Any:
        """The inputs' shape; without running ``call``."""
        return keras.KerasTensor(inputs.shape, inputs.dtype)
