"""Server optimizers that are Keras' own: the plain sum, and any Keras optimizer on the pseudo-gradient -Δ.

Keras is used where its update rule is the paper's, number by number: stochastic gradient descent, with and without
momentum. The adaptive methods of Reddi et al. differ from Keras' (see ``fedadam``, ``fedadagrad``) and stand in
``adaptive``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .base import Arrays, finite_as


@dataclass(frozen=True)
class Sum:
    """``x ← x + Δ``: the same bits as Keras' SGD with learning rate 1 on -Δ, without loading TensorFlow."""

    def init(self, params: Arrays) -> Arrays:  # noqa: ARG002 - the protocol's signature
        """No state."""
        return []

    def apply(self, state: Arrays, params: Arrays, update: Arrays) -> tuple[Arrays, Arrays]:
        """``state`` as it is, and the sum in the dtype of ``params``; raises RunFailed where that is not finite."""
        with np.errstate(over="ignore"):
            return state, [finite_as(x + d, x.dtype, i) for i, (x, d) in enumerate(zip(params, update, strict=True))]


@dataclass(frozen=True)
class KerasServerOptimizer:
    """A Keras optimizer stepped once a round with the gradient -Δ, on the CPU.

    The state is the optimizer's variables in Keras' order: iterations, learning rate, then its slots. Variables of 16
    bits are stepped in float32, and their slots kept in it. Keras holds the learning rate in float32, which bounds the
    relative accuracy of a float64 variable's step to 2^-24.

    Args:
        name: Keras' class name, such as ``SGD``.
        settings: Its constructor arguments; the learning rate a constant float.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def init(self, params: Arrays) -> Arrays:
        """The optimizer's fresh variables."""
        optimizer, _ = self._build(params)
        return [np.asarray(v.numpy()) for v in optimizer.variables]

    def apply(self, state: Arrays, params: Arrays, update: Arrays) -> tuple[Arrays, Arrays]:
        """One step; raises RunFailed where a parameter would not be finite."""
        import keras

        optimizer, variables = self._build(params)
        with keras.device("cpu"):
            for slot, value in zip(optimizer.variables, state, strict=True):
                slot.assign(value)
            gradients = [
                keras.ops.convert_to_tensor(-d.astype(v.dtype)) for d, v in zip(update, variables, strict=True)
            ]
            optimizer.apply(gradients, variables)
        stepped = [
            finite_as(np.asarray(v.numpy()), x.dtype, i) for i, (v, x) in enumerate(zip(variables, params, strict=True))
        ]
        return [np.asarray(v.numpy()) for v in optimizer.variables], stepped

    def _build(self, params: Arrays) -> tuple[Any, list[Any]]:
        """The optimizer and Keras variables with the values of ``params``."""
        import keras

        with keras.device("cpu"):
            wide = [x.astype(np.float32) if x.dtype.itemsize < 4 else x for x in params]
            variables = [keras.Variable(x, dtype=x.dtype.name) for x in wide]
            optimizer = keras.optimizers.get({"class_name": self.name, "config": dict(self.settings)})
            optimizer.build(variables)
        return optimizer, variables


def gradient_descent(learning_rate: float, momentum: float = 0.0) -> Sum | KerasServerOptimizer:
    """``u ← β u + η Δ``, ``x ← x + u`` with η ``learning_rate`` and β ``momentum``: Keras' SGD, or the plain sum."""
    if learning_rate == 1 and momentum == 0:
        return Sum()
    return KerasServerOptimizer("SGD", {"learning_rate": float(learning_rate), "momentum": float(momentum)})
