"""Layers as an operator has them in a module of his own."""

import keras
import numpy as np
from keras.layers import Lambda  # noqa: F401 - a class that is here, but not from here


class Scale(keras.layers.Layer):
    """Not registered with Keras; holds a variable made from an array."""

    def __init__(self, factor: float = 2.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor
        self.scale = keras.Variable(np.float32(factor), trainable=False, name="scale")

    def call(self, x):
        return x * self.scale

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable("own")
class Shift(keras.layers.Layer):
    """Registered under a package's name."""

    def call(self, x):
        return x + 1


@keras.saving.register_keras_serializable("own")
def halved(x):
    """An activation."""
    return x / 2


def unregistered(x):
    """An activation that Keras was not told about."""
    return x + 3


class Multiply(keras.layers.Layer):
    """Bears the name of one of Keras' graph operations."""

    def call(self, x):
        return x
