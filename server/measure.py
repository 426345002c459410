"""By what a holdout is judged, and how a batch of predictions becomes one number per example, larger is better.

    metric     number
    accuracy   the share of an example's decisions that are its labels: 0 or 1 where there is one decision
    auc        what ranks the example: probability (or logit) of the label, or of the second of two labels
    loss       minus the job's own Keras loss; summed over outputs where none is chosen

A decision is the largest of several outputs; for 0/1 labels a probability above 0.5, or a logit above 0.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedretrain.contract import Contract, OutputSpec
from fedretrain.errors import ConfigurationError
from fedretrain.job import HoldoutSection, Loss, NamedConfig, TrainSection
from fedretrain.settings import make_loss

Metric = Literal["accuracy", "auc", "loss"]
Arrays = list[NDArray[Any]]
Scorer = Callable[[Arrays, Arrays], NDArray[Any]]
"""Predictions and labels of one batch, each by output of the contract, to scores [b]."""

_ACCURACY = {"accuracy", "acc", "binaryaccuracy", "categoricalaccuracy", "sparsecategoricalaccuracy"}


class NotByExample(ConfigurationError):
    """The job's loss is of whole batches, and has no value for a single example."""


@dataclass(frozen=True)
class Measure:
    """The metric, and the outputs it is taken of by position in the contract; several only for "loss"."""

    metric: Metric
    outputs: tuple[int, ...]


def choose_measure(section: HoldoutSection, contract: Contract, train: TrainSection) -> Measure:
    """The holdout's own metric and output, else the job's first metric.

    Without any metric, a single output with labels is judged by accuracy and everything else by loss.

    Raises:
        ConfigurationError: An output the model does not have, or a metric its labels do not allow.
    """
    outputs = _chosen_outputs(section, contract)
    if len(outputs) > 1:
        if section.metric in ("accuracy", "auc"):
            names = ", ".join(spec.name for spec in contract.outputs)
            raise ConfigurationError(
                f"holdout '{section.name}': metric '{section.metric}' is of one output, and the model has {names}; "
                'set `output`, or metric = "loss" for the sum of all losses'
            )
        return Measure("loss", outputs)
    spec = contract.outputs[outputs[0]]
    metric = section.metric or _metric_of(train, spec)
    if metric == "accuracy" and spec.kind == "regression":
        raise ConfigurationError(
            f"holdout '{section.name}': metric 'accuracy' needs labels, and '{spec.name}' is a regression; "
            'expected metric = "loss"'
        )
    if metric == "auc" and not _ranks(spec):
        raise ConfigurationError(
            f"holdout '{section.name}': metric 'auc' needs two labels, and '{spec.name}' ({spec.kind}) has "
            f'{len(spec.labels)}; expected metric = "accuracy" or "loss"'
        )
    return Measure(metric, outputs)


def _chosen_outputs(section: HoldoutSection, contract: Contract) -> tuple[int, ...]:
    names = [spec.name for spec in contract.outputs]
    if section.output is None:
        return tuple(range(len(names)))
    if section.output in names:
        return (names.index(section.output),)
    near = difflib.get_close_matches(section.output, names, n=1, cutoff=0.0)[0]
    raise ConfigurationError(
        f"holdout '{section.name}': output: expected one of {', '.join(names)}, got '{section.output}'; "
        f"did you mean '{near}'?"
    )


def _metric_of(train: TrainSection, spec: OutputSpec) -> Metric:
    """What the job's first metric comes to for this output."""
    if spec.kind == "regression":
        return "loss"
    first = train.metrics[0].lower().replace("_", "") if train.metrics else "accuracy"
    return "accuracy" if first in _ACCURACY else "auc" if first == "auc" else "loss"


def _ranks(spec: OutputSpec) -> bool:
    if spec.kind == "binary":
        return spec.shape in ((), (1,))
    return spec.kind in ("multiclass", "onehot") and spec.shape == (2,)


def is_single_decision(measure: Measure, contract: Contract) -> bool:
    """Whether the scores are 0 or 1, one decision for each example."""
    spec = contract.outputs[measure.outputs[0]]
    shape = spec.shape[:-1] if spec.kind in ("multiclass", "onehot") else spec.shape
    return measure.metric == "accuracy" and all(n == 1 for n in shape)


def make_scorer(measure: Measure, contract: Contract, train: TrainSection) -> Scorer:
    """How this measure scores a batch.

    Args:
        measure: From ``choose_measure``.
        contract: Whose outputs the batches have.
        train: Resolved: its losses are given.

    Raises:
        ConfigurationError: A loss that Keras does not have. The scorer itself raises it for a loss that is not
            taken example by example.
    """
    first = measure.outputs[0]
    spec = contract.outputs[first]
    if measure.metric == "auc":
        return lambda predictions, _: _ranking(predictions[first], spec)
    if measure.metric == "accuracy":
        threshold = 0.0 if _loss_of(train, spec).settings.get("from_logits") else 0.5
        return lambda predictions, labels: _decided_right(predictions[first], labels[first], spec, threshold)
    losses = [(p, _loss_by_example(_loss_of(train, contract.outputs[p]))) for p in measure.outputs]
    return lambda predictions, labels: -np.sum([loss(labels[p], predictions[p]) for p, loss in losses], axis=0)


def two_labels(labels: NDArray[Any], spec: OutputSpec) -> NDArray[np.bool_]:
    """Labels of an output that "auc" takes, as bool [n]: whether it is the (second) label."""
    if spec.kind == "onehot":
        return np.asarray(labels[:, 1] > labels[:, 0])
    return np.asarray(labels.reshape(len(labels)) > 0.5)


def _ranking(prediction: NDArray[Any], spec: OutputSpec) -> NDArray[Any]:
    wide = prediction.astype(np.float64)
    return wide.reshape(len(wide)) if spec.kind == "binary" else wide[:, 1] - wide[:, 0]


def _decided_right(prediction: NDArray[Any], labels: NDArray[Any], spec: OutputSpec, threshold: float) -> NDArray[Any]:
    if spec.kind == "multiclass":
        right = prediction.argmax(-1) == labels
    elif spec.kind == "onehot":
        right = prediction.argmax(-1) == labels.argmax(-1)
    else:
        right = (prediction > threshold) == (labels > 0.5)
    share: NDArray[Any] = right.reshape(len(right), -1).mean(axis=1)
    return share


def _loss_of(train: TrainSection, spec: OutputSpec) -> NamedConfig:
    loss: Loss | None = train.loss.get(spec.name) if isinstance(train.loss, dict) else train.loss
    if loss is None:
        raise ConfigurationError(f"train.loss: expected a loss for output '{spec.name}', got none")
    return loss if isinstance(loss, NamedConfig) else NamedConfig(name=loss)


def _loss_by_example(config: NamedConfig) -> Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]:
    """The job's loss as a function of labels and predictions [b, ...] to float64 [b]."""
    loss = make_loss(config, reduction="none")

    def by_example(labels: NDArray[Any], prediction: NDArray[Any]) -> NDArray[Any]:
        values = np.asarray(loss(labels, prediction), dtype=np.float64)
        if values.shape[:1] != prediction.shape[:1]:
            raise NotByExample(
                f"train.loss: '{config.name}' has no value for a single example, so it cannot compare two models on "
                'the same examples; expected metric = "accuracy" or "auc" at the holdouts'
            )
        mean: NDArray[Any] = values.reshape(len(values), -1).mean(axis=1)
        return mean

    return by_example
