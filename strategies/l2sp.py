"""L2-SP: every variable that trains is held near its value in the model that the run was given.

A site minimises, with the starting point w⁰::

    L(w) + (alpha/2) ‖w - w⁰‖²

alpha is ``strength``. Unlike FedProx' term, whose anchor moves with every round, this one stays where the run began,
so it holds back forgetting; unlike elastic weight consolidation it holds all values alike.

The paper gives layers that the starting point does not have a weight decay of their own, beta. Here every variable has
a value in the model that the run was given, a new head the one it was initialised with, and is held there by alpha.

X. Li, Y. Grandvalet, F. Davoine: Explicit Inductive Bias for Transfer Learning with Convolutional Networks. ICML 2018,
https://arxiv.org/abs/1802.01483
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from .fedprox import squared_distance
from .objective import Batch, Given, LocalObjective, ObjectiveSettings, Plain


@dataclass(frozen=True)
class StartingPoint(LocalObjective):
    """The penalty on the distance from the starting point."""

    groups: ClassVar[tuple[str, ...]] = ("incumbent",)
    strength: float

    def penalty(self, variables: Sequence[Any], given: Given, batch: Batch) -> Any | None:  # noqa: ARG002
        """(alpha/2) Σ (variable - incumbent)², a float32 scalar; None where there are no variables."""
        total = squared_distance(variables, given["incumbent"])
        return None if total is None else self.strength / 2 * total


class L2SP(ObjectiveSettings):
    """Settings of L2-SP."""

    name: ClassVar[str] = "l2sp"
    strength: float = Field(0.01, ge=0, description="alpha, weight of the penalty; the paper tries 0.001 to 1")

    def build(self) -> LocalObjective:
        """The penalty; nothing where its weight is 0."""
        return StartingPoint(float(self.strength)) if self.strength else Plain()
