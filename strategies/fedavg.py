"""FedAvg: the sites' updates averaged by their example counts.

Update rule, in round t with sites i that hold n_i examples and return x_i::

    Δ_t     = Σ_i n_i (x_i - x_t) / Σ_i n_i
    x_{t+1} = x_t + η Δ_t

x_t are the global parameters, η is ``server_learning_rate``; 1 is the paper's x_{t+1} = Σ_i n_i x_i / Σ_i n_i, any
other value is Algorithm 1 of Reddi et al. (2021) with gradient descent on the server, stepped by Keras' SGD.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas: Communication-Efficient Learning of Deep Networks
from Decentralized Data. AISTATS 2017, https://arxiv.org/abs/1602.05629
"""

from typing import ClassVar

from pydantic import Field

from .base import Settings, Strategy
from .objective import Plain
from .server_optimizer import gradient_descent
from .weighted_mean import WeightedMean


class FedAvg(Settings):
    """Settings of FedAvg."""

    name: ClassVar[str] = "fedavg"
    server_learning_rate: float = Field(1.0, gt=0, description="η, factor on the averaged update")

    def build(self) -> Strategy:
        """Plain local training, weighted mean, gradient descent on the server."""
        return Strategy(self.name, Plain(), WeightedMean(), gradient_descent(self.server_learning_rate))
