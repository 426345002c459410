"""``kernels.Kernels`` compiled by numba for float32 and float64. Import it through ``kernels.compiled`` alone.

Importing takes most of a second, the first use on a machine some seconds more. No fast-math: a product, its rounding
and a quotient are those of IEEE 754, so the bits are NumPy's on every processor.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from .kernels import NUMPY, Sums, Term, Values

_compile: Callable[..., Any] = partial(numba.njit, nogil=True, error_model="numpy")

_WIDTH = 256  # columns whose products are added while they are in the processor's cache


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled at its first call; kept on disk where there is a folder for it."""
    try:
        compiled: Callable[..., Any] = _compile(cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        compiled = _compile()(function)
    return compiled


@_jit
def _within(values: Any, bound: float) -> bool:
    beyond = 0
    for i in range(values.size):
        beyond |= not abs(values[i]) <= bound
    return beyond == 0


@_jit
def _add(sums: Any, values: Any, factor: float, bound: float) -> bool:
    """What is beyond the bound counts as 0: its conversion to an integer would be undefined."""
    beyond = 0
    for i in range(sums.size):
        value = np.float64(values[i])
        fits = abs(value) <= bound
        beyond |= not fits
        sums[i] += np.int64(np.rint((value if fits else 0.0) * factor))
    return beyond == 0


@_jit
def _add_two(sums: Any, values: Any, factors: Any, bound: float) -> bool:
    first, second = values
    first_factor, second_factor = factors
    beyond = 0
    for i in range(sums.size):
        value = np.float64(second[i])
        fits = abs(value) <= bound
        beyond |= not fits
        added = np.int64(np.rint(np.float64(first[i]) * first_factor))
        sums[i] += added + np.int64(np.rint((value if fits else 0.0) * second_factor))
    return beyond == 0


@_jit
def _divide(sums: Any, divisor: float, into: Any) -> None:
    for i in range(sums.size):
        into[i] = np.float64(sums[i]) / divisor


@_jit
def _sort_rows(block: Any, pairs: Any) -> None:
    for pair in range(pairs.shape[0]):
        low, high = block[pairs[pair, 0]], block[pairs[pair, 1]]
        for i in range(low.size):
            first, second = low[i], high[i]
            low[i] = first if first < second else second
            high[i] = second if first < second else first


@_jit
def _add_products(products: Any, block: Any, columns: Any) -> None:
    """``columns`` [width, sites] is scratch; four columns at a time, added one after the other."""
    width, sites = columns.shape
    for start in range(0, block.shape[1], width):
        columns[:] = 0.0
        for i in range(sites):
            for k in range(min(width, block.shape[1] - start)):
                columns[k, i] = block[i, start + k]
        for k in range(0, width, 4):
            c0, c1, c2, c3 = columns[k], columns[k + 1], columns[k + 2], columns[k + 3]
            for i in range(sites):
                a0, a1, a2, a3 = c0[i], c1[i], c2[i], c3[i]
                row = products[i]
                for j in range(i + 1):
                    row[j] = (((row[j] + a0 * c0[j]) + a1 * c1[j]) + a2 * c2[j]) + a3 * c3[j]


class NumbaKernels:
    """See ``kernels.Kernels``. Rounding is symmetric: adding with the negative factor takes back what was added."""

    def within(self, values: Values, bound: float) -> bool:
        """See ``Kernels``."""
        return bool(_within(_plain(values), bound))

    def add(self, sums: Sums, term: Term, bound: float) -> bool:
        """See ``Kernels``."""
        values = _plain(term.values)
        if _add(sums, values, term.factor, bound):
            return True
        _add(sums, values, -term.factor, bound)
        return False

    def add_two(self, sums: Sums, waiting: Term, arrived: Term, bound: float) -> bool:
        """See ``Kernels``."""
        first, second = _plain(waiting.values), _plain(arrived.values)
        if _add_two(sums, (first, second), (waiting.factor, arrived.factor), bound):
            return True
        _add_two(sums, (first, second), (-waiting.factor, -arrived.factor), bound)
        return False

    def divide(self, sums: Sums, divisor: float, into: Values) -> None:
        """See ``Kernels``."""
        if into.dtype.itemsize < 4:
            NUMPY.divide(sums, divisor, into)
        else:
            _divide(sums, divisor, into)

    def sort_rows(self, block: Values, pairs: NDArray[np.int64]) -> Sequence[Values]:
        """See ``Kernels``."""
        _sort_rows(block, pairs)
        return list(block)

    def add_products(self, products: NDArray[np.float64], block: Values) -> None:
        """See ``Kernels``."""
        plain = _plain(block if block.dtype.itemsize >= 4 else block.astype(np.float32))
        _add_products(products, plain, np.empty((_WIDTH, len(block))))


def _plain(values: Values) -> Values:
    """Aligned, contiguous and read-only: one type to compile for, whatever arrived."""
    plain = np.require(values, requirements=["C", "A"]).view()
    plain.setflags(write=False)
    return plain
