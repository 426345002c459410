"""Per-FedAvg, first order: sites look for a model that is good after one step on their own data, not before it.

A site minimises F(w) = f(w - alpha ∇f(w)) in place of its loss f. With the two halves D and D' of a batch::

    w'  = w - alpha ∇f(w; D)
    w   ← w - beta ∇f(w'; D')

alpha is ``inner_learning_rate``; beta is the job's learning rate, and the step the job's optimizer's. The paper's
gradient of F has the factor (I - alpha ∇²f(w)) before ∇f(w'); its first-order variant, this one, leaves that out. The
paper draws D and D' apart, here they are the halves of one batch, so give ``train.batch_size`` twice what a half is to
have; a last batch of one example is both.

A site gets the good of it by a few steps of its own on the model that is released. Metrics are of the model as it is
sent, before any step; the training loss is that of the first halves.

A. Fallah, A. Mokhtari, A. Ozdaglar: Personalized Federated Learning with Theoretical Guarantees: A Model-Agnostic
Meta-Learning Approach. NeurIPS 2020, https://arxiv.org/abs/2002.07948
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from .objective import Given, LocalObjective, ObjectiveSettings, Plain


@dataclass(frozen=True)
class Adapted(LocalObjective):
    """Gradients at the variables after one step of ``rate`` along the gradient of the batch's first half."""

    rate: float

    def gradients(
        self,
        variables: Sequence[Any],
        given: Given,  # noqa: ARG002
        gradient_of: Callable[[float, float], list[Any]],
    ) -> list[Any]:
        """∇f(w - rate ∇f(w; first half); second half)."""
        import tensorflow as tf

        before = [tf.identity(tf.convert_to_tensor(variable.value)) for variable in variables]
        for variable, slope in zip(variables, gradient_of(0.0, 0.5), strict=True):
            if slope is not None:
                variable.assign_sub(self.rate * slope)
        gradients = gradient_of(0.5, 1.0)
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
        return gradients


class PerFedAvg(ObjectiveSettings):
    """Settings of first-order Per-FedAvg."""

    name: ClassVar[str] = "perfedavg"
    inner_learning_rate: float = Field(0.01, ge=0, description="alpha, of the step that a site is to adapt by")

    def build(self) -> LocalObjective:
        """Gradients after one step; those of the model itself where its rate is 0."""
        return Adapted(float(self.inner_learning_rate)) if self.inner_learning_rate else Plain()
