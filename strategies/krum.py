"""Krum and Multi-Krum (Blanchard et al. 2017): only updates that lie close to most of the others count.

With n sites, of which up to f may send anything, and N_i the n - f - 2 updates nearest to d_i::

    s_i     = Σ_{j in N_i} |d_i - d_j|²
    Δ       = the mean of the m updates with the smallest s_i
    x_{t+1} = x_t + Δ

f = floor(``byzantine`` · n), read as the decimal it is written as; the paper's condition is 2 f + 2 < n. m is ``keep``:
1 is Krum, more is Multi-Krum, and never more than n - f - 2 are kept. Every site counts once: example counts are not
used, as in the paper. Among equal scores the first name is taken. Distances are over all variables that travel.

|d_i - d_j|² = G_ii + G_jj - 2 G_ij with the Gram matrix G = D Dᵀ, summed in float64 coordinate by coordinate, so the
updates are read once, and the bits depend on neither memory nor threads. It costs n² / 2 multiplications a coordinate,
and its relative error is that of float64 times |d_i|² / |d_i - d_j|².

P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer: Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent. NeurIPS 2017, https://papers.nips.cc/paper/6617
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedretrain.errors import RejectedUpdate, RunFailed

from . import kernels
from .base import Strategy
from .coordinates import SpooledSettings, blocks, mean_of, rounded
from .objective import Plain
from .server_optimizer import Sum


@dataclass(frozen=True)
class KrumMean:
    """The aggregation; ``byzantine`` in [0, 1/2), ``keep`` at least 1."""

    byzantine: float
    keep: int
    memory_bytes: int = 1 << 30

    def select(self, pieces: Iterable[NDArray[Any]]) -> list[int]:
        """The rows that are kept, ascending; raises RunFailed for fewer than 2 f + 3 sites."""
        products = gram(pieces)
        sites = len(products)
        bad = int(Fraction(str(self.byzantine)) * sites)
        if sites < 2 * bad + 3:
            raise RunFailed(
                f"strategy krum: expected at least {2 * bad + 3} updates to hold off {bad}, got {sites}; "
                "raise participation.min_sites, or lower strategy.byzantine"
            )
        nearest = sites - bad - 2
        order = np.argsort(scores(products, nearest), kind="stable")
        return sorted(order[: min(self.keep, nearest)].tolist())

    def reduce(self, stack: NDArray[Any], weights: NDArray[Any]) -> NDArray[Any]:  # noqa: ARG002 - unweighted
        """[sites kept, k] -> [k], the mean in float64 rounded to the dtype of ``stack``."""
        result = np.empty(stack.shape[1], stack.dtype)
        for part in blocks(stack):
            result[part] = rounded(mean_of([row[part].astype(np.float64) for row in stack]), stack.dtype)
        return result


def gram(pieces: Iterable[NDArray[Any]]) -> NDArray[np.float64]:
    """The inner products [sites, sites] of the rows of ``pieces`` [sites, k] put beside each other.

    Raises:
        RejectedUpdate: ``not-finite``; also for numbers whose squares float64 cannot hold.
    """
    kernel, total = kernels.compiled(), np.zeros((0, 0))
    with np.errstate(over="ignore", invalid="ignore"):
        for stack in pieces:
            total = total if len(total) else np.zeros((len(stack), len(stack)))
            for part in blocks(stack):
                kernel.add_products(total, stack[:, part])
    if not np.isfinite(total).all():
        raise RejectedUpdate("not-finite", "krum: expected finite values that can be squared, got others")
    return total + np.tril(total, -1).T


def scores(products: NDArray[np.float64], nearest: int) -> NDArray[np.float64]:
    """For every site the sum of its squared distances to the ``nearest`` sites nearest to it."""
    squares = np.diagonal(products)
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0.0)
    np.fill_diagonal(distances, np.inf)
    return np.asarray(np.sort(distances, axis=1)[:, :nearest].sum(axis=1))


class Krum(SpooledSettings):
    """Settings of Krum and Multi-Krum."""

    name: ClassVar[str] = "krum"
    byzantine: float = Field(0.2, ge=0, lt=0.5, description="f / n, share of the sites that may send anything")
    keep: int = Field(1, ge=1, description="m, updates that are averaged; 1 is Krum, more is Multi-Krum")

    def build(self) -> Strategy:
        """Plain local training, Krum, sum."""
        return Strategy(self.name, Plain(), KrumMean(self.byzantine, self.keep, self.memory_bytes), Sum())
