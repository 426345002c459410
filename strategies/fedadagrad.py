"""FedAdagrad: the server steps by Adagrad (Reddi et al. 2021; the common part is in ``adaptive``).

    v_t     = v_{t-1} + Δ_t^2                    v_{-1} = τ^2
    x_{t+1} = x_t + η m_t / (sqrt(v_t) + τ)

with m_t = β1 m_{t-1} + (1 - β1) Δ_t. The paper's experiments use β1 = 0, so that m_t = Δ_t; it is the default here.

Keras' Adagrad differs, which is why it is not used: it divides by sqrt(v + ε) with ε inside the root where τ stands
beside it, starts its accumulator at 0.1 (``initial_accumulator_value``) and not at τ^2, and knows no momentum.
"""

from typing import Any, ClassVar

from numpy.typing import NDArray
from pydantic import Field

from .adaptive import Adaptive, AdaptiveSettings
from .base import Strategy
from .objective import Plain
from .weighted_mean import WeightedMean


class FedAdagrad(AdaptiveSettings):
    """Settings of FedAdagrad."""

    name: ClassVar[str] = "fedadagrad"
    beta_1: float = Field(0.0, ge=0, lt=1, description="β1, decay of the first moment; the paper uses 0")

    def build(self) -> Strategy:
        """Plain local training, weighted mean, Adagrad on the server."""
        server = Adaptive(_add, self.server_learning_rate, self.beta_1, self.tau)
        return Strategy(self.name, Plain(), WeightedMean(), server)


def _add(v: NDArray[Any], squared: NDArray[Any]) -> NDArray[Any]:
    total: NDArray[Any] = v + squared
    return total
