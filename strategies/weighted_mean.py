"""The mean of updates weighted by example counts, exact to the last bit whatever the order of arrival.

For updates v_i with integer weights w_i (McMahan et al. 2017: the examples of site i), coordinate by coordinate::

    sum  = Σ_i round(v_i · w_i · 2^s)            64-bit integers: addition is associative, so order cannot matter
    mean = sum / (2^s · Σ_i w_i)                 in float64, then rounded to the variable's dtype
    s    = 62 - b - bits(W)                      W ≥ Σ_i w_i is fixed before the first reply; bits(W) = ⌊log2 W⌋ + 1

Overflow is impossible: |v_i| ≤ 2^b is checked, so |sum| ≤ 2^b · W · 2^s + n/2 < 2^62 + n/2 for n updates.

Bound: b = 20 for ``train`` variables and auxiliaries (|v| ≤ 1,048,576) and b = 32 for ``average`` variables
(|v| ≤ 4.29·10^9), whose variances grow with the square of raw inputs. An update beyond it is rejected, code ``norm``.

Resolution: rounding to integers moves the mean by at most n · 2^(-s-1) / Σ w_i. Where everyone who was asked replies,
that is at most n · 2^(b-62): 2.3·10^-13 per site for ``train``, 9.3·10^-10 for ``average``; it grows by W / Σ w_i where
sites stay away, and ``finish`` refuses from 65,536 on. Float64 arithmetic adds at most 2^-51 · max |v_i|. Added to a
float16, bfloat16 or float32 parameter of usual size this is below the parameter's own rounding; a float64 variable
gets this absolute resolution and not its full 53 bits.

Memory: one int64 array per variable, one update that waits, and scratch of 1 MiB: three models of float32.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas: Communication-Efficient Learning of Deep Networks
from Decentralized Data. AISTATS 2017, https://arxiv.org/abs/1602.05629
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.contract import VariableSpec
from fedretrain.errors import RejectedUpdate, RunFailed

from . import kernels
from .base import Arrays, numpy_dtype

BOUND_BITS = {"train": 20, "average": 32, "auxiliary": 20}
_MOST_MISSING_BITS = 16


@dataclass(frozen=True)
class Waiting:
    """An update, flat and within the bounds, that is added together with the next: the sums are read once for two."""

    arrays: Arrays
    weight: int


@dataclass(frozen=True)
class MeanState:
    """Sums so far: int64 arrays of the variables' shapes, scaled by ``2**exponents[i]``; ``weight`` of ``total``.

    ``weight`` counts the update that waits, too.
    """

    specs: tuple[VariableSpec, ...]
    sums: tuple[NDArray[np.int64], ...]
    exponents: tuple[int, ...]
    total: int
    weight: int = 0
    waiting: Waiting | None = None


@dataclass(frozen=True)
class WeightedMean:
    """Streaming aggregation; see the module docstring for the numbers."""

    def init(self, specs: Sequence[VariableSpec], total_weight: int) -> MeanState:
        """Zero sums; ``specs`` are of arrays that travel, ``total_weight`` >= 1 bounds the weights to come."""
        return MeanState(
            specs=tuple(specs),
            sums=tuple(np.zeros(spec.shape, np.int64) for spec in specs),
            exponents=tuple(62 - BOUND_BITS[spec.rule] - int(total_weight).bit_length() for spec in specs),
            total=int(total_weight),
        )

    def fold(self, state: MeanState, update: Arrays, weight: int, largest: float = math.inf) -> MeanState:
        """Add ``weight`` times ``update`` to the sums, in place, or keep it for the next; nothing is when it raises.

        Raises:
            RejectedUpdate: ``examples`` for a weight below 1 or above what ``total_weight`` left over, ``variables``,
                ``shape`` or ``dtype`` for arrays that are not those of the specs, ``not-finite``, or ``norm`` for a
                value beyond the bound.
        """
        _check_weight(state, weight)
        _check_form(state.specs, update)
        arrived = Waiting([values.reshape(-1) for values in update], weight)
        if state.waiting is None:
            for i, values in enumerate(arrived.arrays):
                bound = _bound(state.specs[i])
                counted = state.specs[i].rule != "auxiliary"  # in the norm
                known = counted and largest <= bound / 2  # a norm is rounded
                if not known and not kernels.choose(values).within(values, bound):
                    raise _refusal(state.specs[i], values, i)
            return dataclasses.replace(state, weight=state.weight + weight, waiting=arrived)
        for i, values in enumerate(arrived.arrays):
            if not _add_two(state, state.waiting, arrived, i):
                for j in range(i):
                    _add_two(state, state.waiting, arrived, j, sign=-1)
                raise _refusal(state.specs[i], values, i)
        return dataclasses.replace(state, weight=state.weight + weight, waiting=None)

    def settle(self, state: MeanState) -> MeanState:
        """The update that waits, if one does, added to the sums."""
        if state.waiting is None:
            return state
        for i, total in enumerate(state.sums):
            term = _term(state, state.waiting, i)
            kernels.choose(term.values).add(total.reshape(-1), term, _bound(state.specs[i]))
        return dataclasses.replace(state, waiting=None)

    def merge(self, state: MeanState, other: MeanState) -> MeanState:
        """Add another state's sums and weight; integer sums, so that how updates were grouped cannot matter.

        Raises:
            RunFailed: Begun with other specs or another total weight, or more weight than that together.
        """
        if (other.specs, other.total) != (state.specs, state.total) or state.weight + other.weight > state.total:
            raise RunFailed(
                f"aggregation: expected sums of the same variables for up to {state.total - state.weight} more "
                f"examples, got {len(other.specs)} arrays for {other.weight} of {other.total}"
            )
        state, other = self.settle(state), self.settle(other)
        for total, more in zip(state.sums, other.sums, strict=True):
            np.add(total, more, out=total)
        return dataclasses.replace(state, weight=state.weight + other.weight)

    def finish(self, state: MeanState) -> Arrays:
        """The mean, in shape and dtype of the specs.

        Raises:
            RunFailed: Nothing was folded, or so little of what was declared that the resolution is lost.
        """
        if state.weight == 0:
            raise RunFailed("aggregation: expected at least one admitted update, got none")
        if state.total > state.weight << _MOST_MISSING_BITS:
            raise RunFailed(
                f"aggregation: the sites asked declared {state.total} examples, updates for {state.weight} arrived; "
                "leave out the site that declares far more than it sends"
            )
        state = self.settle(state)
        means = [np.empty(spec.shape, numpy_dtype(spec.dtype)) for spec in state.specs]
        for total, mean, exponent in zip(state.sums, means, state.exponents, strict=True):
            divisor = math.ldexp(float(state.weight), exponent)
            kernels.choose(mean).divide(total.reshape(-1), divisor, mean.reshape(-1))
        return means


def _add_two(state: MeanState, first: Waiting, second: Waiting, i: int, sign: int = 1) -> bool:
    """Array ``i`` of both; a sign of -1 takes back what was added, since rounding is symmetric."""
    kernel = kernels.choose(second.arrays[i])
    terms = (_term(state, first, i, sign), _term(state, second, i, sign))
    return kernel.add_two(state.sums[i].reshape(-1), *terms, _bound(state.specs[i]))


def _term(state: MeanState, update: Waiting, i: int, sign: int = 1) -> kernels.Term:
    return kernels.Term(update.arrays[i], math.ldexp(float(sign * update.weight), state.exponents[i]))


def _check_weight(state: MeanState, weight: int) -> None:
    left = state.total - state.weight
    if not 1 <= weight <= left:
        raise RejectedUpdate(
            "examples", f"expected a count from 1 to {left}, what is left of those declared; got {weight}"
        )


def _check_form(specs: Sequence[VariableSpec], update: Arrays) -> None:
    """Number, shapes and dtypes."""
    if len(update) != len(specs):
        raise RejectedUpdate("variables", f"expected {len(specs)} arrays, got {len(update)}")
    for position, (spec, values) in enumerate(zip(specs, update, strict=True)):
        if values.shape != spec.shape:
            raise RejectedUpdate("shape", f"array {position}: expected {spec.shape}, got {values.shape}")
        if values.dtype != numpy_dtype(spec.dtype):
            raise RejectedUpdate("dtype", f"array {position}: expected {spec.dtype}, got {values.dtype.name}")


def _refusal(spec: VariableSpec, values: NDArray[Any], position: int) -> RejectedUpdate:
    """Why a value of an array is not within the bound."""
    peak = kernels.peak(values)
    if not math.isfinite(peak):
        return RejectedUpdate("not-finite", f"array {position}: expected finite values, got NaN or infinity")
    return RejectedUpdate(
        "norm",
        f"array {position}: expected values within ±{_bound(spec):.0f} for {spec.rule!r} variables, got {peak:g}",
    )


def _bound(spec: VariableSpec) -> float:
    return math.ldexp(1.0, BOUND_BITS[spec.rule])
