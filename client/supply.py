"""The arrays that the run's objective is given beside what was received, as tensors of the variables that train."""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from fedretrain.contract import Contract
from fedretrain.errors import DeclinedRequest

INCUMBENT = "incumbent"
"""The group of arrays that has the base model's values."""


class Supply:
    """What one model's objective is given.

    Args:
        contract: Says which variables the groups are about.
        variables: All of the model's.
        trained: Positions of those that train.
        groups: Names of the groups, in order.

    Attributes:
        tensors: By group as in ``groups``, one for each variable that trains; empty before ``give``.
    """

    def __init__(
        self, contract: Contract, variables: Sequence[Any], trained: Sequence[int], groups: Sequence[str]
    ) -> None:
        self._variables, self._trained, self._groups = variables, trained, groups
        self._shared = [position for position, spec in enumerate(contract.variables) if spec.rule == "train"]
        self._shapes = [contract.variables[position].shape for position in self._shared]
        self._incumbent: list[Any] = []
        self.tensors: list[list[Any]] = []

    @property
    def asks(self) -> tuple[str, ...]:
        """Names of the groups that ``give`` has to bring."""
        return tuple(group for group in self._groups if group != INCUMBENT)

    def load(self) -> None:
        """The model has the base model's values now."""
        if INCUMBENT in self._groups:
            values = (tf.convert_to_tensor(self._variables[position].value) for position in self._trained)
            self._incumbent = [tf.identity(value) for value in values]

    def give(self, given: Mapping[str, Sequence[Any]]) -> None:
        """Bring what the objective asks for, for the updates from now on; ``load`` must have been called.

        Args:
            given: By group one tensor per variable with rule ``train``, in position order.

        Raises:
            DeclinedRequest: ``request-invalid`` where a group is missing, or is not of these variables.
        """
        found = {group: self._of_trained(group, given.get(group, ())) for group in self.asks}
        found[INCUMBENT] = self._incumbent
        self.tensors = [found[group] for group in self._groups]

    def _of_trained(self, group: str, tensors: Sequence[Any]) -> list[Any]:
        """Those that train at the moment, which may be fewer than in the contract, in a stage."""
        shapes = [tuple(tensor.shape) for tensor in tensors]
        if shapes != self._shapes or not set(self._trained) <= set(self._shared):
            expected = f"{len(self._shared)} arrays, as the variables that train"
            raise DeclinedRequest("request-invalid", group, expected)
        by_position = dict(zip(self._shared, tensors, strict=True))
        return [tf.cast(by_position[p], self._variables[p].dtype) for p in self._trained]
