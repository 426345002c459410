"""FedProx: FedAvg whose sites are held near the global model by a proximal term.

In round t a site with loss F_i minimises, from the global parameters x_t::

    h_i(x) = F_i(x) + (μ/2) ‖x - x_t‖²

The norm runs over the trainable variables, μ is ``mu``; 0 gives FedAvg. Updates are combined as in FedAvg, weighted by
example counts: the paper samples sites with probability n_i / n and averages evenly, which has the same expectation.

T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith: Federated Optimization in Heterogeneous Networks.
MLSys 2020, https://arxiv.org/abs/1812.06127
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from .base import Settings, Strategy
from .server_optimizer import Sum
from .weighted_mean import WeightedMean


@dataclass(frozen=True)
class Proximal:
    """The proximal term as a local objective."""

    mu: float

    def penalty(self, variables: Sequence[Any], anchors: Sequence[Any]) -> Any | None:
        """(μ/2) Σ (variable - anchor)², a float32 scalar; None where μ is 0 or there are no variables."""
        if self.mu == 0 or not variables:
            return None
        from keras import ops

        squares = [
            ops.sum(ops.square(ops.subtract(ops.cast(x, "float32"), ops.cast(x_t, "float32"))))
            for x, x_t in zip(variables, anchors, strict=True)
        ]
        return self.mu / 2 * sum(squares[1:], start=squares[0])


class FedProx(Settings):
    """Settings of FedProx."""

    name: ClassVar[str] = "fedprox"
    mu: float = Field(0.01, ge=0, description="μ, weight of the proximal term; the paper uses 0.001 to 1")

    def build(self) -> Strategy:
        """Proximal local training, weighted mean, sum."""
        return Strategy(self.name, Proximal(self.mu), WeightedMean(), Sum())
