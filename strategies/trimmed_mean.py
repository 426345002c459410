"""Coordinate-wise trimmed mean (Yin et al. 2018): for every coordinate the mean without the extremes.

With n sites and c = floor(β n), the values of a coordinate in ascending order d_(1) .. d_(n)::

    Δ = Σ_{j=c+1}^{n-c} d_(j) / (n - 2c),   x_{t+1} = x_t + Δ

β is ``trim``, the share cut at *each* end, in [0, 1/2), read as the decimal it is written as (0.29 of 100 sites is 29).
At least one value stays: n - 2c > n - 2 n/2 = 0. Fewer than 1/β sites are not trimmed at all, and at most c bad sites
are held off: with ``trim = 0.2`` it takes five sites to hold off one. Every site counts once: example counts are not
used, as in the paper.

D. Yin, Y. Chen, K. Ramchandran, P. Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates.
ICML 2018, https://arxiv.org/abs/1803.01498 (Definition 2)
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from numpy.typing import NDArray
from pydantic import Field

from .base import Strategy
from .coordinates import SpooledSettings, mean_of, reduce_sorted
from .objective import Plain
from .server_optimizer import Sum


@dataclass(frozen=True)
class TrimmedMean:
    """The aggregation; ``trim`` in [0, 1/2)."""

    trim: float
    memory_bytes: int = 1 << 30

    def cut(self, sites: int) -> int:
        """How many values are left out at each end."""
        return int(Fraction(str(self.trim)) * sites)

    def reduce(self, stack: NDArray[Any], weights: NDArray[Any]) -> NDArray[Any]:  # noqa: ARG002 - unweighted
        """[sites, k] -> [k], computed in float64 and rounded to the dtype of ``stack``."""
        cut = self.cut(len(stack))
        return reduce_sorted(stack, lambda rows: mean_of(rows[cut : len(rows) - cut]))


class TrimmedMeanSettings(SpooledSettings):
    """Settings of the trimmed mean."""

    name: ClassVar[str] = "trimmed_mean"
    trim: float = Field(0.2, ge=0, lt=0.5, description="β, share of the sites cut at each end of every coordinate")

    def build(self) -> Strategy:
        """Plain local training, trimmed mean, sum."""
        return Strategy(self.name, Plain(), TrimmedMean(self.trim, self.memory_bytes), Sum())
