"""Learning without forgetting: what the incumbent predicts on a site's examples is a second label for each.

With the outputs z of the model and z⁰ of the incumbent for one example, and a temperature T, a site adds to its loss::

    weight · T² Σ_outputs mean over the batch of KL(p⁰ ‖ p)

    classes          p = softmax(z / T), likewise p⁰: KL = Σ_c p⁰_c log(p⁰_c / p_c)
    yes or no        p = sigmoid(z / T) for each position on its own: the mean of their KL
    numbers          the mean square of z - z⁰, without T

Of a model that ends in softmax or sigmoid, z is log p or the logit of p, which is as good: the p above are the same for
every T. The incumbent predicts in inference mode, on the inputs the step uses. No old example is needed, and nothing
travels but the model in use, which the sites have.

Li and Hoiem write the cross-entropy, which differs by the entropy of p⁰, a number that has no gradient; T² is Hinton et
al.'s, who show that the gradient keeps its size with it. Li and Hoiem's new layers, which the incumbent does not know,
are here the labels that ``labels`` leaves out: with ``labels`` only those positions are compared, by name, and p and p⁰
sum to 1 over them. They train all layers together after a warm-up of the new ones; stages of a job can do that.

Z. Li, D. Hoiem: Learning without Forgetting. ECCV 2016, https://arxiv.org/abs/1606.09282

G. Hinton, O. Vinyals, J. Dean: Distilling the Knowledge in a Neural Network. 2015, https://arxiv.org/abs/1503.02531
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field

from fedretrain.contract import Contract, OutputSpec
from fedretrain.errors import ConfigurationError
from fedretrain.job import NamedConfig, TrainSection

from .objective import Batch, Given, LocalObjective, ObjectiveSettings, Plain

_LEAST = 1e-7  # a probability below is taken for this, as Keras' losses do


@dataclass(frozen=True)
class Head:
    """How one output is compared: ``positions`` along its last axis, None for all; logits or probabilities."""

    kind: Literal["classes", "decisions", "numbers"]
    logits: bool = False
    positions: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Distilled(LocalObjective):
    """The divergence from the incumbent's predictions; ``heads`` by output, None for one that is not compared."""

    teacher: ClassVar[bool] = True
    weight: float
    temperature: float
    labels: tuple[str, ...] | None = None
    heads: tuple[Head | None, ...] = ()

    def fitted(self, contract: Contract, train: TrainSection) -> LocalObjective:
        """With how each output is compared; raises ConfigurationError where ``labels`` are not the contract's."""
        known = {label for spec in contract.outputs for label in spec.labels}
        for label in self.labels or ():
            if label not in known:
                raise ConfigurationError(
                    f"strategy.objectives: distillation.labels: expected some of the model's labels {sorted(known)}, "
                    f"got '{label}'"
                )
        heads = tuple(self._head(spec, _from_logits(train, spec)) for spec in contract.outputs)
        if not any(heads):
            raise ConfigurationError(
                "strategy.objectives: distillation.labels: expected at least two labels of an output with classes"
            )
        return dataclasses.replace(self, heads=heads)

    def penalty(self, variables: Sequence[Any], given: Given, batch: Batch) -> Any | None:  # noqa: ARG002
        """Weight · T² Σ KL, a float32 scalar."""
        from keras import ops

        total = None
        for head, mine, theirs in zip(self.heads, batch.predictions, batch.taught, strict=True):
            if head is not None:
                student, teacher = (ops.cast(z, "float32") for z in (mine, ops.stop_gradient(theirs)))
                each = ops.mean(_divergence(head, self.temperature, student, teacher))
                total = each if total is None else total + each
        return None if total is None else self.weight * total

    def _head(self, spec: OutputSpec, logits: bool) -> Head | None:
        if spec.kind == "regression":
            return Head("numbers") if self.labels is None else None
        classes = spec.kind in {"multiclass", "onehot"}
        positions = None
        if self.labels is not None and spec.kind == "binary":  # one position stands for both labels
            return Head("decisions", logits) if set(spec.labels) <= set(self.labels) else None
        if self.labels is not None:
            positions = tuple(i for i, label in enumerate(spec.labels) if label in self.labels)
            if len(positions) < (2 if classes else 1):
                return None
        return Head("classes" if classes else "decisions", logits, positions)


class Distillation(ObjectiveSettings):
    """Settings of distillation from the incumbent."""

    name: ClassVar[str] = "distillation"
    weight: float = Field(1.0, ge=0, description="how much it counts beside the loss; the paper uses 1")
    temperature: float = Field(2.0, gt=0, description="T, how soft the predictions are made; the paper uses 2")
    labels: tuple[str, ...] | None = Field(
        None, strict=False, description="names of the labels that the incumbent knows; default: all"
    )

    def check_mode(self, mode: str) -> None:
        """Where the label space grows, the labels must be said: of the others the incumbent knows nothing."""
        if mode == "extend" and self.labels is None:
            raise ConfigurationError(
                "strategy.objectives: distillation.labels: expected the labels of the model in use with train.mode = "
                "'extend', got none; what it would say of the other ones is made up"
            )

    def build(self) -> LocalObjective:
        """The divergence; nothing where its weight is 0."""
        return Distilled(float(self.weight), float(self.temperature), self.labels) if self.weight else Plain()


def _from_logits(train: TrainSection, spec: OutputSpec) -> bool:
    loss = train.loss.get(spec.name) if isinstance(train.loss, dict) else train.loss
    return isinstance(loss, NamedConfig) and bool(loss.settings.get("from_logits"))


def _divergence(head: Head, temperature: float, student: Any, teacher: Any) -> Any:
    """T² KL of teacher from student, by example and, for decisions, by position; of numbers the squared differences."""
    from keras import ops

    if head.kind == "numbers":
        return ops.square(student - teacher)
    if head.positions is not None:
        student, teacher = (ops.take(z, head.positions, axis=-1) for z in (student, teacher))
    if head.kind == "classes":
        mine, theirs = (_log_softmax(z, head.logits, temperature) for z in (student, teacher))
        return temperature**2 * ops.sum(ops.exp(theirs) * (theirs - mine), axis=-1)
    pairs = zip(*(_log_sigmoid(z, head.logits, temperature) for z in (student, teacher)), strict=True)
    return temperature**2 * sum(ops.exp(theirs) * (theirs - mine) for mine, theirs in pairs)


def _log_softmax(z: Any, logits: bool, temperature: float) -> Any:
    from keras import ops

    return ops.log_softmax((z if logits else ops.log(ops.maximum(z, _LEAST))) / temperature, axis=-1)


def _log_sigmoid(z: Any, logits: bool, temperature: float) -> tuple[Any, Any]:
    """Logarithms of yes and of no."""
    from keras import ops

    if not logits:
        p = ops.clip(z, _LEAST, 1 - _LEAST)
        z = ops.log(p) - ops.log1p(-p)
    return ops.log_sigmoid(z / temperature), ops.log_sigmoid(-z / temperature)
