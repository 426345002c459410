"""What of a count may leave: small ones are withheld, and noise is added where the site's policy wants it.

Without noise a count from 1 to ``least`` - 1 is -1. A single such cell of a table could be found as what is missing to
the number of examples; so an empty cell of the table is made -1 with it, where there is one: either may be the one
that is not empty. Where there is none, subtraction still finds the cell. A table in which every other cell is large
says that much by its total, and only noise prevents it.

With noise every count c becomes c + X, where X is discrete Laplace::

    P(X = k) = (1 - e^-epsilon) / (1 + e^-epsilon) e^(-epsilon |k|)

(Ghosh, Roughgarden, Sundararajan, Universally utility-maximizing privacy mechanisms, STOC 2009), drawn exactly, in
whole numbers alone (Canonne, Kamath, Steinke, The discrete Gaussian for differential privacy, NeurIPS 2020, algorithms
1 and 2). What comes out below 1 is told as 0, and from 1 to ``least`` - 1 as -1, looking at the noisy count alone: what
is done to it afterwards makes no guarantee weaker.

What epsilon stands for: adding or removing one example changes one cell of one table by one (the sum of confidences by
up to a thousand thousandths; its noise is as much wider). So each *table* is epsilon-differentially private for one
example. An example is in many tables of a check, once in each: in one histogram for each feature, and in those of
labels (once for each label it has), predictions, confusion, confidence, its sum, right and labelled, age, and quality.
A check as a whole spends epsilon times the number of these tables, and checks add up. A person with several examples
counts several times.

Noise is drawn from a key of the site's own, what the table is about, and its true counts. So the same table has the
same noise whoever asks, however often: asking again does not average it away.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
_BLOCK = 4096  # bytes of random numbers drawn at a time


@dataclass(frozen=True)
class Guard:
    """A site's rules for counts.

    Attributes:
        least: The smallest count that leaves.
        epsilon: Of the noise on each count; None: none is added.
        key: Secret of the site that noise is drawn from.
    """

    least: int
    epsilon: float | None = None
    key: bytes = field(default=b"", repr=False)

    def told(self, counts: Counts, *about: str, unit: int = 1) -> Counts:
        """A table of counts as it may leave, with -1 in cells that are withheld.

        Args:
            counts: Not negative, of one axis or two (one table either way).
            about: What the table is of: field, subject, window.
            unit: How much one example adds to a cell.
        """
        if self.epsilon is None:
            return counts if unit > 1 else hidden(counts, self.least)
        noisy = np.maximum(counts + self.noise(counts, *about, unit=unit), 0)
        return noisy if unit > 1 else np.where((noisy > 0) & (noisy < self.least), -1, noisy)

    def count(self, value: int, *about: str) -> int:
        """A single count as it may leave; -1 where it is withheld."""
        if self.epsilon is None:
            return -1 if 0 < value < self.least else value
        return int(self.told(np.array([value], np.int64), *about)[0])

    def noise(self, counts: Counts, *about: str, unit: int = 1) -> Counts:
        """Noise for each cell of a table."""
        rate = Fraction(self.epsilon or 0).limit_denominator(1000) / unit
        said = "\0".join([*about, str(counts.shape), str(rate)]).encode()
        seed = hashlib.blake2b(said + counts.astype("<i8").tobytes(), key=self.key, digest_size=32).digest()
        drawn = _Draws(seed)
        return np.array([laplace(drawn, rate) for _ in range(counts.size)], np.int64).reshape(counts.shape)


def hidden(counts: Counts, least: int) -> Counts:
    """The table with -1 in place of 1 to ``least`` - 1, and of one empty cell where that would be alone in its line.

    A line is the table's only axis; of two axes each row and each column.
    """
    withheld = (counts > 0) & (counts < least)
    table = np.atleast_2d(withheld).copy()
    empty = np.atleast_2d(counts == 0)
    lines = (table, table.T) if counts.ndim == 2 else (table,)
    changed = True
    while changed:
        changed = False
        for cells, zeros in zip(lines, (empty, empty.T), strict=False):
            for line in np.flatnonzero(cells.sum(axis=1) == 1):
                free = np.flatnonzero(zeros[line] & ~cells[line])
                if len(free):
                    cells[line, free[0]] = changed = True
    return np.where(table.reshape(counts.shape), -1, counts)


def laplace(draws: "_Draws", rate: Fraction) -> int:
    """A number from the discrete Laplace distribution, P(k) proportional to e^(-rate |k|); algorithm 2 of the paper."""
    s, t = rate.numerator, rate.denominator
    while True:
        u = draws.below(t)
        if not _happens(draws, Fraction(u, t)):
            continue
        v = 0
        while _happens(draws, Fraction(1)):
            v += 1
        size = (u + t * v) // s
        negative = draws.below(2) == 1
        if not (negative and size == 0):
            return -size if negative else size


def _happens(draws: "_Draws", gamma: Fraction) -> bool:
    """True with probability e^-gamma, gamma from 0 to 1; algorithm 1 of the paper."""
    k = 1
    while draws.below(gamma.denominator * k) < gamma.numerator:
        k += 1
    return k % 2 == 1


class _Draws:
    """Uniform whole numbers from a seed, by SHAKE-256 over the seed and a counter."""

    def __init__(self, seed: bytes) -> None:
        self._bytes = self._stream(seed)

    def below(self, n: int) -> int:
        """From 0 to ``n`` - 1, each as likely."""
        size = (n - 1).bit_length()
        width = -(-size // 8)
        while True:
            value = int.from_bytes(bytes(next(self._bytes) for _ in range(width))) >> (8 * width - size)
            if value < n:
                return value

    @staticmethod
    def _stream(seed: bytes) -> Iterator[int]:
        block = 0
        while True:
            yield from hashlib.shake_256(seed + block.to_bytes(8)).digest(_BLOCK)
            block += 1
