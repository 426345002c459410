"""The calculations of an update as TensorFlow functions: many optimizer steps, or one evaluation, in one call.

Invariants:

- How many steps a call takes changes no bit of the result; the loss is carried from call to call.
- Every size of site and of last batch uses the same trace. The compiled steps have batches of one size, so a batch
  that is smaller is always left to the others.

XLA keeps a loop's variables in place and joins what lies between two products, which halves the time of small dense
models; its convolutions in a loop are many times slower than TensorFlow's on CPUs (``compiling.suited``).

The examples come as ``Piece``: tensors of many examples, and which rows of them to use, in order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from numpy.typing import NDArray

from fedretrain.contract import Contract, InputSpec, OutputSpec
from fedretrain.messages import PrepareRequest
from strategies.objective import LocalObjective

from .descent import Descent

_COMPILED_BYTES = 2 << 20  # inputs of one call of the compiled steps: they are gathered before
_MOST_STEPS = 256
_EVALUATED_BYTES = 1 << 20  # inputs of one batch in evaluation, where nothing is kept for gradients
_EVALUATED = 256


Parts = tuple[list[Any], list[Any], list[Any]]
"""Inputs in the contract's order, each [n, ...]; labels by output, each [n, ...]; weights: none, one tensor [n] for all
outputs, or one for each."""


Given = Sequence[list[Any]]
"""What the objective is given, by group: one tensor for each variable that trains."""


@dataclass(frozen=True)
class Piece:
    """Examples on the device, as tensors of ``n``, and which of these are used, in this order: ``rows``, int32 [m]."""

    parts: Parts
    rows: NDArray[Any]


class Graph:
    """Functions of one compiled model.

    ``traced`` may be set to False for a model that cannot be traced: it is then evaluated operation by operation.

    Args:
        model: Built and compiled.
        trained: The variables that train.
        metrics: By output, by name.
        objective: What the strategy adds to the loss, fitted to the model.
        request: What the server asked to prepare.
        teacher: The model in use, where the objective asks for it.

    Attributes:
        descent: One optimizer step.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - each is another part of a step
        self,
        model: Any,
        trained: Sequence[Any],
        metrics: list[dict[str, Any]],
        objective: LocalObjective,
        request: PrepareRequest,
        teacher: Any = None,
    ) -> None:
        self._model, self._trained, self._metrics = model, trained, metrics
        self.descent = Descent(model, trained, objective, self.loss, teacher)
        self._contract, self.batch = request.contract, request.train.batch_size
        self._functions: dict[tuple[str, int], Any] = {}
        self._compiled = tf.function(self._whole_batches, jit_compile=True, autograph=False)  # one, so compiled once
        self.traced = True
        size = max(1, example_bytes(self._contract))
        self.steps = max(1, min(_MOST_STEPS, _COMPILED_BYTES // (self.batch * size)))
        self.evaluated = max(self.batch, min(_EVALUATED, _EVALUATED_BYTES // size))

    @property
    def metric_names(self) -> list[str]:
        """Names of the metrics in the order ``evaluate`` gives them."""
        return [name for by_name in self._metrics for name in by_name]

    def metric_names_of(self, outputs: frozenset[str]) -> frozenset[str]:
        """Names of the metrics of these outputs."""
        pairs = zip(self._contract.outputs, self._metrics, strict=True)
        return frozenset(name for spec, by_name in pairs if spec.name in outputs for name in by_name)

    def train(self, total: Any, piece: Piece, given: Given, *, compiled: bool) -> Any:
        """Steps over a piece; its last batch may be smaller.

        Args:
            total: The sum of what was returned before: losses times examples, float64.
            piece: At most ``steps`` batches where ``compiled``.
            given: What the objective is given, by group as in ``descent.groups``.
            compiled: By XLA, as far as the batches are whole.
        """
        whole = len(piece.rows) // self.batch * self.batch if compiled else 0
        if whole:
            function = self._function("compiled", self.compiled_steps, piece)
            total = function(total, piece.parts, tf.constant(piece.rows[:whole]), given)
        if whole < len(piece.rows):
            function = self._function("train", self.plain_steps, piece)
            total = function(total, piece.parts, tf.constant(piece.rows[whole:]), given)
        return total

    def plain_steps(self, total: Any, parts: Parts, rows: Any, given: Given) -> Any:
        """As ``train``, without XLA; traceable, as it takes the rows as a tensor."""

        def body(start: Any, total: Any) -> tuple[Any, Any]:
            mine = rows[start : start + self.batch]
            loss = self.descent.step(take(parts, mine), given)
            return start + self.batch, total + tf.cast(loss, tf.float64) * tf.cast(tf.size(mine), tf.float64)

        return _loop(tf.size(rows), body, [tf.constant(0), total])[1]

    def compiled_steps(self, total: Any, parts: Parts, rows: Any, given: Given) -> Any:
        """As ``plain_steps``, by XLA: whole batches, at most ``steps``. It gets as many examples in each call."""
        most, count = self.steps * self.batch, tf.size(rows)
        gathered = take(parts, tf.ensure_shape(tf.pad(rows, [[0, most - count]]), [most]))
        return self._compiled(total, gathered, given, count // self.batch)

    def evaluate(self, total: Any, piece: Piece, *, first: bool) -> tuple[Any, list[Any]]:
        """Losses and metrics over one piece more.

        Args:
            total: The sum of losses times examples that was returned before, float64.
            piece: Examples.
            first: Whether the metrics start with it.

        Returns:
            The sum of losses times examples, and the metrics so far as in ``metric_names``.
        """
        function = self._function("test" if first else "more", self._test if first else self._test_more, piece)
        total, *metrics = function(total, piece.parts, tf.constant(piece.rows))
        return total, metrics

    def given_signature(self, groups: Sequence[str]) -> list[Any]:
        """Of what the objective is given of these groups."""
        return [[tf.TensorSpec(v.shape, v.dtype) for v in self._trained] for _ in groups]

    def signature(self, *, weighted: int) -> list[Any]:
        """Of a piece's parts with so many tensors of weights, and of its rows as a tensor."""
        return [examples_signature(self._contract, weighted=weighted), tf.TensorSpec([None], tf.int32)]

    def loss(self, parts: Parts, *, training: bool) -> tuple[Any, list[Any]]:
        """The loss Keras computes, regularisation included, and the predictions by output."""
        x, y, weights = parts
        inputs = x[0] if len(x) == 1 else keras.tree.pack_sequence_as(self._model.input, x)
        predicted = self._model(inputs, training=training)
        labels = keras.tree.pack_sequence_as(predicted, y)
        each = None
        if weights:
            flat = keras.tree.flatten(predicted)
            own = weights if len(weights) > 1 else weights * len(flat)
            shaped = [_along_examples(weight, p) for weight, p in zip(own, flat, strict=True)]
            each = keras.tree.pack_sequence_as(predicted, shaped)
        loss = self._model.compute_loss(inputs, labels, predicted, each, training=training)
        return loss, keras.tree.flatten(predicted)

    def _function(self, name: str, body: Callable[..., Any], piece: Piece) -> Any:
        if not self.traced:
            return body
        weighted = len(piece.parts[2])
        if (name, weighted) not in self._functions:
            self._functions[name, weighted] = traced(body, self._function_signature(name, weighted))
        return self._functions[name, weighted]

    def _function_signature(self, name: str, weighted: int) -> list[Any]:
        total = [tf.TensorSpec([], tf.float64), *self.signature(weighted=weighted)]
        return total if name in {"test", "more"} else [*total, self.given_signature(self.descent.groups)]

    def _whole_batches(self, total: Any, parts: Parts, given: Given, whole: Any) -> Any:
        def sliced(tensor: Any, step: Any) -> Any:
            rest = tensor.shape[1:]
            return tf.slice(tensor, [step * self.batch, *([0] * len(rest))], [self.batch, *rest])

        def body(step: Any, total: Any) -> tuple[Any, Any]:
            loss = self.descent.step(_each(lambda tensor: sliced(tensor, step), parts), given)
            return step + 1, total + tf.cast(loss, tf.float64) * self.batch

        return _loop(whole, body, [tf.constant(0), total])[1]

    def _test(self, total: Any, parts: Parts, rows: Any) -> list[Any]:
        for metric in self._all_metrics():
            metric.reset_state()
        return self._test_more(total, parts, rows)

    def _test_more(self, total: Any, parts: Parts, rows: Any) -> list[Any]:
        def body(start: Any, total: Any) -> tuple[Any, Any]:
            mine = rows[start : start + self.evaluated]
            used = take(parts, mine)
            loss, predictions = self.loss(used, training=False)
            _measure(self._metrics, used, predictions)
            return start + self.evaluated, total + tf.cast(loss, tf.float64) * tf.cast(tf.size(mine), tf.float64)

        total = _loop(tf.size(rows), body, [tf.constant(0), total])[1]
        return [total, *(metric.result() for metric in self._all_metrics())]

    def _all_metrics(self) -> list[Any]:
        return [metric for by_name in self._metrics for metric in by_name.values()]


def traced(body: Callable[..., Any], signature: list[Any]) -> Any:
    """The function of the one signature; called so, it is not looked up among others, which would cost 0.3 ms."""
    return tf.function(body, input_signature=signature, autograph=False).get_concrete_function()


def examples_signature(contract: Contract, *, weighted: int) -> Parts:
    """Signatures of inputs, labels and so many tensors of weights, for any number of examples."""
    x = [_input_signature(spec) for spec in contract.inputs]
    y = [_label_signature(spec) for spec in contract.outputs]
    return x, y, [tf.TensorSpec([None], tf.float32)] * int(weighted)


def example_bytes(contract: Contract) -> int:
    """Size of one example's inputs, axes of any length counted as 1."""
    sizes = (
        tf.TensorShape([n or 1 for n in s.shape]).num_elements() * tf.as_dtype(s.dtype).size for s in contract.inputs
    )
    return int(sum(sizes))


def take(parts: Parts, rows: Any) -> Parts:
    """The examples at ``rows``, int32 tensor [m]."""
    return _each(lambda tensor: tf.gather(tensor, rows), parts)


def _loop(end: Any, body: Callable[..., Any], state: list[Any]) -> Any:
    return tf.while_loop(lambda position, *_: position < end, body, state, parallel_iterations=1)


def _each(change: Callable[[Any], Any], parts: Parts) -> Parts:
    x, y, weights = parts
    return [change(t) for t in x], [change(t) for t in y], [change(t) for t in weights]


def _input_signature(spec: InputSpec) -> Any:
    return tf.TensorSpec([None, *spec.shape], spec.dtype)


def _label_signature(spec: OutputSpec) -> Any:
    """As ``fedretrain.labels.labels_as_array`` gives them."""
    if spec.kind == "multiclass":
        return tf.TensorSpec([None, *spec.shape[:-1]], tf.int32)
    return tf.TensorSpec([None, *spec.shape], tf.float32)


def _measure(metrics: list[dict[str, Any]], parts: Parts, predictions: list[Any]) -> None:
    """Tell metrics by output of a batch: of all examples, or of those that have a weight in an output of its own."""
    _, labels, weights = parts
    for i, (by_name, prediction) in enumerate(zip(metrics, predictions, strict=True)):
        counted = [_along_examples(tf.cast(weights[i] > 0, tf.float32), prediction)] if len(weights) > 1 else []
        for metric in by_name.values():
            metric.update_state(labels[i], prediction, *counted)


def _along_examples(weights: Any, prediction: Any) -> Any:
    """Weights [n] with axes of 1 behind, so that they multiply the losses [n, ...] of one output example by example."""
    return tf.reshape(weights, [-1] + [1] * (len(prediction.shape) - 2))
