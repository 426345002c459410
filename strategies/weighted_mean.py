"""The mean of updates weighted by example counts, exact to the last bit whatever the order of arrival.

For updates v_i with integer weights w_i (McMahan et al. 2017: the examples of site i), coordinate by coordinate::

    sum  = Σ_i round(v_i · w_i · 2^s)            64-bit integers: addition is associative, so order cannot matter
    mean = sum / (2^s · Σ_i w_i)                 in float64, then rounded to the variable's dtype
    s    = 62 - b - bits(W)                      W ≥ Σ_i w_i is fixed before the first reply; bits(W) = ⌊log2 W⌋ + 1

Overflow is impossible: |v_i| ≤ 2^b is checked, so |sum| ≤ 2^b · W · 2^s + n/2 < 2^62 + n/2 for n updates.

Bound: b = 20 for ``train`` variables (|v| ≤ 1,048,576) and b = 32 for ``average`` ones (|v| ≤ 4.29·10^9), whose
variances grow with the square of raw inputs. An update beyond it is rejected with code ``norm``.

Resolution: rounding to integers moves the mean by at most n · 2^(-s-1) / Σ w_i. Where everyone who was asked replies,
that is at most n · 2^(b-62): 2.3·10^-13 per site for ``train``, 9.3·10^-10 for ``average``; it grows by W / Σ w_i where
sites stay away, and ``finish`` refuses from 65,536 on. Float64 arithmetic adds at most 2^-51 · max |v_i|. Added to a
float16, bfloat16 or float32 parameter of usual size this is below the parameter's own rounding; a float64 variable
gets this absolute resolution and not its full 53 bits.

Memory: one int64 array per variable, and scratch of 1 MiB.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas: Communication-Efficient Learning of Deep Networks
from Decentralized Data. AISTATS 2017, https://arxiv.org/abs/1602.05629
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.contract import VariableSpec
from fedretrain.errors import RejectedUpdate, RunFailed

from .base import Arrays, numpy_dtype

BOUND_BITS = {"train": 20, "average": 32}
_MOST_MISSING_BITS = 16
_CHUNK = 1 << 16  # values per step: the scratch stays in the processor's cache


@dataclass(frozen=True)
class MeanState:
    """Sums so far: int64 arrays of the variables' shapes, scaled by ``2**exponents[i]``; ``weight`` of ``total``."""

    specs: tuple[VariableSpec, ...]
    sums: tuple[NDArray[np.int64], ...]
    exponents: tuple[int, ...]
    total: int
    weight: int = 0


@dataclass(frozen=True)
class WeightedMean:
    """Streaming aggregation; see the module docstring for the numbers."""

    def init(self, specs: Sequence[VariableSpec], total_weight: int) -> MeanState:
        """Zero sums; ``specs`` have rule ``train`` or ``average``, ``total_weight`` >= 1 bounds the weights to come."""
        return MeanState(
            specs=tuple(specs),
            sums=tuple(np.zeros(spec.shape, np.int64) for spec in specs),
            exponents=tuple(62 - BOUND_BITS[spec.rule] - int(total_weight).bit_length() for spec in specs),
            total=int(total_weight),
        )

    def fold(self, state: MeanState, update: Arrays, weight: int) -> MeanState:
        """Add ``weight`` times ``update`` to the sums, in place; nothing is added when it raises.

        Raises:
            RejectedUpdate: ``examples`` for a weight below 1 or above what ``total_weight`` left over, ``variables``,
                ``shape`` or ``dtype`` for arrays that are not those of the specs, ``not-finite``, or ``norm`` for a
                value beyond the bound.
        """
        _check_weight(state, weight)
        _check(state.specs, update)
        for total, values, exponent in zip(state.sums, update, state.exponents, strict=True):
            _accumulate(total.reshape(-1), values.reshape(-1), math.ldexp(float(weight), exponent))
        return dataclasses.replace(state, weight=state.weight + weight)

    def settle(self, state: MeanState) -> MeanState:
        """``state``: nothing waits."""
        return state

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
        return [
            _quotient(total, math.ldexp(float(state.weight), exponent), numpy_dtype(spec.dtype))
            for total, exponent, spec in zip(state.sums, state.exponents, state.specs, strict=True)
        ]


def _check_weight(state: MeanState, weight: int) -> None:
    left = state.total - state.weight
    if not 1 <= weight <= left:
        raise RejectedUpdate(
            "examples", f"expected a count from 1 to {left}, what is left of those declared; got {weight}"
        )


def _check(specs: Sequence[VariableSpec], update: Arrays) -> None:
    """Everything that could stop an update half way, before anything is added."""
    if len(update) != len(specs):
        raise RejectedUpdate("variables", f"expected {len(specs)} arrays, got {len(update)}")
    for position, (spec, values) in enumerate(zip(specs, update, strict=True)):
        if values.shape != spec.shape:
            raise RejectedUpdate("shape", f"array {position}: expected {spec.shape}, got {values.shape}")
        if values.dtype != numpy_dtype(spec.dtype):
            raise RejectedUpdate("dtype", f"array {position}: expected {spec.dtype}, got {values.dtype.name}")
        bound = math.ldexp(1.0, BOUND_BITS[spec.rule])
        peak = _peak(values)
        if not math.isfinite(peak):
            raise RejectedUpdate("not-finite", f"array {position}: expected finite values, got NaN or infinity")
        if peak > bound:
            raise RejectedUpdate(
                "norm",
                f"array {position}: expected values within ±{bound:.0f} for {spec.rule!r} variables, got {peak:g}",
            )


def _chunks(size: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK))


def _peak(values: NDArray[Any]) -> float:
    """The greatest absolute value, NaN where there is one, 0 for an empty array."""
    if values.size == 0:
        return 0.0
    with np.errstate(invalid="ignore"):  # NaN is what is looked for
        return float(np.maximum(np.abs(np.float64(values.max())), np.abs(np.float64(values.min()))))


def _accumulate(total: NDArray[np.int64], values: NDArray[Any], factor: float) -> None:
    """``total += round(values * factor)``, both flat."""
    products, integers = np.empty(min(_CHUNK, values.size)), np.empty(min(_CHUNK, values.size), np.int64)
    for part in _chunks(values.size):
        product, integer = products[: part.stop - part.start], integers[: part.stop - part.start]
        product[...] = values[part]
        np.multiply(product, factor, out=product)
        np.rint(product, out=product)
        np.copyto(integer, product, casting="unsafe")
        total[part] += integer


def _quotient(total: NDArray[np.int64], divisor: float, dtype: np.dtype[Any]) -> NDArray[Any]:
    """``total / divisor`` in ``dtype``."""
    result = np.empty(total.shape, dtype)
    flat, into = total.reshape(-1), result.reshape(-1)
    for part in _chunks(flat.size):
        into[part] = (flat[part] / divisor).astype(dtype)
    return result
