"""One optimizer step of a model under the run's local objective: operations that can be traced.

Invariant: under ``Plain`` these are the operations of Keras' own step, in its order, and no others.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from fedretrain.errors import DeclinedRequest
from strategies.objective import Batch, Composed, LocalObjective, Plain

if TYPE_CHECKING:
    from .graph import Parts

Tensors = list[Any]
RECEIVED = "received"
"""The group of arrays that has the values an update starts from."""


class Descent:
    """The step.

    Args:
        model: Built and compiled.
        trained: The variables that train.
        objective: Fitted to the model.
        loss: The loss and the predictions by output, of examples and whether in training mode.
        teacher: The model in use, where the objective asks for it.

    Attributes:
        groups: Names of the groups of arrays that ``step`` is given, in order.
        others: The same without ``RECEIVED``.
        plain: Whether the objective is ``Plain``, so that Keras' own step may stand in.
        seed: What random numbers of the objective come from, an int32 [2] variable; None where it draws none.

    Raises:
        DeclinedRequest: ``request-invalid`` where the model's gradients are scaled and the objective bends them.
    """

    def __init__(
        self,
        model: Any,
        trained: Sequence[Any],
        objective: LocalObjective,
        loss: Callable[..., tuple[Any, Tensors]],
        teacher: Any = None,
    ) -> None:
        self._model, self._trained, self._objective = model, trained, objective
        self._loss, self._teacher = loss, teacher
        self.groups = objective.groups
        self.others = tuple(group for group in self.groups if group != RECEIVED)
        self.plain = objective == Plain()
        self.seed = tf.Variable([0, 0], dtype=tf.int32, trainable=False) if objective.draws else None
        parts = objective.parts if isinstance(objective, Composed) else (objective,)
        bends = any(type(part).gradients is not LocalObjective.gradients for part in parts)
        if bends and isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
            expected = "objectives that take gradients as they are, for this model computes in 16 bits and scales them"
            raise DeclinedRequest("request-invalid", "strategy.objectives", expected)

    def step(self, parts: "Parts", given: Sequence[Tensors]) -> Any:
        """One step.

        Args:
            parts: A batch.
            given: Tensors of the variables that train, by group as in ``groups``.

        Returns:
            The batch's loss as it was before the step, without the objective's penalties.
        """
        x, y, weights = parts
        groups = dict(zip(self.groups, given, strict=True))
        used = self._objective.inputs(x, lambda x: self._loss((x, y, weights), training=False)[0], self._noise)
        losses: Tensors = []

        def gradient_of(start: float, stop: float) -> Tensors:
            loss, gradients = self._gradients(shared((list(used), y, weights), start, stop), groups)
            losses.append(loss)
            return gradients

        gradients = self._objective.gradients(self._trained, groups, gradient_of)
        self._model.optimizer.apply(gradients, self._trained)
        return losses[0]

    def _gradients(self, parts: "Parts", groups: dict[str, Tensors]) -> tuple[Any, Tensors]:
        taught = self._taught(parts[0]) if self._objective.teacher else []
        with tf.GradientTape() as tape:
            loss, predictions = self._loss(parts, training=True)
            penalty = self._objective.penalty(self._trained, groups, Batch(parts[0], parts[1], predictions, taught))
            whole = loss if penalty is None else loss + tf.cast(penalty, loss.dtype)
            scaled = self._model.optimizer.scale_loss(whole)
        return loss, tape.gradient(scaled, [v.value for v in self._trained])

    def _taught(self, x: Tensors) -> Tensors:
        inputs = x[0] if len(x) == 1 else keras.tree.pack_sequence_as(self._teacher.input, x)
        return [tf.stop_gradient(answer) for answer in keras.tree.flatten(self._teacher(inputs, training=False))]

    def _noise(self, like: Any) -> Any:
        """Uniform numbers in [-1, 1), the same ones for the same seed by every way an update is made."""
        numbers = tf.random.stateless_uniform(tf.shape(like), self.seed, -1.0, 1.0, tf.float32, alg="philox")
        self.seed.assign_add([0, 1])  # type: ignore[union-attr]
        return tf.cast(numbers, like.dtype)


def shared(parts: "Parts", start: float, stop: float) -> "Parts":
    """The share of a batch from ``start`` to ``stop`` in [0, 1]: rounded down, and at least one example."""
    if (start, stop) == (0.0, 1.0):
        return parts
    count = parts[0][0].shape[0]
    if count is not None:
        first = min(int(start * count), count - 1)
        last = max(int(stop * count), first + 1)
    else:
        size = tf.shape(parts[0][0])[0]
        part = [tf.cast(share * tf.cast(size, tf.float32), tf.int32) for share in (start, stop)]
        first = tf.minimum(part[0], size - 1)
        last = tf.maximum(part[1], first + 1)
    x, y, weights = parts
    return [t[first:last] for t in x], [t[first:last] for t in y], [t[first:last] for t in weights]
