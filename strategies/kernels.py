"""The inner loops of the weighted mean, twice: by NumPy, and by numba at the speed of the memory. Same bits.

numba's import and what it compiles (kept on disk, beside the module or in the user's cache folder) cost about as much
as NumPy needs for ``_WORTH`` values, so a process folds that many by NumPy first: a short run never loads it. Where
numba cannot be loaded NumPy stays. Values of 16 bits are always NumPy's.

All arrays are flat; ``add`` and ``add_two`` are all or nothing.
"""

import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

_WORTH = 1 << 27
_CHUNK = 1 << 16  # values per step of NumPy's: the scratch stays in the processor's cache

Sums = NDArray[np.int64]
Values = NDArray[Any]


class Term(NamedTuple):
    """What is added: ``round(values * factor)``."""

    values: Values
    factor: float


class Kernels(Protocol):
    """One implementation."""

    def within(self, values: Values, bound: float) -> bool:
        """Whether every value is between -bound and bound; NaN is not."""
        ...

    def add(self, sums: Sums, term: Term, bound: float) -> bool:
        """``sums += round(values * factor)``; False, and nothing added, where a value is not within the bound."""
        ...

    def add_two(self, sums: Sums, waiting: Term, arrived: Term, bound: float) -> bool:
        """``add`` of both in one pass; ``waiting`` is known to be within the bound."""
        ...

    def divide(self, sums: Sums, divisor: float, into: Values) -> None:
        """``into = sums / divisor``, in float64 and then rounded."""
        ...

    def sort_rows(self, block: Values, pairs: NDArray[np.int64]) -> Sequence[Values]:
        """The rows of ``block`` [sites, k], every column ascending, in its memory; ``pairs`` is a sorting network."""
        ...

    def add_products(self, products: NDArray[np.float64], block: Values) -> None:
        """Add to ``products`` [sites, sites], on and below the diagonal, those of the rows of ``block`` [sites, k].

        Column after column in float64, so that the bits depend on no library and no number of threads.
        """
        ...


class NumpyKernels:
    """Any dtype, scratch of 1 MiB."""

    def within(self, values: Values, bound: float) -> bool:
        """See ``Kernels``."""
        return peak(values) <= bound

    def add(self, sums: Sums, term: Term, bound: float) -> bool:
        """See ``Kernels``."""
        values, factor = term
        if not peak(values) <= bound:
            return False
        width = min(_CHUNK, values.size)
        products, integers = np.empty(width), np.empty(width, np.int64)
        for part in _chunks(values.size):
            product, integer = products[: part.stop - part.start], integers[: part.stop - part.start]
            product[...] = values[part]
            np.multiply(product, factor, out=product)
            np.rint(product, out=product)
            np.copyto(integer, product, casting="unsafe")
            sums[part] += integer
        return True

    def add_two(self, sums: Sums, waiting: Term, arrived: Term, bound: float) -> bool:
        """See ``Kernels``."""
        return self.add(sums, arrived, bound) and self.add(sums, waiting, bound)

    def divide(self, sums: Sums, divisor: float, into: Values) -> None:
        """See ``Kernels``."""
        for part in _chunks(sums.size):
            into[part] = (sums[part] / divisor).astype(into.dtype)

    def sort_rows(self, block: Values, pairs: NDArray[np.int64]) -> Sequence[Values]:
        """See ``Kernels``."""
        rows, spare = list(block), np.empty(block.shape[1], block.dtype)
        for i, j in pairs.tolist():
            np.minimum(rows[i], rows[j], out=spare)
            np.maximum(rows[i], rows[j], out=rows[j])
            rows[i], spare = spare, rows[i]
        return rows

    def add_products(self, products: NDArray[np.float64], block: Values) -> None:
        """See ``Kernels``; slow."""
        for column in block.astype(np.float64).T:
            products += np.tril(np.outer(column, column))


NUMPY = NumpyKernels()
_lock = threading.Lock()
_folded = 0
_compiled: Kernels | None = None


def choose(values: Values) -> Kernels:
    """The kernels for an array that is to be folded; counts it."""
    global _folded  # noqa: PLW0603 - what a process has done so far
    if values.dtype.itemsize < 4:
        return NUMPY
    _folded += values.size
    return NUMPY if _folded < _WORTH else compiled()


def compiled() -> Kernels:
    """Those of numba, loaded where they are not yet; NumPy's where that is not possible here."""
    global _compiled  # noqa: PLW0603 - loaded once
    with _lock:
        if _compiled is None:
            try:
                from .kernels_numba import NumbaKernels

                _compiled = NumbaKernels()
            except (ImportError, OSError, RuntimeError):  # no LLVM for this machine
                _compiled = NUMPY
        return _compiled


def peak(values: Values) -> float:
    """The greatest absolute value, NaN where there is one, 0 for an empty array."""
    if values.size == 0:
        return 0.0
    with np.errstate(invalid="ignore"):  # NaN is what is looked for
        return float(np.maximum(np.abs(np.float64(values.max())), np.abs(np.float64(values.min()))))


def _chunks(size: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK))
