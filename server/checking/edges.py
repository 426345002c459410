"""Cells of the histograms: what a check's features are, with edges that all sites share.

Edges are the job's where ``watch.edges`` has some, else quantiles of the first holdout that must not get worse, whose
values are computed with the model in use: they are part of the contract, so that counts add up across sites. Values
that are tied give one edge; where there are no more different values than cells, each value is the beginning of one.
"""

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.contract import Contract, Feature
from fedretrain.dataset import Dataset, as_arrays, check_dataset, load_npz
from fedretrain.errors import ConfigurationError, DataMismatch
from fedretrain.features import features_of, penultimate, values
from fedretrain.job import HoldoutSection, Job, WatchSection
from fedretrain.modelfile import BaseModel

_BATCH = 256


def watched_features(job: Job, contract: Contract, base: BaseModel) -> tuple[Feature, ...]:
    """What is watched of each example, with edges; loads TensorFlow.

    Args:
        job: Its ``watch`` and holdouts.
        contract: Of the model in use, without features.
        base: The model in use.

    Raises:
        ConfigurationError: ``watch.edges`` names no feature, or the holdout's inputs do not fit.
    """
    section = job.watch or WatchSection()
    data = inputs_of(_holdout(job), contract)
    hidden = _hidden(job, contract, base, data) if section.projections else None
    features = tuple(features_of(contract, 0 if hidden is None else hidden.shape[1], section.projections))
    _check_names(section.edges, [feature.name for feature in features])
    numbers = values(contract, features, data.x, hidden)
    return tuple(
        feature.model_copy(
            update={"edges": section.edges.get(feature.name) or edges(numbers[feature.name], section.bins)}
        )
        for feature in features
    )


def edges(numbers: NDArray[np.float64], bins: int) -> tuple[float, ...]:
    """Inner edges of at most ``bins`` cells; of numbers that are all the same, of the cells below, at and above it.

    Args:
        numbers: At least one, finite.
        bins: How many cells are wanted.
    """
    different = np.unique(numbers)
    if len(different) == 1:
        only = float(different[0])
        return only, float(np.nextafter(only, np.inf))
    if len(different) <= bins:
        return tuple(map(float, different[1:]))
    quantiles = np.unique(np.quantile(numbers, np.arange(1, bins) / bins))
    inner = quantiles[quantiles > different[0]]
    return tuple(map(float, inner if len(inner) else different[1:2]))


def inputs_of(holdout: HoldoutSection, contract: Contract) -> Dataset:
    """A holdout's inputs, checked, without labels: these may be of a label space that is only wanted.

    Raises:
        ConfigurationError: The file cannot be read, or its inputs do not fit the contract.
    """
    unlabelled = contract.model_copy(update={"outputs": ()})
    try:
        data = load_npz(holdout.path, unlabelled)
        check_dataset(data, unlabelled)
    except DataMismatch as error:
        raise ConfigurationError(f"holdout '{holdout.name}': {holdout.path}: {error}") from None
    return as_arrays(data, unlabelled)


def _holdout(job: Job) -> HoldoutSection:
    return next((holdout for holdout in job.holdout if holdout.must == "not-worse"), job.holdout[0])


def _hidden(job: Job, contract: Contract, base: BaseModel, data: Dataset) -> NDArray[Any] | None:
    """Values of the penultimate layer [n, d]; None where the model has no one such layer."""
    from fedretrain.variables import prepare_model
    from server.scores import make_predictor

    layers = penultimate(prepare_model(base.architecture, (), job.model.allow_modules, base.weights))
    if layers is None:
        return None
    predict = make_predictor(layers, contract)
    starts = range(0, len(data), _BATCH)
    return np.concatenate([predict(data.take(np.arange(at, min(at + _BATCH, len(data)))))[0] for at in starts])


def _check_names(given: Mapping[str, tuple[float, ...]], known: list[str]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ConfigurationError(
                f"watch.edges: expected names of what is watched, {', '.join(known) or 'nothing'}, got '{name}'{hint}"
            )
