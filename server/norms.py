"""The norm rule: how large an update may be, judged by what the other sites' updates measure.

Invariants: every number is computed in float64 and does not depend on the order in which replies arrive or on the
machine's threads; the bound for a round is known before its first update is judged.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.errors import RejectedUpdate

NORM_FACTOR = 10.0  # times the median norm of the others
NORM_FLOOR = 0.01  # share of the global model's norm that is never too much
_CHUNK = 1 << 16  # elements


def norm_bound(previous: Sequence[float], global_norm: float, fixed: float | None) -> float:
    """The largest L2 norm an update may have.

    ``fixed`` where the job gives one (``participation.max_update_norm``), else
    ``max(10 * lower median of previous, 0.01 * max(global_norm, 1))``. The lower of two middle values is taken so
    that one of two sites cannot lift its own bound.
    """
    if fixed is not None:
        return fixed
    median = sorted(previous)[(len(previous) - 1) // 2] if previous else 0.0
    return max(NORM_FACTOR * median, NORM_FLOOR * max(global_norm, 1.0))


def check_norm(norm: float, bound: float) -> None:
    """Raise RejectedUpdate ``norm`` where ``norm`` is above ``bound``."""
    if norm > bound:
        raise RejectedUpdate("norm", f"expected an L2 norm of at most {bound:.6g}, got {norm:.6g}")


def l2_norm(arrays: Sequence[NDArray[Any]]) -> float:
    """Euclidean norm over all elements in float64; NaN or infinite where an element is."""
    return math.sqrt(sum(sum_of_squares(a) for a in arrays))


def sum_of_squares(array: NDArray[Any]) -> float:
    """In chunks that stay in the processor's cache, and pairwise: the bits do not depend on the machine's threads."""
    flat, squares, total = array.reshape(-1), np.empty(min(_CHUNK, array.size)), 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, flat.size, _CHUNK):
            part = squares[: min(_CHUNK, flat.size - start)]
            part[...] = flat[start : start + _CHUNK]
            np.multiply(part, part, out=part)
            total += float(part.sum())
    return total
