"""FedYogi: the server steps by Yogi (Reddi et al. 2021; the common part is in ``adaptive``).

    m_t     = β1 m_{t-1} + (1 - β1) Δ_t                               m_{-1} = 0
    v_t     = v_{t-1} - (1 - β2) Δ_t^2 sign(v_{t-1} - Δ_t^2)          v_{-1} = τ^2
    x_{t+1} = x_t + η m_t / (sqrt(v_t) + τ)

v moves by (1 - β2) Δ^2 whatever its own size, so that one round with small updates does not raise the step as fast as
in Adam. v never becomes negative: it is lowered only where it is above Δ^2. Keras has no Yogi.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from .adaptive import Adaptive, AdaptiveSettings
from .base import Strategy
from .objective import Plain
from .weighted_mean import WeightedMean


class FedYogi(AdaptiveSettings):
    """Settings of FedYogi."""

    name: ClassVar[str] = "fedyogi"
    beta_1: float = Field(0.9, ge=0, lt=1, description="β1, decay of the first moment")
    beta_2: float = Field(0.99, ge=0, lt=1, description="β2, decay of the second moment")

    def build(self) -> Strategy:
        """Plain local training, weighted mean, Yogi on the server."""
        server = Adaptive(Signed(self.beta_2), self.server_learning_rate, self.beta_1, self.tau)
        return Strategy(self.name, Plain(), WeightedMean(), server)


@dataclass(frozen=True)
class Signed:
    """Additive moving average of Δ^2."""

    beta_2: float

    def __call__(self, v: NDArray[Any], squared: NDArray[Any]) -> NDArray[Any]:
        """The rule for v in the module's docstring."""
        average: NDArray[Any] = v - (1 - self.beta_2) * squared * np.sign(v - squared)
        return average
