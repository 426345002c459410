"""What suppression and noise leave of a count: an interval, and a variance.

A count that a site keeps to itself lies in [0, min_count). A question is therefore asked twice: of the reading of the
suppressed counts in which both windows are most alike, and of the one in which they are least alike. Only what holds
in the first is drift, and only what holds in the second is no drift.

A site with ``noise.epsilon`` adds discrete Laplace noise to every count, P(k) proportional to exp(-epsilon |k|)
(Ghosh, Roughgarden, Sundararajan, STOC 2009), whose variance is 2 a / (1 - a)^2 with a = exp(-epsilon).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
Counts = Sequence[int | None]


@dataclass(frozen=True, eq=False)
class Pair:
    """The counts of one site in both windows, cell by cell.

    Attributes:
        reference: float64 [2, B]: the least and the most that each count can be.
        recent: Likewise.
        noise: Variance of the noise on each count, of either window.
    """

    reference: Floats
    recent: Floats
    noise: float

    @property
    def suppressed(self) -> bool:
        """Whether any count is an interval."""
        return bool((self.reference[0] < self.reference[1]).any() or (self.recent[0] < self.recent[1]).any())


def pair(reference: Counts, recent: Counts, min_count: int, epsilon: float | None) -> Pair:
    """Counts as a site gives them, None where suppressed, with what it says of suppression and noise."""
    return Pair(interval(reference, min_count), interval(recent, min_count), noise_variance(epsilon))


def interval(counts: Counts, min_count: int) -> Floats:
    """The least and the most that each count can be, float64 [2, B]."""
    low = [0 if c is None else c for c in counts]
    high = [max(min_count - 1, 0) if c is None else c for c in counts]
    return np.array([low, high], np.float64)


def noise_variance(epsilon: float | None) -> float:
    """Variance of the discrete Laplace noise on one count; 0 without noise."""
    if epsilon is None:
        return 0.0
    a = math.exp(-epsilon)
    return 2 * a / (1 - a) ** 2


def most_alike(counts: Pair) -> tuple[Floats, Floats]:
    """Reference and recent counts, float64 [B] each, with suppressed ones as near to proportion as they can be."""
    reference, recent = counts.reference.mean(axis=0), counts.recent.mean(axis=0)
    if not counts.suppressed:
        return reference, recent
    for _ in range(3):  # the totals follow the reading, which follows the totals
        ratio = _ratio(reference, recent)
        recent = np.clip(reference * ratio, *counts.recent)
        reference = np.clip(recent / ratio, *counts.reference)
    return reference, recent


def least_alike(counts: Pair) -> tuple[Floats, Floats]:
    """Likewise, with suppressed ones as far from proportion as they can be."""
    ratio = _ratio(*most_alike(counts))
    more = counts.recent[1] - counts.reference[0] * ratio
    fewer = counts.reference[1] * ratio - counts.recent[0]
    rises = more >= fewer
    reference = np.where(rises, counts.reference[0], counts.reference[1])
    return reference, np.where(rises, counts.recent[1], counts.recent[0])


def _ratio(reference: Floats, recent: Floats) -> float:
    """Recent examples for each reference example; 1 where there are none of either."""
    n, m = float(reference.sum()), float(recent.sum())
    return m / n if n > 0 and m > 0 else 1.0
