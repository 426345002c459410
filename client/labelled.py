"""Outputs for which a site has no labels: its data train the others, and what belongs to these alone stays as it is.

A label that is missing is -1 or NaN (``fedretrain.labels.no_labels``). It gets a weight of 0, by output, so its loss is
0 and no gradient comes of it. What an optimizer or a penalty does all the same to variables that no other output uses,
such as weight decay, is taken back: the update of these is 0 at a site that has no label of their outputs at all.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.contract import Contract, OutputSpec
from fedretrain.dataset import Dataset

Array = NDArray[Any]


def absent(labels: Array, spec: OutputSpec) -> Array:
    """Which examples have no label, bool [n]; ``labels`` as ``fedretrain.labels.labels_as_array`` gives them."""
    first = labels.reshape(len(labels), -1)[:, 0] if labels.size else np.zeros(len(labels), labels.dtype)
    found: Array = first == -1 if spec.kind == "multiclass" else np.isnan(first)
    return found


def lacking(data: Dataset, contract: Contract, rows: Array | None = None, least: int = 1) -> frozenset[str]:
    """Names of the outputs of which fewer than ``least`` examples, among ``rows`` or all, have a label."""
    there = {spec.name: ~absent(data.y[spec.name], spec) for spec in contract.outputs}
    return frozenset(name for name, has in there.items() if (has if rows is None else has[rows]).sum() < least)


def incomplete(data: Dataset, contract: Contract) -> bool:
    """Whether any label is missing."""
    return any(absent(data.y[spec.name], spec).any() for spec in contract.outputs)


def labels_and_weights(data: Dataset, contract: Contract, *, each: bool) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """What a model is trained with: labels by output, and weights.

    Args:
        data: Examples.
        contract: Describes them.
        each: Whether every output has weights of its own, as it must where a label is missing.

    Returns:
        The labels, 0 where they are missing; and no weights, one array of them [n], or one for each output.
    """
    y = tuple(data.y[spec.name] for spec in contract.outputs)
    if not each:
        return y, () if data.sample_weight is None else (data.sample_weight,)
    own = np.ones(len(data), np.float32) if data.sample_weight is None else data.sample_weight
    missing = [absent(labels, spec) for labels, spec in zip(y, contract.outputs, strict=True)]
    filled = tuple(_filled(labels, where) for labels, where in zip(y, missing, strict=True))
    return filled, tuple(np.where(where, np.float32(0), own) for where in missing)


def untouched(model: Any, contract: Contract, names: frozenset[str]) -> tuple[int, ...]:
    """Places among ``contract.changing`` of the variables that no output uses but those of ``names``.

    Args:
        model: As built; of one that is no graph of layers nothing is known, and nothing is found.
        contract: Describes it.
        names: Of outputs.
    """
    import keras

    if not names or not isinstance(model, keras.Model) or not getattr(model, "outputs", None):
        return ()
    others = [t for t, spec in zip(model.outputs, contract.outputs, strict=True) if spec.name not in names]
    used = {id(v) for v in keras.Model(model.inputs, others).variables} if others else set()
    variables = model.variables
    return tuple(i for i, position in enumerate(contract.changing) if id(variables[position]) not in used)


def _filled(labels: Array, where: Array) -> Array:
    """The labels with 0 at ``where``, bool [n]."""
    along = where.reshape(-1, *[1] * (labels.ndim - 1))
    return np.where(along, labels.dtype.type(0), labels)
