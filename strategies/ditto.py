"""Ditto: FedAvg, and at every site a second model of its own that is held near the global one.

In round t site i trains the global model w_t as in FedAvg, and besides it its own model v_i, with its loss F_i, on the
same examples in the same order (Algorithm 1)::

    v_i ← v_i - η ∇( F_i(v_i) + (λ/2) ‖v_i - w_t‖² )        from where the last round left v_i

λ is ``strength``: 0 trains v_i alone, a large one keeps it at the global model. v_i starts with the first global values
the site receives and stays at the site; ``val-personal-...`` are its numbers, before the round's training as those of
the global model are. The global model, and so the release, is FedAvg's.

Deviations: v_i trains by the job's optimizer, which starts anew in each round, and as long as the global model does,
where the paper has gradient descent with a number of steps of its own. What objectives add to F_i, they add to both.

T. Li, S. Hu, A. Beirami, V. Smith: Ditto: Fair and Robust Federated Learning Through Personalization. ICML 2021,
https://arxiv.org/abs/2012.04221
"""

from typing import Any, ClassVar

from pydantic import Field

from fedretrain.job import NamedConfig

from .base import Settings, Strategy
from .fedprox import FedProx
from .objective import Plain
from .server_optimizer import Sum
from .weighted_mean import WeightedMean

PERSONAL = "ditto"
"""Name of a site's own model in its memory."""


class Ditto(Settings):
    """Settings of Ditto."""

    name: ClassVar[str] = "ditto"
    strength: float = Field(1.0, ge=0, description="λ, how strongly a site's own model is held near the global one")

    def build(self) -> Strategy:
        """Plain local training of the global model, weighted mean, sum."""
        return Strategy(self.name, Plain(), WeightedMean(), Sum())


def personal_strategy(config: NamedConfig) -> NamedConfig:
    """What a site's own model is trained with: FedProx' term, whose anchor is the global model as received."""
    settings: dict[str, Any] = {key: value for key, value in config.settings.items() if key != "strength"}
    strength = config.settings.get("strength", Ditto.model_fields["strength"].default)
    return NamedConfig(name=FedProx.name, **{**settings, "mu": strength})
