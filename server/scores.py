"""What incumbent and candidate score on the same examples: predictions in, one number per example out.

Both models run in inference mode over the same batches; where they are of one architecture it is built once and has one
set of weights after the other, so equal weights have equal scores to the bit. Where they answer in different label
spaces, the incumbent's answers are put into the candidate's words first (``fedretrain.labelspace``). Only scores are
kept, never predictions. A row for which any output of the model is not finite scores NaN, whichever output is judged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.contract import Contract
from fedretrain.dataset import Dataset
from fedretrain.job import HoldoutSection, ModelSection, TrainSection
from fedretrain.labelspace import LabelSpace
from fedretrain.modelfile import BaseModel

from .measure import Arrays, Measure, Metric, Scorer, choose_measure, is_single_decision, make_scorer, two_labels

BATCH = 256


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of both models on one holdout, larger is better (``server.measure``).

    Attributes:
        metric: What the scores are.
        incumbent: float64 [n]; NaN where the model's prediction or its loss is not finite.
        candidate: Likewise.
        single: Whether each score is one decision, 0 or 1.
        labels: bool [n] for AUC, else None.
        weights: float [n], or None.
        slices: text [n], or None; an empty text is no slice.
    """

    metric: Metric
    incumbent: NDArray[Any]
    candidate: NDArray[Any]
    single: bool = False
    labels: NDArray[Any] | None = None
    weights: NDArray[Any] | None = None
    slices: NDArray[Any] | None = None


def score_holdouts(  # noqa: PLR0913, PLR0917 - what scores depend on, each from another source
    model_section: ModelSection,
    contract: Contract,
    train: TrainSection,
    models: tuple[BaseModel, BaseModel],
    holdouts: Sequence[tuple[HoldoutSection, Dataset]],
    space: LabelSpace | None = None,
) -> list[Scores]:
    """Run both models over all holdouts.

    Args:
        model_section: The job's model table: whose classes may be built.
        contract: The candidate's; what data belong to.
        train: Resolved; its loss is what the metric "loss" means.
        models: The incumbent and the candidate.
        holdouts: Checked data in the contract's dtypes (``fedretrain.dataset.as_arrays``).
        space: How the incumbent's labels become the contract's, where they differ.

    Raises:
        ConfigurationError: A metric, output or loss that does not fit the model.
        ModelRefused: Weights that do not belong to the architecture.
    """
    from fedretrain.architecture import build, set_weights

    measures = [choose_measure(section, contract, train) for section, _ in holdouts]
    scorers = [make_scorer(measure, contract, train) for measure in measures]
    built: dict[str, Any] = {}
    rows: list[list[NDArray[Any]]] = []
    for which, wanted in zip((space, None), models, strict=True):
        if wanted.architecture not in built:
            built = {wanted.architecture: build(wanted.architecture, model_section.allow_modules)}
        model = built[wanted.architecture]
        set_weights(model, wanted.weights)
        predict = _in_space(make_predictor(model, contract), contract, which)
        rows.append([score_rows(data, contract, predict, s) for s, (_, data) in zip(scorers, holdouts, strict=True)])
    return [
        _collected(measure, contract, data, *pair)
        for measure, (_, data), *pair in zip(measures, holdouts, *rows, strict=True)
    ]


def _in_space(
    predict: Callable[[Dataset], Arrays], contract: Contract, space: LabelSpace | None
) -> Callable[[Dataset], Arrays]:
    """The predictor, with the output that the space belongs to in the contract's labels."""
    if space is None:
        return predict
    position = [spec.name for spec in contract.outputs].index(space.output)

    def translated(batch: Dataset) -> Arrays:
        found = predict(batch)
        return [space.answers(p) if i == position else p for i, p in enumerate(found)]

    return translated


def _collected(
    measure: Measure, contract: Contract, data: Dataset, incumbent: NDArray[Any], candidate: NDArray[Any]
) -> Scores:
    spec = contract.outputs[measure.outputs[0]]
    return Scores(
        metric=measure.metric,
        incumbent=incumbent,
        candidate=candidate,
        single=is_single_decision(measure, contract),
        labels=two_labels(data.y[spec.name], spec) if measure.metric == "auc" else None,
        weights=data.sample_weight,
        slices=data.slices,
    )


def score_rows(data: Dataset, contract: Contract, predict: Callable[[Dataset], Arrays], scorer: Scorer) -> NDArray[Any]:
    """Scores of all rows, float64 [n]; NaN for rows that are not finite."""
    scores = np.empty(len(data), np.float64)
    for start in range(0, len(data), BATCH):
        batch = data.take(np.arange(start, min(start + BATCH, len(data))))
        predictions = predict(batch)
        finite = np.all([np.isfinite(p).reshape(len(p), -1).all(axis=1) for p in predictions], axis=0)
        of_batch = scorer(predictions, [batch.y[spec.name] for spec in contract.outputs])
        scores[start : start + len(batch)] = np.where(finite & np.isfinite(of_batch), of_batch, np.nan)
    return scores


def make_predictor(model: Any, contract: Contract) -> Callable[[Dataset], Arrays]:
    """The model in inference mode as a function of a batch, outputs in the contract's order.

    Made for one set of weights: a trace may hold constants that layers computed from their weights.
    """
    import keras
    import tensorflow as tf

    signature = [tf.TensorSpec([None, *spec.shape], spec.dtype) for spec in contract.inputs]

    def run(x: list[Any]) -> list[Any]:
        inputs = x[0] if len(x) == 1 else keras.tree.pack_sequence_as(model.input, x)
        return list(keras.tree.flatten(model(inputs, training=False)))

    traced = tf.function(run, input_signature=[signature], autograph=False)
    return lambda batch: [np.asarray(p) for p in traced([batch.x[spec.name] for spec in contract.inputs])]
