"""What a federated algorithm is made of: three parts, each replaceable on its own, and no I/O in any of them.

Invariants:

- State in, state out: a part holds settings only, what changes between rounds is passed in and returned.
- The same updates give the same bits, in whatever order they arrived.
- Arrays keep the dtype of their variable; a finite input never gives a non-finite output, it raises.

``Arrays`` is a list of arrays in position order of the variables in question. An update is a difference, site minus
global: *minus* the pseudo-gradient of Reddi et al. (2021). Only ``train`` variables go through the server optimizer;
the aggregated update of an ``average`` variable is simply added.

Use, in a round with a streaming aggregation::

    state = strategy.aggregation.init(specs, total_weight=sum(declared_examples))
    for update, examples in arriving:
        state = strategy.aggregation.fold(state, update, examples)
    update = strategy.aggregation.finish(state)
    server_state, params = strategy.server.apply(server_state, params, update)
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from fedretrain.contract import VariableSpec
from fedretrain.errors import RunFailed

from .objective import LocalObjective

Arrays = list[NDArray[Any]]
State = Any
_CHUNK = 1 << 16  # values


@runtime_checkable
class Streaming(Protocol):
    """An aggregation that folds each update into its state and forgets it."""

    def init(self, specs: Sequence[VariableSpec], total_weight: int) -> State:
        """The empty state for a round.

        Args:
            specs: One per array of an update, in order.
            total_weight: Upper bound on the sum of weights that can arrive: what all sites asked have declared.
        """
        ...

    def fold(self, state: State, update: Arrays, weight: int, largest: float = math.inf) -> State:
        """The state with one more update; the one passed in must not be used again, nor the update written to.

        Args:
            state: Of ``init``, or of the last ``fold`` or ``merge``.
            update: One array per spec.
            weight: Examples, at least 1.
            largest: No value of the update is further from 0, as the caller knows: its L2 norm will do. It saves a
                look at every value where it is far within what can be folded.

        Raises:
            RejectedUpdate: The update cannot be folded; the state passed in is as it was and stays usable.
        """
        ...

    def settle(self, state: State) -> State:
        """The same state with no update waiting to be added: what another process is sent, or a checkpoint holds."""
        ...

    def merge(self, state: State, other: State) -> State:
        """The state with everything that was folded into another one; neither must be used again.

        Raises:
            RunFailed: The two were not begun with the same specs and total weight, or weigh more than it together.
        """
        ...

    def finish(self, state: State) -> Arrays:
        """The aggregate, in the shapes and dtypes of the specs.

        Raises:
            RunFailed: Nothing was folded.
        """
        ...


@runtime_checkable
class CoordinateWise(Protocol):
    """An aggregation that needs the updates of all sites at once, one coordinate independent of the others."""

    @property
    def memory_bytes(self) -> int:
        """The most that the caller may hold of the updates at a time."""
        ...

    def reduce(self, stack: NDArray[Any], weights: NDArray[Any]) -> NDArray[Any]:
        """The aggregate of a run of coordinates.

        Args:
            stack: Float [sites, k], sites in the order of their names; the caller chooses k to bound memory.
            weights: Example counts, integer [sites].

        Returns:
            [k], in the dtype of ``stack``.

        Raises:
            RejectedUpdate: ``not-finite``.
        """
        ...


@runtime_checkable
class Selecting(CoordinateWise, Protocol):
    """An aggregation that first chooses some of the sites by their whole updates, and reduces those."""

    def select(self, pieces: Iterable[NDArray[Any]]) -> list[int]:
        """The rows to reduce.

        Args:
            pieces: Float [sites, k], together all coordinates of the updates, sites in the order of their names.

        Raises:
            RejectedUpdate: ``not-finite``.
            RunFailed: Too few sites for its settings.
        """
        ...


@runtime_checkable
class ServerOptimizer(Protocol):
    """Turns the aggregated update into new parameters. Pure: arguments are never written to."""

    def init(self, params: Arrays) -> Arrays:
        """The state before the first round, as arrays that can be checkpointed; may be empty."""
        ...

    def apply(self, state: Arrays, params: Arrays, update: Arrays) -> tuple[Arrays, Arrays]:
        """State and parameters after one round.

        Args:
            state: As returned by ``init`` or by the last ``apply``.
            params: The global ``train`` variables.
            update: The aggregated difference, same shapes and dtypes as ``params``.

        Raises:
            RunFailed: A result would not be finite in its variable's dtype.
        """
        ...


@dataclass(frozen=True)
class Strategy:
    """One federated algorithm: what a site minimises, how updates are combined, how the server steps."""

    name: str
    local: LocalObjective
    aggregation: Streaming | CoordinateWise
    server: ServerOptimizer


class Settings(BaseModel, ABC):
    """Base of the settings of one algorithm, under its paper's names; ``build`` gives the algorithm itself."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    name: ClassVar[str]

    @abstractmethod
    def build(self) -> Strategy:
        """The algorithm with these settings."""


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a variable, ``bfloat16`` included."""
    if name == "bfloat16":
        import ml_dtypes

        brain: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return brain
    return np.dtype(name)


def finite_as(array: NDArray[Any], dtype: np.dtype[Any], position: int) -> NDArray[Any]:
    """``array`` in ``dtype``; ``position`` is that among the arrays of the step, for the message.

    Raises:
        RunFailed: A value is not finite in that dtype.
    """
    with np.errstate(over="ignore"):
        cast = np.asarray(array).astype(dtype, copy=False)  # 0-d arithmetic gives scalars
    if not is_finite(cast):
        raise RunFailed(
            f"server optimizer, train variable {position}: expected finite {dtype.name} parameters, got a value "
            "outside its range; lower server_learning_rate, or bound updates with participation.max_update_norm"
        )
    return cast


def is_finite(array: NDArray[Any]) -> bool:
    """Whether no value is NaN or infinite, with scratch of 64 KiB."""
    flat = array.reshape(-1)
    return all(np.isfinite(flat[start : start + _CHUNK]).all() for start in range(0, flat.size, _CHUNK))
