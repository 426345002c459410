"""FedAvg: the sites' updates averaged by their example counts.

Update rule, in round t with sites i that hold n_i examples and return x_i::

    Δ_t     = Σ_i n_i (x_i - x_t) / Σ_i n_i
    x_{t+1} = x_t + η Δ_t

x_t are the global parameters, η is ``server_learning_rate``; 1 is the paper's x_{t+1} = Σ_i n_i x_i / Σ_i n_i.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas: Communication-Efficient Learning of Deep Networks
from Decentralized Data. AISTATS 2017, https://arxiv.org/abs/1602.05629
"""

from typing import ClassVar

from .base import Plain, Settings, Strategy
from .server_optimizer import Sum
from .weighted_mean import WeightedMean


class FedAvg(Settings):
    """Settings of FedAvg."""

    name: ClassVar[str] = "fedavg"

    def build(self) -> Strategy:
        """Plain local training, weighted mean, sum."""
        return Strategy(self.name, Plain(), WeightedMean(), Sum())
