"""What the robust rules share: the updates of all sites beside each other, a block of coordinates at a time.

Sites are sorted coordinate by coordinate in the variables' own precision (16 bits in float32), by a sorting network
whose every step is the minimum and maximum of two whole rows: Batcher's merge exchange, D. Knuth, The Art of Computer
Programming 3, Algorithm 5.2.2M. Scratch is 8 MiB for up to 16,384 sites.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedretrain.errors import RejectedUpdate, RunFailed

from . import kernels
from .base import Settings

_BLOCK = 1 << 20  # values at a time: the scratch stays in the processor's cache
_WIDEST = 1 << 13

Sorted = Sequence[NDArray[Any]]


class SpooledSettings(Settings):
    """What rules that need all updates at once have in common."""

    memory_bytes: int = Field(
        1 << 30,
        ge=1 << 20,
        description="most of the updates held in memory at a time, in bytes; all of them wait on disk",
    )


def width(sites: int) -> int:
    """Coordinates of a block; depends on the number of sites alone, so that no bit depends on the memory there is."""
    return min(_WIDEST, max(64, 1 << (_BLOCK // sites).bit_length() - 1))


def blocks(stack: NDArray[Any]) -> Iterator[slice]:
    """The columns of ``stack`` [sites, k] a block at a time."""
    sites, size = stack.shape
    step = width(sites)
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def reduce_sorted(stack: NDArray[Any], combine: Callable[[Sorted], NDArray[np.float64]]) -> NDArray[Any]:
    """[sites, k] -> [k] in the dtype of ``stack``, whatever the order of sites.

    Args:
        stack: The values.
        combine: From the sites' rows, every coordinate ascending, to its value in float64.

    Raises:
        RejectedUpdate: ``not-finite``; NaN has no place in an order.
        RunFailed: Float64 overflows.
    """
    sites = len(stack)
    wide = np.dtype(np.float32) if stack.dtype.itemsize < 4 else stack.dtype
    scratch, greatest = np.empty(sites * width(sites), wide), float(np.finfo(wide).max)
    result = np.empty(stack.shape[1], stack.dtype)
    for part in blocks(stack):
        block = scratch[: sites * (part.stop - part.start)].reshape(sites, -1)
        block[...] = stack[:, part]
        block += 0.0  # -0.0 and 0.0 compare equal, and would keep the order they came in
        kernel = kernels.choose(block)
        if not kernel.within(block.reshape(-1), greatest):
            raise RejectedUpdate("not-finite", "robust aggregation: expected finite values, got NaN or infinity")
        result[part] = rounded(combine(kernel.sort_rows(block, network(sites))), stack.dtype)
    return result


def mean_of(rows: Sorted) -> NDArray[np.float64]:
    """The mean of rows, added one after the other."""
    total = np.zeros(rows[0].shape)
    with np.errstate(over="ignore", invalid="ignore"):  # rounded() refuses what overflows
        for row in rows:
            np.add(total, row, out=total)
        return np.asarray(total / len(rows))


def rounded(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """``values`` in ``dtype``; raises RunFailed where the sum of float64 numbers near the limit has overflowed."""
    if not np.isfinite(values).all():
        raise RunFailed("robust aggregation: expected a finite mean, got an overflow of float64")
    return values.astype(dtype)


@lru_cache(maxsize=4)
def network(size: int) -> NDArray[np.int64]:
    """Pairs [m, 2] of rows; exchanged in this order where the first is the greater, they sort any ``size`` rows."""
    pairs: list[tuple[int, int]] = []
    top = 1 << (size - 1).bit_length() >> 1
    span = top
    while span:
        offset, kept, distance = top, 0, span
        while distance:
            pairs += [(i, i + distance) for i in range(size - distance) if i & span == kept]
            distance, offset, kept = offset - span, offset >> 1, span
        span >>= 1
    return np.array(pairs, np.int64).reshape(-1, 2)
