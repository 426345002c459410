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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from fedretrain.job import NamedConfig

from .base import Settings, Strategy
from .fedprox import squared_distance
from .objective import Batch, Given, LocalObjective, Plain
from .server_optimizer import Sum
from .weighted_mean import WeightedMean

PERSONAL = "ditto"
"""Name of a site's own model in its memory."""

GLOBAL = "global"
"""Name of the global model among the arrays that the own model's objective is given."""

OWN = "ditto-own"


class Ditto(Settings):
    """Settings of Ditto."""

    name: ClassVar[str] = "ditto"
    strength: float = Field(1.0, ge=0, description="λ, how strongly a site's own model is held near the global one")

    def build(self) -> Strategy:
        """Plain local training of the global model, weighted mean, sum."""
        return Strategy(self.name, Plain(), WeightedMean(), Sum())


@dataclass(frozen=True)
class Held(LocalObjective):
    """The term that holds a site's own model near the global one, which the site gives it as arrays of its own."""

    groups: ClassVar[tuple[str, ...]] = (f"memory:{GLOBAL}",)
    strength: float

    def penalty(self, variables: Sequence[Any], given: Given, batch: Batch) -> Any | None:  # noqa: ARG002
        """(λ/2) Σ (variable - global)², a float32 scalar; None where there are no variables."""
        total = squared_distance(variables, given[f"memory:{GLOBAL}"])
        return None if total is None else self.strength / 2 * total


def own_strategy(config: NamedConfig) -> NamedConfig:
    """Of Ditto's settings, what a site trains its own model by; no job can name it (``own_objective``)."""
    return NamedConfig(name=OWN, **config.settings)


def own_objective(config: NamedConfig) -> LocalObjective:
    """What ``own_strategy`` adds to a site's loss, without the objectives it names."""
    strength = float(config.settings.get("strength", Ditto.model_fields["strength"].default))
    return Held(strength) if strength else Plain()
