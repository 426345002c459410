"""One model measured again and again on the same data, with other values of the variables that change.

Invariants: the model is its own, so that whatever else computes meanwhile is not disturbed; nothing measured here
decides about a release. Scores are made as the gate makes them (``server.scores``), in inference mode.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.dataset import Dataset
from fedretrain.errors import ConfigurationError
from fedretrain.job import TrainSection, unmeant_target

from . import paired
from .measure import Arrays, Measure, NotByExample, Scorer, choose_measure, make_scorer, two_labels
from .plan import Plan
from .scores import make_predictor

_BELOW_ZERO = frozenset({"cosinesimilarity", "kldivergence", "poisson"})  # of Keras' losses

BATCH_BYTES = 4 << 20  # of one batch's inputs and labels, with at least 32 and at most 1024 examples in it


@dataclass(frozen=True)
class Reading:
    """What a model comes to on the data; None where that is no finite number.

    Attributes:
        loss: The job's loss, as a mean over examples by their weights; regularisation is not in it. None also where
            the loss is of whole batches.
        metrics: The chosen metric by name, unless that is the loss.
    """

    loss: float | None
    metrics: dict[str, float]


class Yardstick:
    """Measures the models of one plan.

    Args:
        plan: Its base model has the values of all variables that do not change; its job's ``monitor`` says what is
            measured.
        data: Checked, in the contract's dtypes (``fedretrain.dataset.as_arrays``).

    Raises:
        ConfigurationError: There is no ``monitor``, its metric or output does not fit the model, or no model can reach
            its ``stop_at``.
    """

    def __init__(self, plan: Plan, data: Dataset) -> None:
        if plan.job.monitor is None:
            raise ConfigurationError("monitor: expected a table with a path, got none")
        self._plan = plan
        self._data = _without_idle(data)
        self._measure = choose_measure(plan.job.monitor.as_holdout, plan.contract, plan.train)
        check_target(self._measure.metric, plan.job.monitor.stop_at, plan.train)
        every_output = tuple(range(len(plan.contract.outputs)))
        outputs = self._measure.outputs if self._measure.metric == "loss" else every_output
        self._scorers: dict[str, Scorer] = {
            "loss": make_scorer(Measure("loss", outputs), plan.contract, plan.train),
            self._measure.metric: make_scorer(self._measure, plan.contract, plan.train),
        }
        self._model: Any = None
        self._predict: Callable[[Dataset], Arrays] | None = None

    @property
    def metric(self) -> str:
        """The chosen metric: "accuracy", "auc" or "loss"."""
        return self._measure.metric

    def read(self, params: Arrays, *, stopped: Callable[[], bool] = lambda: False) -> Reading | None:
        """Measure the model with these values of ``contract.changing``.

        Args:
            params: Read, never changed.
            stopped: Asked between batches; where it says so the answer is None.
        """
        predict = self._with(params)
        scores: dict[str, list[NDArray[Any]]] = {name: [] for name in self._scorers}
        for batch in self._batches():
            if stopped():
                return None
            predictions = predict(batch)
            labels = [batch.y[spec.name] for spec in self._plan.contract.outputs]
            for name, scorer in list(self._scorers.items()):
                try:
                    scores[name].append(scorer(predictions, labels))
                except NotByExample:
                    if name == self.metric:
                        raise
                    del self._scorers[name], scores[name]
        values = {name: self._mean(name, np.concatenate(parts)) for name, parts in scores.items()}
        loss = values.pop("loss", None)
        return Reading(loss, {name: value for name, value in values.items() if value is not None})

    def _with(self, params: Arrays) -> Callable[[Dataset], Arrays]:
        from fedretrain.variables import prepare_model

        plan = self._plan
        if self._model is None or self._predict is None:
            section, base = plan.job.model, plan.base
            self._model = prepare_model(base.architecture, section.freeze, section.allow_modules, base.weights)
            self._variables = list(self._model.variables)
            self._predict = make_predictor(self._model, plan.contract)
        for position, values in zip(plan.contract.changing, params, strict=True):
            self._variables[position].assign(values)
        return self._predict

    def _batches(self) -> Iterator[Dataset]:
        data = self._data
        row = sum(a.nbytes for of in (data.x, data.y) for a in of.values()) // max(1, len(data))
        size = min(1024, max(32, BATCH_BYTES // max(1, row)))
        return (data.take(np.arange(at, min(at + size, len(data)))) for at in range(0, len(data), size))

    def _mean(self, name: str, scores: NDArray[Any]) -> float | None:
        """One number as people read it: a loss is smaller when better."""
        if not np.isfinite(scores).all():
            return None
        weights = self._data.sample_weight
        if name == "auc":
            spec = self._plan.contract.outputs[self._measure.outputs[0]]
            value = paired.auc(scores, scores, two_labels(self._data.y[spec.name], spec), weights).candidate
        else:
            value = float(np.average(scores, weights=weights))
        value = -value if name == "loss" else value
        return value + 0.0 if np.isfinite(value) else None


def check_target(metric: str, target: float | None, train: TrainSection) -> None:
    """Raise ConfigurationError where a target cannot be meant, now that the metric is settled."""
    if target is None:
        return
    expected = unmeant_target(metric, target)
    if metric == "loss" and target < 0 and not _goes_below_zero(train):
        expected = "0 or more, as the job's loss is"
    if expected is not None:
        raise ConfigurationError(f"monitor.stop_at: expected {expected}, got {target:g}")


def _goes_below_zero(train: TrainSection) -> bool:
    losses = train.loss.values() if isinstance(train.loss, dict) else [train.loss]
    names = (loss if isinstance(loss, str) or loss is None else loss.name for loss in losses)
    return any(name is None or name.lower().replace("_", "") in _BELOW_ZERO for name in names)


def _without_idle(data: Dataset) -> Dataset:
    """The examples that count; raises ConfigurationError where none does."""
    if data.sample_weight is None:
        return data
    counted = np.flatnonzero(data.sample_weight > 0)
    if not len(counted):
        raise ConfigurationError("monitor: expected examples with a weight above 0, got none")
    return data.take(counted)
