"""One job's model at a site: built, frozen, compiled, with a training step that is traced once.

Invariants:

- Which variables train is settled before the step exists: layers are frozen, then the model is compiled. Flags set
  after that would change nothing in a step that is traced.
- Every update starts from the same state, whatever was trained before: variables that travel as received, all others
  as in the base model, seeds as given, the optimizer as a fresh one.
- A variable that does not travel comes out of an update with the bits it went in with.

Rounds, sites and the smaller last batch of an epoch all use one trace.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fedretrain.architecture import build, set_weights
from fedretrain.contract import Contract, InputSpec, OutputSpec, key
from fedretrain.dataset import Dataset
from fedretrain.errors import DeclinedRequest
from fedretrain.messages import PrepareRequest
from fedretrain.variables import freeze, variable_specs
from strategies.base import LocalObjective

from .settings import make_losses, make_metrics, make_optimizer

Arrays = list[NDArray[Any]]


class Learner:
    """The model of one request, with its optimizer, losses and metrics; ``loaded`` once it has the base model's values.

    Args:
        request: What the server asked to prepare.
        objective: What the strategy adds to the loss.
        allow_modules: Modules of this site whose layer classes may be built.

    Raises:
        ModelRefused: A layer outside the allow-list, or a model larger than the contract's.
        ConfigurationError: A freeze pattern that fits no layer, or nothing left to train.
        DeclinedRequest: ``model-mismatch`` where the frozen model's variables are not the contract's;
            ``request-invalid`` where optimizer or loss cannot be made.
    """

    def __init__(self, request: PrepareRequest, objective: LocalObjective, allow_modules: Sequence[str]) -> None:
        self.contract = request.contract
        self._objective = objective
        largest = sum(math.prod(spec.shape) for spec in self.contract.variables)
        self._model = build(request.architecture, allow_modules, largest)
        freeze(self._model, request.freeze)
        _check_variables(self._model, self.contract)
        self._variables = list(self._model.variables)
        self._trained = self._with_rule("train")
        self._kept: list[tuple[Any, NDArray[Any]]] = []
        self.loaded = False
        self._compile(request)
        self._anchors = self._make_anchors()
        self._steps: dict[tuple[bool, bool], Any] = {}

    def load(self, base: Arrays) -> None:
        """Take the base model's variables; those that do not travel keep these values. Raises ModelRefused."""
        set_weights(self._model, base)
        pairs = zip(self._variables, base, self.contract.variables, strict=True)
        self._kept = [(variable, array) for variable, array, spec in pairs if spec.rule == "keep"]
        self.loaded = True

    def start(self, received: Arrays, seeds: Iterable[int]) -> None:
        """Put everything into the state an update starts from.

        Args:
            received: The global values of the variables that travel, in the order of ``contract.changing``.
            seeds: One for each position of the model's variables, in [0, 2**31); used where the variable is a seed.
        """
        for position, array in zip(self.contract.changing, received, strict=True):
            self._variables[position].assign(array)
        for variable, spec, seed in zip(self._variables, self.contract.variables, seeds, strict=True):
            if spec.rule == "local":
                variable.assign(np.array([seed, 0]))
        for anchor, variable in zip(self._anchors, self._trained, strict=False):
            anchor.assign(variable.value)
        self._reset_optimizer()

    def step(self, batch: Dataset) -> float:
        """One optimizer step; returns the batch's loss as it was before it, without the strategy's penalty."""
        return float(self._run(batch, training=True))

    def finish(self) -> None:
        """What an optimizer does after its last step, such as putting averages in place."""
        self._model.optimizer.finalize_variable_values(self._trained)

    def evaluate(self, batches: Iterable[Dataset]) -> dict[str, float]:
        """Loss (mean over examples, regularisation included) and metrics of the model as it is, by name.

        Metrics take no account of sample weights; those that are not finite are left out, the loss is not.
        """
        for metric in self._all_metrics():
            metric.reset_state()
        losses = [(len(batch), float(self._run(batch, training=False))) for batch in batches]
        loss = sum(n * value for n, value in losses) / sum(n for n, _ in losses)
        values = {name: float(m.result()) for by_name in self._metrics for name, m in by_name.items()}
        return {"loss": loss} | {name: v for name, v in values.items() if np.isfinite(v)}

    def values(self) -> Arrays:
        """Copies of the variables that travel, in the order of ``contract.changing``."""
        return [_array(self._variables[p]) for p in self.contract.changing]

    def check_kept(self) -> None:
        """Raises RuntimeError where a variable that does not travel changed: a fault of ours, never of a peer."""
        for variable, array in self._kept:
            if _array(variable).tobytes() != array.tobytes():
                raise RuntimeError(f"variable {variable.path} must not change in training, but did")

    def _with_rule(self, rule: str) -> list[Any]:
        return [v for v, s in zip(self._variables, self.contract.variables, strict=True) if s.rule == rule]

    def _compile(self, request: PrepareRequest) -> None:
        outputs = self.contract.outputs
        self._metrics = make_metrics(request.train, outputs)
        optimizer = make_optimizer(request.train.optimizer)
        self._model.compile(optimizer, make_losses(request.train, outputs), jit_compile=False)
        self._model.optimizer.build(self._trained)

    def _make_anchors(self) -> list[Any]:
        """Variables for what was received, where the objective looks at it."""
        if self._objective.penalty(self._trained, [v.value for v in self._trained]) is None:
            return []
        return [tf.Variable(v.value, trainable=False) for v in self._trained]

    def _reset_optimizer(self) -> None:
        """Some optimizers start from the model's values (ScheduleFreeAdamW): only a fresh one knows its state."""
        optimizer = self._model.optimizer
        fresh = type(optimizer).from_config(optimizer.get_config())
        fresh.build(self._trained)
        for variable, initial in zip(optimizer.variables, fresh.variables, strict=True):
            variable.assign(initial.value)

    def _all_metrics(self) -> list[Any]:
        return [metric for by_name in self._metrics for metric in by_name.values()]

    def _run(self, batch: Dataset, *, training: bool) -> Any:
        weighted = batch.sample_weight is not None
        if (training, weighted) not in self._steps:
            self._steps[training, weighted] = self._make_step(training=training, weighted=weighted)
        weights = [batch.sample_weight] if weighted else []
        x = [batch.x[spec.name] for spec in self.contract.inputs]
        y = [batch.y[spec.name] for spec in self.contract.outputs]
        return self._steps[training, weighted](x, y, *weights)

    def _make_step(self, *, training: bool, weighted: bool) -> Any:
        body = self._train_step if training else self._test_step
        signature = [
            [_input_signature(spec) for spec in self.contract.inputs],
            [_label_signature(spec) for spec in self.contract.outputs],
            *([tf.TensorSpec([None], tf.float32)] if weighted else []),
        ]
        return tf.function(body, input_signature=signature, autograph=False)

    def _train_step(self, x: list[Any], y: list[Any], weights: Any = None) -> Any:
        optimizer = self._model.optimizer
        with tf.GradientTape() as tape:
            loss, _ = self._loss(x, y, weights, training=True)
            penalty = self._objective.penalty(self._trained, self._anchors)
            total = loss if penalty is None else loss + tf.cast(penalty, loss.dtype)
            scaled = optimizer.scale_loss(total)
        gradients = tape.gradient(scaled, [v.value for v in self._trained])
        optimizer.apply(gradients, self._trained)
        return loss

    def _test_step(self, x: list[Any], y: list[Any], weights: Any = None) -> Any:
        loss, predictions = self._loss(x, y, weights, training=False)
        for by_name, labels, prediction in zip(self._metrics, y, predictions, strict=True):
            for metric in by_name.values():
                metric.update_state(labels, prediction)
        return loss

    def _loss(self, x: list[Any], y: list[Any], weights: Any, *, training: bool) -> tuple[Any, list[Any]]:
        """The loss Keras computes, regularisation included, and the predictions by output."""
        inputs = x[0] if len(x) == 1 else keras.tree.pack_sequence_as(self._model.input, x)
        predicted = self._model(inputs, training=training)
        labels = keras.tree.pack_sequence_as(predicted, y)
        if weights is not None:
            weights = keras.tree.map_structure(lambda p: _along_examples(weights, p), predicted)
        loss = self._model.compute_loss(inputs, labels, predicted, weights, training=training)
        return loss, keras.tree.flatten(predicted)


