"""Coordinate-wise median (Yin et al. 2018): for every coordinate the median of the sites' updates.

    Δ = med{x_i - x_t : i = 1..n},   x_{t+1} = x_t + Δ

For even n the mean of the two middle values. Every site counts once: example counts are not used, as in the paper,
since a count is a claim and a robust rule must not let one site buy weight. Fewer than half of the sites cannot move a
coordinate outside the range of the others. With two sites it is their mean, and holds against nobody.

D. Yin, Y. Chen, K. Ramchandran, P. Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates.
ICML 2018, https://arxiv.org/abs/1803.01498 (Definition 1)
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .base import Strategy
from .coordinates import Sorted, SpooledSettings, reduce_sorted
from .objective import Plain
from .server_optimizer import Sum


@dataclass(frozen=True)
class CoordinateMedian:
    """The aggregation."""

    memory_bytes: int

    def reduce(self, stack: NDArray[Any], weights: NDArray[Any]) -> NDArray[Any]:  # noqa: ARG002 - unweighted
        """[sites, k] -> [k], computed in float64 and rounded to the dtype of ``stack``."""
        return reduce_sorted(stack, _middle)


def _middle(rows: Sorted) -> NDArray[np.float64]:
    lower, upper = (rows[i].astype(np.float64) for i in ((len(rows) - 1) // 2, len(rows) // 2))
    return np.asarray(lower / 2 + upper / 2)


class Median(SpooledSettings):
    """Settings of the coordinate-wise median."""

    name: ClassVar[str] = "median"

    def build(self) -> Strategy:
        """Plain local training, coordinate-wise median, sum."""
        return Strategy(self.name, Plain(), CoordinateMedian(self.memory_bytes), Sum())
