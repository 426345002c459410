"""Reptile: the server steps towards the mean of what the sites trained, so that a few steps adapt the model to a site.

Update rule, in round t with n sites that return x_i after their steps (the batched version, section 2)::

    x_{t+1} = x_t + ε (1/n) Σ_i (x_i - x_t)

ε is ``step_size``. It is FedAvg with every site counting the same, whatever its examples, and a step on the server that
is shorter than the whole way; what makes it learn to adapt is that a site takes several steps in a round, so set
``local_steps`` to 5 or more. The paper lets ε fall to 0 over the run and uses Adam without its first moment at the
sites; here ε is constant, and the sites' optimizer is the job's.

A. Nichol, J. Achiam, J. Schulman: On First-Order Meta-Learning Algorithms. 2018, https://arxiv.org/abs/1803.02999
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from fedretrain.contract import VariableSpec

from .base import Arrays, Settings, Strategy
from .objective import Plain
from .server_optimizer import gradient_descent
from .weighted_mean import MeanState, WeightedMean

MOST_SITES = 1 << 16


@dataclass(frozen=True)
class EvenMean(WeightedMean):
    """The mean of updates that all count the same; of at most ``MOST_SITES``, to within 2^-26 for ``train``."""

    def init(self, specs: Sequence[VariableSpec], total_weight: int) -> MeanState:
        """Zero sums; no more updates than examples can come."""
        return super().init(specs, min(int(total_weight), MOST_SITES))

    def fold(self, state: MeanState, update: Arrays, weight: int, largest: float = math.inf) -> MeanState:  # noqa: ARG002
        """As of ``WeightedMean`` with a weight of 1; ``weight``, the examples, does not count."""
        return super().fold(state, update, 1, largest)


class Reptile(Settings):
    """Settings of Reptile."""

    name: ClassVar[str] = "reptile"
    step_size: float = Field(0.5, gt=0, le=1, description="ε, share of the way to the mean that the server steps")

    def build(self) -> Strategy:
        """Plain local training, even mean, gradient descent on the server."""
        return Strategy(self.name, Plain(), EvenMean(), gradient_descent(self.step_size))
