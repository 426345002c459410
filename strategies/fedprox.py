"""FedProx: FedAvg whose sites are held near the global model by a proximal term.

In round t a site with loss F_i minimises, from the global parameters x_t::

    h_i(x) = F_i(x) + (μ/2) ‖x - x_t‖²

The norm runs over the trainable variables, μ is ``mu``; 0 gives FedAvg. Updates are combined as in FedAvg, weighted by
example counts: the paper samples sites with probability n_i / n and averages evenly, which has the same expectation.

As a strategy ("fedprox"), or as an objective beside any other strategy ("proximal").

T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith: Federated Optimization in Heterogeneous Networks.
MLSys 2020, https://arxiv.org/abs/1812.06127
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from fedretrain.errors import ConfigurationError
from fedretrain.job import NamedConfig

from .base import Settings, Strategy
from .objective import Batch, Given, LocalObjective, ObjectiveSettings, Plain
from .server_optimizer import Sum
from .weighted_mean import WeightedMean

_MU = "μ, weight of the proximal term; the paper uses 0.001 to 1"


@dataclass(frozen=True)
class Proximal(LocalObjective):
    """The proximal term as a local objective."""

    groups: ClassVar[tuple[str, ...]] = ("received",)
    mu: float

    def penalty(self, variables: Sequence[Any], given: Given, batch: Batch) -> Any | None:  # noqa: ARG002
        """(μ/2) Σ (variable - received)², a float32 scalar; None where there are no variables."""
        total = squared_distance(variables, given["received"])
        return None if total is None else self.mu / 2 * total


class FedProx(Settings):
    """Settings of FedProx."""

    name: ClassVar[str] = "fedprox"
    mu: float = Field(0.01, ge=0, description=_MU)

    def build(self) -> Strategy:
        """Proximal local training, weighted mean, sum."""
        return Strategy(self.name, proximal(self.mu), WeightedMean(), Sum())


class ProximalSettings(ObjectiveSettings):
    """Settings of the proximal term as an objective."""

    name: ClassVar[str] = "proximal"
    mu: float = Field(0.01, ge=0, description=_MU)

    def build(self) -> LocalObjective:
        """The proximal term."""
        return proximal(self.mu)


def proximal(mu: float) -> LocalObjective:
    """The term with weight ``mu``; nothing where that is 0."""
    return Proximal(float(mu)) if mu else Plain()


def own_mu(config: NamedConfig) -> float:
    """μ of a strategy written for Flower; raises ConfigurationError where it is no number of at least 0."""
    mu = config.settings.get("proximal_mu", 0.0)
    if isinstance(mu, bool) or not isinstance(mu, int | float) or not 0 <= mu < float("inf"):
        raise ConfigurationError(f"strategy.proximal_mu: expected a number of at least 0, got {mu!r}")
    return float(mu)


def squared_distance(variables: Sequence[Any], anchors: Sequence[Any]) -> Any | None:
    """Σ (variable - anchor)² over all values, a float32 scalar; None where there are no variables."""
    if not variables:
        return None
    from keras import ops

    squares = [
        ops.sum(ops.square(ops.subtract(ops.cast(x, "float32"), ops.cast(anchor, "float32"))))
        for x, anchor in zip(variables, anchors, strict=True)
    ]
    return sum(squares[1:], start=squares[0])
