"""FedAvgM: FedAvg with momentum on the server.

Update rule in round t, with the aggregated update Δ_t of FedAvg::

    u_t     = β u_{t-1} + η Δ_t                  u_{-1} = 0
    x_{t+1} = x_t + u_t

x are the global parameters, β is ``server_momentum``, η ``server_learning_rate``. The paper writes v ← β v + Δ and
x ← x + η v: u is η v, the same number for a constant η (rounded at another place), and the same bits for η = 1. It is
Keras' SGD with momentum on the pseudo-gradient -Δ. The effective step is η / (1 - β) once the momentum has built up.

T.-M. H. Hsu, H. Qi, M. Brown: Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification. 2019, https://arxiv.org/abs/1909.06335
"""

from typing import ClassVar

from pydantic import Field

from .base import Settings, Strategy
from .objective import Plain
from .server_optimizer import gradient_descent
from .weighted_mean import WeightedMean


class FedAvgM(Settings):
    """Settings of FedAvgM."""

    name: ClassVar[str] = "fedavgm"
    server_learning_rate: float = Field(1.0, gt=0, description="η, factor on the averaged update")
    server_momentum: float = Field(0.9, ge=0, lt=1, description="β, share of the last step that is kept")

    def build(self) -> Strategy:
        """Plain local training, weighted mean, gradient descent with momentum on the server."""
        server = gradient_descent(self.server_learning_rate, self.server_momentum)
        return Strategy(self.name, Plain(), WeightedMean(), server)
