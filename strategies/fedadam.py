"""FedAdam: the server steps by Adam without bias correction (Reddi et al. 2021; the common part is in ``adaptive``).

    m_t     = β1 m_{t-1} + (1 - β1) Δ_t          m_{-1} = 0
    v_t     = β2 v_{t-1} + (1 - β2) Δ_t^2        v_{-1} = τ^2
    x_{t+1} = x_t + η m_t / (sqrt(v_t) + τ)

Keras' Adam differs, which is why it is not used: it corrects the bias of both moments, scaling η in round t (from 1) by
sqrt(1 - β2^t) / (1 - β1^t), and starts v at 0 and not at τ^2. Its ε stands where τ does. With the paper's β1 = 0.9 and
β2 = 0.99 and an unchanging Δ well above τ, Keras' steps stay at η, while these grow to 2.1 η in round 13 and come back.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray
from pydantic import Field

from .adaptive import Adaptive, AdaptiveSettings
from .base import Strategy
from .objective import Plain
from .weighted_mean import WeightedMean


class FedAdam(AdaptiveSettings):
    """Settings of FedAdam."""

    name: ClassVar[str] = "fedadam"
    beta_1: float = Field(0.9, ge=0, lt=1, description="β1, decay of the first moment")
    beta_2: float = Field(0.99, ge=0, lt=1, description="β2, decay of the second moment")

    def build(self) -> Strategy:
        """Plain local training, weighted mean, Adam on the server."""
        server = Adaptive(Decay(self.beta_2), self.server_learning_rate, self.beta_1, self.tau)
        return Strategy(self.name, Plain(), WeightedMean(), server)


@dataclass(frozen=True)
class Decay:
    """Exponential moving average of Δ^2."""

    beta_2: float

    def __call__(self, v: NDArray[Any], squared: NDArray[Any]) -> NDArray[Any]:
        """The rule for v in the module's docstring."""
        average: NDArray[Any] = self.beta_2 * v + (1 - self.beta_2) * squared
        return average