def _check_variables(model: Any, contract: Contract) -> None:
    found = variable_specs(model)
    if len(found) != len(contract.variables):
        raise DeclinedRequest("model-mismatch", "architecture", f"{len(contract.variables)} variables")
    for position, (got, expected) in enumerate(zip(found, contract.variables, strict=True)):
        if got != expected:
            text = f"{expected.dtype} {list(expected.shape)}, rule {expected.rule}, as the contract has it"
            raise DeclinedRequest("model-mismatch", f"variable {key(position)}", text)


def _array(variable: Any) -> NDArray[Any]:
    return np.array(keras.ops.convert_to_numpy(variable.value))


def _input_signature(spec: InputSpec) -> Any:
    return tf.TensorSpec([None, *spec.shape], spec.dtype)


def _label_signature(spec: OutputSpec) -> Any:
    """As ``fedretrain.labels.labels_as_array`` gives them."""
    if spec.kind == "multiclass":
        return tf.TensorSpec([None, *spec.shape[:-1]], tf.int32)
    return tf.TensorSpec([None, *spec.shape], tf.float32)


def _along_examples(weights: Any, prediction: Any) -> Any:
    """Weights [n] with axes of 1 behind, so that they multiply the losses [n, ...] of one output example by example."""
    return tf.reshape(weights, [-1] + [1] * (len(prediction.shape) - 2))
