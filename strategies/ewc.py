"""Elastic weight consolidation: what mattered for what the model knew is held near its old value.

With θ* the values of the model the run was given and F the diagonal of its Fisher information, estimated once at the
sites before the first round (``client.sums.fisher``) and combined on the server, a site with loss L minimises::

    L(θ) + (λ/2) Σ_i F_i (θ_i - θ*_i)²

The sum runs over the variables that train, λ is ``strength``. F is a mean over examples, as L is: λ = 1 would weigh old
examples as much as new ones if the old loss were the parabola that F describes. Far from θ* it is steeper, and λ of
hundreds to thousands is what keeps old behaviour, and far more where the model is so sure of its answers that F is
tiny (``simulations/examples/ewc.toml``). Plain gradient steps with rate η diverge where η λ F reaches 2, which
the run says before its first round; optimizers such as Adam bear more.

Against the paper: F comes of many sites, each of which draws one label per example from the model's own answers; there
is one old task, the model in use, whatever it was trained on before; examples that the job calls new (``train.since``)
take no part in F, but where times are not known all do.

J. Kirkpatrick, R. Pascanu, N. Rabinowitz, J. Veness, G. Desjardins, A. A. Rusu, K. Milan, J. Quan, T. Ramalho,
A. Grabska-Barwinska, D. Hassabis, C. Clopath, D. Kumaran, R. Hadsell: Overcoming catastrophic forgetting in neural
networks. PNAS 114(13), 2017, https://arxiv.org/abs/1612.00796
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from fedretrain.job import NamedConfig

from .objective import Batch, Given, LocalObjective, ObjectiveSettings, Plain


@dataclass(frozen=True)
class ElasticWeights(LocalObjective):
    """The penalty of elastic weight consolidation."""

    groups: ClassVar[tuple[str, ...]] = ("incumbent", "companion:fisher")
    strength: float

    def penalty(self, variables: Sequence[Any], given: Given, batch: Batch) -> Any | None:  # noqa: ARG002
        """(λ/2) Σ F (variable - incumbent)², a float32 scalar; None where there are no variables."""
        return quadratic(self.strength, variables, given["incumbent"], given["companion:fisher"])


def quadratic(strength: float, variables: Sequence[Any], centre: Sequence[Any], weights: Sequence[Any]) -> Any | None:
    """(strength/2) Σ weight (variable - centre)², a float32 scalar; None where there are no variables."""
    if not variables:
        return None
    from keras import ops

    def apart(x: Any, c: Any) -> Any:
        return ops.subtract(ops.cast(x, "float32"), ops.cast(c, "float32"))

    parts = [
        ops.sum(ops.multiply(ops.cast(w, "float32"), ops.square(apart(x, c))))
        for x, c, w in zip(variables, centre, weights, strict=True)
    ]
    return strength / 2 * sum(parts[1:], start=parts[0])


class EWC(ObjectiveSettings):
    """Settings of elastic weight consolidation."""

    name: ClassVar[str] = "ewc"
    companions: ClassVar[tuple[str, ...]] = ("fisher",)
    strength: float = Field(100.0, ge=0, description="λ, weight of the penalty; hundreds and more are usual")
    examples: int = Field(1000, ge=1, description="examples a site uses for its estimate, at most")
    labels: str = Field("model", pattern="^(model|data)$", description="whose labels: model (drawn) or data")

    @property
    def sum(self) -> NamedConfig:
        """What the sites are asked for."""
        return NamedConfig(name="fisher", examples=self.examples, labels=self.labels)

    def build(self) -> LocalObjective:
        """The penalty, or nothing where it has no weight."""
        return ElasticWeights(self.strength) if self.strength else Plain()
