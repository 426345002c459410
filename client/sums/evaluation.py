"""How well the values the server sent do on the examples a site validates on: loss, and by output the right decisions.

Sample weights count in the loss as the job has it and nowhere else; examples without a label for an output are in that
output's numbers with 0, and in the share of those with a label.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from client.graph import Parts, examples_signature, take
from client.sampling import Indices, in_order
from fedretrain.contract import OutputSpec
from fedretrain.sums import Evaluation

from . import Task, Total, enough
from .tensors import OutputLosses, missing, predictions

_PIECE = 256


def evaluation(task: Task, settings: Evaluation) -> Total:  # noqa: ARG001 - it has none
    """See the module docstring; float64, as ``fedretrain.sums`` says."""
    rows = enough(task.parts.held, "validation examples")
    loss = task.learner.evaluate(task.pace.through(task.examples.filled(_chosen(rows))), task.examples.lacking)["loss"]
    counted = _Counted(task)
    sums = tf.zeros([len(task.request.contract.outputs), 3], tf.float64)
    for piece in task.pace.through(task.examples.pieces(_chosen(rows))):
        sums = counted.add(sums, piece.parts, tf.constant(piece.rows))
    found = sums.numpy() / len(rows)
    return Total([np.asarray(loss, np.float64), found[:, :2].copy(), found[:, 2].copy()], len(rows))


def _chosen(rows: Indices) -> Any:
    return (rows[chosen] for chosen in in_order(len(rows), _PIECE))


class _Counted:
    """Adds up losses, right decisions and labelled examples by output."""

    def __init__(self, task: Task) -> None:
        request = task.request
        self._model, self._outputs = task.learner.model, request.contract.outputs
        self._losses = OutputLosses(request.train, self._outputs)
        signature = [
            tf.TensorSpec([len(self._outputs), 3], tf.float64),
            examples_signature(request.contract, weighted=task.data.sample_weight is not None),
            tf.TensorSpec([None], tf.int32),
        ]
        self.add = tf.function(self._add, input_signature=signature, autograph=False)

    def _add(self, sums: Any, parts: Parts, rows: Any) -> Any:
        x, y, _ = take(parts, rows)
        answers = predictions(self._model, x)
        return sums + tf.stack([self._of(i, y[i], answers[i]) for i in range(len(self._outputs))])

    def _of(self, output: int, labels: Any, answers: Any) -> Any:
        known = tf.where(~missing(labels))[:, 0]
        labels, answers = tf.gather(labels, known), tf.gather(answers, known)
        count = tf.cast(tf.size(known), tf.float64)
        loss = tf.cond(count > 0, lambda: self._losses.loss(output, labels, answers), lambda: 0.0)
        right = _right(self._outputs[output], labels, answers, logits=self._losses.logits[output])
        return tf.stack([tf.cast(loss, tf.float64) * count, tf.reduce_sum(tf.cast(right, tf.float64)), count])


def _right(spec: OutputSpec, labels: Any, answers: Any, *, logits: bool) -> Any:
    """The share of an example's decisions that are its labels, [n]."""
    if spec.kind == "regression":
        return tf.zeros([tf.shape(answers)[0]])
    if spec.kind == "multiclass":
        right = tf.argmax(answers, -1, tf.int32) == tf.cast(labels, tf.int32)
    elif spec.kind == "onehot":
        right = tf.argmax(answers, -1) == tf.argmax(labels, -1)
    else:
        right = (answers > (0.0 if logits else 0.5)) == (labels > 0.5)
    flat = tf.reshape(tf.cast(right, tf.float32), [tf.shape(answers)[0], -1])
    return tf.reduce_mean(flat, axis=1)
