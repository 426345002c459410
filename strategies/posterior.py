"""Bayesian updating: what the model in use was certain of is the prior of its next retraining.

The posterior of the values θ that train, given all data so far, is kept as a normal distribution around the model in
use, θ*, with a diagonal precision Λ. A retraining on N further examples with mean loss L, -log p of one of them, looks
for the most probable θ, and a site minimises::

    L(θ) + (τ/2N) Σ_i Λ_i (θ_i - θ*_i)²

τ is ``strength``: 1 by Bayes' rule, less for data that are not believed to be of one kind. After the rounds the
posterior is that of the candidate, with F the diagonal of the Fisher information there on the examples trained on, and
it is kept with the release for the next retraining::

    Λ' = Λ + N F(θ')

The first retraining has no Λ yet; it starts from ``prior_precision`` + N₀ F(θ*) on the sites' N₀ old examples, as in
elastic weight consolidation (``strategies.ewc``). Against the papers: the precision is diagonal, not of Kronecker
factors; F comes of labels drawn from the model's own answers at the sites; a variable for which nothing was kept,
because it was frozen then, starts from ``prior_precision``. It is meant for modes that train on new examples alone,
such as "incremental": where a run trains on examples that made the prior already, these count again.

H. Ritter, A. Botev, D. Barber: Online Structured Laplace Approximations For Overcoming Catastrophic Forgetting. NeurIPS
2018, https://arxiv.org/abs/1805.07810
F. Huszár: On Quadratic Penalties in Elastic Weight Consolidation. 2017, https://arxiv.org/abs/1712.03847
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from fedretrain.job import NamedConfig

from .ewc import quadratic
from .objective import Batch, Given, LocalObjective, ObjectiveSettings, Plain


@dataclass(frozen=True)
class Prior(LocalObjective):
    """The prior as a penalty; the companion is Λ/N."""

    groups: ClassVar[tuple[str, ...]] = ("incumbent", "companion:posterior")
    strength: float

    def penalty(self, variables: Sequence[Any], given: Given, batch: Batch) -> Any | None:  # noqa: ARG002
        """(τ/2) Σ Λ/N (variable - incumbent)², a float32 scalar; None where there are no variables."""
        return quadratic(self.strength, variables, given["incumbent"], given["companion:posterior"])


class Posterior(ObjectiveSettings):
    """Settings of Bayesian updating."""

    name: ClassVar[str] = "posterior"
    companions: ClassVar[tuple[str, ...]] = ("posterior",)
    strength: float = Field(1.0, ge=0, description="τ, weight of the prior; 1 is Bayes' rule")
    prior_precision: float = Field(1.0, ge=0, description="precision of what nothing was kept about")
    examples: int = Field(1000, ge=1, description="examples a site uses for an estimate, at most")
    labels: str = Field("model", pattern="^(model|data)$", description="whose labels: model (drawn) or data")

    def sum(self, of: str) -> NamedConfig:
        """What the sites are asked for, about their ``old`` examples or those ``trained`` on."""
        return NamedConfig(name="fisher", examples=self.examples, labels=self.labels, of=of)

    def build(self) -> LocalObjective:
        """The penalty, or nothing where it has no weight."""
        return Prior(self.strength) if self.strength else Plain()
