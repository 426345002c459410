"""Adversarial training: a site's steps use the worst examples near its own, so that small changes fool the model less.

With a loss J of inputs x, labels y, the sign of a tensor and the bounds [low, high] that the contract gives an input::

    FGSM    x' = clip(x + ε sign ∇ₓ J(x, y), low, high)
    PGD     x⁰ = clip(x + ε u, low, high)                                  u uniform in [-1, 1), or 0
            xᵏ⁺¹ = clip(clip(xᵏ + s sign ∇ₓ J(xᵏ, y), x - ε, x + ε), low, high)

ε is ``epsilon``, in the input's own unit: no value of an example moves further. s is ``step``, ``steps`` how often PGD
steps; ``share`` of a batch's examples are replaced, the first ones of a shuffled batch, as Kurakin et al. do. With a
share of 0.5 FGSM has the paper's mixed objective in expectation: there each example counts half, and its adversarial
one half. All inputs of a floating dtype are changed, at once; others, such as token numbers, stay.

The gradient for the attack is that of the loss in inference mode: dropout and a batch's own statistics take no part in
it. FGSM passes twice through the model in a step, PGD ``steps`` + 1 times.

I. J. Goodfellow, J. Shlens, C. Szegedy: Explaining and Harnessing Adversarial Examples. ICLR 2015,
https://arxiv.org/abs/1412.6572

A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu: Towards Deep Learning Models Resistant to Adversarial Attacks.
ICLR 2018, https://arxiv.org/abs/1706.06083

A. Kurakin, I. Goodfellow, S. Bengio: Adversarial Machine Learning at Scale. ICLR 2017,
https://arxiv.org/abs/1611.01236
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from fedretrain.contract import Contract
from fedretrain.errors import ConfigurationError
from fedretrain.job import TrainSection

from .objective import LocalObjective, ObjectiveSettings, Plain

_EPSILON = "ε, most that a value of an input moves, in the input's own unit"
_SHARE = "share of a batch's examples that are replaced by adversarial ones"


@dataclass(frozen=True)
class Adversarial(LocalObjective):
    """Steps on adversarial examples.

    Attributes:
        epsilon: Most that a value moves.
        step: How far it moves in one step of the attack.
        steps: Steps of the attack.
        share: Of a batch's examples.
        scattered: Whether the attack starts beside the example.
        bounds: By input in the contract's order: least and greatest value, or None where it is not changed.
    """

    draws: ClassVar[bool] = True
    epsilon: float
    step: float
    steps: int
    share: float
    scattered: bool
    bounds: tuple[tuple[float, float] | None, ...] = ()

    def fitted(self, contract: Contract, train: TrainSection) -> LocalObjective:  # noqa: ARG002
        """With the bounds of the contract's inputs; raises ConfigurationError where there is nothing to change."""
        bounds: list[tuple[float, float] | None] = []
        for spec in contract.inputs:
            if not spec.dtype.startswith(("float", "bfloat")):
                bounds.append(None)
            elif spec.low is None or spec.high is None:
                raise ConfigurationError(
                    f"contract.ranges.{spec.name}: expected a least and a greatest value, got none; adversarial "
                    "training stays within them"
                )
            else:
                bounds.append((spec.low, spec.high))
        if not any(bounds):
            found = ", ".join(f"{spec.name} {spec.dtype}" for spec in contract.inputs)
            raise ConfigurationError(
                "strategy.objectives: adversarial training needs an input of a floating dtype, for whole numbers have "
                f"no small change; got {found}"
            )
        return dataclasses.replace(self, bounds=tuple(bounds))

    def inputs(
        self, x: Sequence[Any], loss_at: Callable[[Sequence[Any]], Any], noise: Callable[[Any], Any]
    ) -> Sequence[Any]:
        """The batch with its first examples replaced."""
        import tensorflow as tf

        near = [self._start(t, b, noise) if b else t for t, b in zip(x, self.bounds, strict=True)]
        for _ in range(self.steps):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([t for t, b in zip(near, self.bounds, strict=True) if b])
                loss = loss_at(near)
            slopes = tape.gradient(loss, near, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            near = [
                self._kept(t, n + self.step * tf.sign(slope), b) if b else t
                for t, n, slope, b in zip(x, near, slopes, self.bounds, strict=True)
            ]
        return [tf.stop_gradient(self._mixed(t, n)) if b else t for t, n, b in zip(x, near, self.bounds, strict=True)]

    def _start(self, x: Any, bounds: tuple[float, float], noise: Callable[[Any], Any]) -> Any:
        return self._kept(x, x + self.epsilon * noise(x), bounds) if self.scattered else x

    def _kept(self, x: Any, moved: Any, bounds: tuple[float, float]) -> Any:
        """What is left of a move: at most ε, and within the bounds."""
        import tensorflow as tf

        return tf.clip_by_value(tf.clip_by_value(moved, x - self.epsilon, x + self.epsilon), *bounds)

    def _mixed(self, x: Any, moved: Any) -> Any:
        """``moved`` for the first ``share`` of the examples, rounded, at least one; ``x`` for the others."""
        import tensorflow as tf

        if self.share == 1:
            return moved
        count = tf.shape(x)[0]
        replaced = tf.maximum(1, tf.cast(tf.round(self.share * tf.cast(count, tf.float32)), tf.int32))
        first = tf.reshape(tf.range(count) < replaced, [-1] + [1] * (len(x.shape) - 1))
        return tf.where(first, moved, x)


class FGSM(ObjectiveSettings):
    """Settings of the fast gradient sign method."""

    name: ClassVar[str] = "fgsm"
    epsilon: float = Field(ge=0, description=_EPSILON)
    share: float = Field(0.5, ge=0, le=1, description=_SHARE)

    def build(self) -> LocalObjective:
        """One step of length ε from the example; nothing where ε or the share is 0."""
        if not self.epsilon or not self.share:
            return Plain()
        return Adversarial(float(self.epsilon), float(self.epsilon), 1, float(self.share), scattered=False)


class PGD(ObjectiveSettings):
    """Settings of projected gradient descent."""

    name: ClassVar[str] = "pgd"
    epsilon: float = Field(ge=0, description=_EPSILON)
    steps: int = Field(7, ge=1, le=100, description="steps of the attack; the paper trains with 7 to 40")
    step: float | None = Field(None, gt=0, description="length of one of them; default 2.5 ε / steps")
    share: float = Field(1.0, ge=0, le=1, description=_SHARE)
    random_start: bool = Field(True, description="whether the attack starts beside the example")

    def build(self) -> LocalObjective:
        """The attack; nothing where ε or the share is 0."""
        if not self.epsilon or not self.share:
            return Plain()
        step = self.step or 2.5 * self.epsilon / self.steps
        return Adversarial(float(self.epsilon), float(step), self.steps, float(self.share), self.random_start)
