"""What an optimizer's variables hold before its first step, found out once so that a graph can put it back.

Most optimizers start from constants, and constants are all that is kept: one number for a variable that is uniform, so
that a reset costs no memory. Some (ScheduleFreeAdamW) start from the model's values: only a fresh one knows its state.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

_PROBES = (1.25, -0.75)  # exact in every float dtype, and nothing an optimizer would start from by itself


class InitialState:
    """The state of an optimizer that was built for ``trained``; these hold other values afterwards.

    Attributes:
        constant: Whether the state is the same whatever the model's values are; ``reset`` may then be traced.
    """

    def __init__(self, optimizer: Any, trained: Sequence[Any]) -> None:
        self._optimizer, self._trained = optimizer, trained
        first, second = (self._found(probe) for probe in _PROBES)
        self.constant = all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
        self._values = first if self.constant else []

    def reset(self) -> None:
        """Put the optimizer into the state it starts from, given the values the model has."""
        variables = self._optimizer.variables
        if self.constant:
            for variable, value in zip(variables, self._values, strict=True):
                variable.assign(value if value.ndim else tf.fill(variable.shape, value))
            return
        for variable, initial in zip(variables, self._fresh().variables, strict=True):
            variable.assign(initial.value)

    def _fresh(self) -> Any:
        fresh = type(self._optimizer).from_config(self._optimizer.get_config())
        fresh.build(self._trained)
        return fresh

    def _found(self, probe: float) -> list[NDArray[Any]]:
        for variable in self._trained:
            variable.assign(tf.fill(variable.shape, tf.cast(probe, variable.dtype)))
        return [_compact(variable.numpy()) for variable in self._fresh().variables]


def _compact(array: NDArray[Any]) -> NDArray[Any]:
    """One number where all are the same."""
    first = array.reshape(-1)[:1]
    return np.array(first[0]) if first.size and (array == first).all() else array
