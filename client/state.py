"""The state an update starts from, and what came of it: operations that can be traced.

Invariants: nothing of an update before is left, in variables that travel, seeds, and the optimizer.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fedretrain.contract import Contract

from .descent import RECEIVED
from .initial import InitialState


class State:
    """The variables of one model.

    Args:
        contract: Says which variables travel, and which are seeds.
        variables: All of the model's.
        initial: The state of its optimizer.
        trained: Positions of those that train.
        seed: What the objective's random numbers come from, where it draws any: one more seed, after the model's.
    """

    def __init__(
        self,
        contract: Contract,
        variables: Sequence[Any],
        initial: InitialState,
        trained: Sequence[int],
        seed: Any = None,
    ) -> None:
        self._initial, self._changing, self._trained = initial, contract.changing, trained
        self._variables = [*variables] if seed is None else [*variables, seed]
        self._seeds = [i for i, spec in enumerate(contract.variables) if spec.rule == "local"]
        self._seeds += [] if seed is None else [len(contract.variables)]

    @property
    def signature(self) -> tuple[list[Any], list[Any]]:
        """Of what ``begin`` takes."""

        def of(positions: Iterable[int]) -> list[Any]:
            return [tf.TensorSpec(self._variables[p].shape, self._variables[p].dtype) for p in positions]

        return of(self._changing), of(self._seeds)

    def seeds(self, seed_of: Callable[[int], int]) -> list[Any]:
        """The seeds' values, given the seed of a position of the model's variables; tensors."""
        return [tf.constant([seed_of(position), 0], self._variables[position].dtype) for position in self._seeds]

    def placed(self, received: Sequence[NDArray[Any]]) -> list[Any]:
        """Assigns arrays one after the other; gives the tensors that the variables share then, theirs are dropped."""
        return [self._placed(position, array) for position, array in zip(self._changing, received, strict=True)]

    def begin(self, received: Sequence[Any], seeds: Sequence[Any]) -> None:
        """Puts values and seeds in place, and the optimizer into its state where that is always the same."""
        for position, value in zip([*self._changing, *self._seeds], [*received, *seeds], strict=True):
            self._variables[position].assign(value)
        if self._initial.constant:
            self._initial.reset()

    def given(self, groups: Sequence[str], received: Sequence[Any], others: Sequence[list[Any]]) -> list[list[Any]]:
        """What an objective is given, once an update has begun.

        Args:
            groups: In this order.
            received: Values of the variables that travel; one that trains and does not travel has its own.
            others: The groups but ``RECEIVED``, in order; or none where no step is to come.
        """
        values, rest = dict(zip(self._changing, received, strict=True)), iter(others)
        return [[self._begun(p, values) for p in self._trained] if g == RECEIVED else next(rest, []) for g in groups]

    def minus(self, received: Sequence[Any]) -> list[Any]:
        """The variables that travel minus what was received of them."""
        changing = zip(self._changing, received, strict=True)
        return [tf.convert_to_tensor(self._variables[position].value) - value for position, value in changing]

    def _begun(self, position: int, received: Mapping[int, Any]) -> Any:
        found = received.get(position)
        return tf.identity(tf.convert_to_tensor(self._variables[position].value)) if found is None else found

    def _placed(self, position: int, array: NDArray[Any]) -> Any:
        self._variables[position].assign(array)
        return tf.convert_to_tensor(self._variables[position].value)


def array_of(value: Any) -> NDArray[Any]:
    """A value, not copied where it lies in main memory; a later assignment to its variable leaves it as it is."""
    value = tf.convert_to_tensor(value)
    if "CPU" not in value.device:
        return np.asarray(value.numpy())
    return np.asarray(memoryview(value))
