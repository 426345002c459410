"""The diagonal of the Fisher information of a model's answers, by variable that trains.

For examples x_n of the site, n = 1..N, and parameters θ::

    F_i = (1/N) Σ_n w_n (∂ log p(y_n | x_n, θ) / ∂θ_i)²,     y_n ~ p(· | x_n, θ)

Each y_n is one draw from the model's own answer, which makes F an unbiased estimate of the Fisher information; with
``labels = "data"`` it is the label of the data, and F the empirical Fisher, which vanishes where the model fits.
-log p is the job's loss, as it is scaled there and without regularisation; a regression has no draw, and takes its
data's labels. w_n are sample weights, 1 where there are none. The model is in inference mode.

The examples are the site's old ones where the job says since when they are new and the data have times, else all; or,
where those "trained" on are asked for, these. Those it validates on are left out, and of more than ``examples`` that
many are drawn.

F. Kunstner, P. Hennig, L. Balles: Limitations of the Empirical Fisher Approximation for Natural Gradient Descent.
NeurIPS 2019, https://arxiv.org/abs/1905.12558
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from client.graph import Parts, examples_signature, take
from client.sampling import Indices, in_order, seed_for
from fedretrain.contract import OutputSpec
from fedretrain.sums import Fisher

from . import Task, Total, enough
from .tensors import OutputLosses, missing, predictions

_PIECE = 256  # examples in one call


def fisher(task: Task, settings: Fisher) -> Total:
    """See the module docstring; float32, in the order of the variables that train."""
    rows = enough(task.trained if settings.of == "trained" else _old(task), f"{settings.of} examples")
    seed = seed_for("fisher", task.request.train.seed, task.site)
    used = rows
    if len(rows) > settings.examples:
        used = np.sort(np.random.default_rng(seed).choice(rows, settings.examples, replace=False))
    squares = _Squares(task, settings.labels, seed % 2**31)
    pieces = (used[chosen] for chosen in in_order(len(used), _PIECE))
    sums = squares.zeros()
    for piece in task.pace.through(task.examples.pieces(pieces)):
        sums = squares.add(sums, piece.parts, tf.constant(piece.rows))
    return Total([(total.numpy() / len(used)).astype(np.float32) for total in sums], len(rows))


def _old(task: Task) -> Indices:
    """Rows that are older than what the job calls new, none of which is validated on."""
    known = task.request.train.since is not None and task.data.time is not None
    return task.parts.old if known else task.parts.mine


class _Squares:
    """Adds up squared gradients, example by example, in one traced function."""

    def __init__(self, task: Task, labels: str, seed: int) -> None:
        learner, request = task.learner, task.request
        self._model = learner.model
        specs = zip(self._model.variables, request.contract.variables, strict=True)
        self._trained = [variable for variable, spec in specs if spec.rule == "train"]  # in whichever rounds
        self._outputs, self._drawn, self._seed = request.contract.outputs, labels == "model", seed
        self._losses = OutputLosses(request.train, self._outputs)
        signature = [
            [tf.TensorSpec(v.shape, tf.float64) for v in self._trained],
            examples_signature(request.contract, weighted=task.data.sample_weight is not None),
            tf.TensorSpec([None], tf.int32),
        ]
        self.add = tf.function(self._add, input_signature=signature, autograph=False)

    def zeros(self) -> list[Any]:
        """Sums of nothing."""
        return [tf.zeros(v.shape, tf.float64) for v in self._trained]

    def _add(self, sums: list[Any], parts: Parts, rows: Any) -> list[Any]:
        def body(position: Any, *sums: Any) -> tuple[Any, ...]:
            one = take(parts, rows[position : position + 1])
            weight = tf.cast(one[2][0][0], tf.float64) if one[2] else tf.constant(1.0, tf.float64)
            squares = (tf.square(tf.cast(g, tf.float64)) for g in self._gradients(one, rows[position]))
            return position + 1, *(total + weight * square for total, square in zip(sums, squares, strict=True))

        state = [tf.constant(0), *sums]
        count = tf.size(rows)
        return list(tf.while_loop(lambda position, *_: position < count, body, state, parallel_iterations=1)[1:])

    def _gradients(self, one: Parts, row: Any) -> Sequence[Any]:
        values = [v.value for v in self._trained]
        with tf.GradientTape() as tape:
            tape.watch(values)
            answers = predictions(self._model, one[0])
            loss = tf.add_n([self._loss(i, one[1][i], p, row) for i, p in enumerate(answers)])
        found = tape.gradient(loss, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [tf.convert_to_tensor(gradient) for gradient in found]

    def _loss(self, output: int, label: Any, prediction: Any, row: Any) -> Any:
        """-log p of a drawn label, or of the one there is; a label that is missing has the gradient 0."""
        spec = self._outputs[output]
        if self._drawn and spec.kind != "regression":
            drawn = _draw(spec, prediction, self._losses.logits[output], [self._seed + output, row])
            return self._losses.loss(output, drawn, prediction)
        absent = tf.reduce_any(missing(label))
        known = tf.where(absent, tf.zeros_like(label), label)
        return tf.where(absent, 0.0, self._losses.loss(output, known, prediction))


def _draw(spec: OutputSpec, prediction: Any, logits: bool, seed: Any) -> Any:
    """A label as the contract has it, [1, ...], drawn from the model's answer."""
    scores = tf.stop_gradient(tf.cast(prediction, tf.float32))
    if spec.kind in ("binary", "multilabel"):
        chance = tf.sigmoid(scores) if logits else scores
        return tf.cast(tf.random.stateless_uniform(tf.shape(chance), seed) < chance, tf.float32)
    flat = tf.reshape(scores if logits else tf.math.log(scores), [-1, scores.shape[-1]])
    drawn = tf.random.stateless_categorical(flat, 1, seed, dtype=tf.int32)
    drawn = tf.reshape(drawn, tf.shape(scores)[:-1])
    return tf.one_hot(drawn, scores.shape[-1]) if spec.kind == "onehot" else drawn
