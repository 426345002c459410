"""Tables of examples: how many there are of each kind, whole numbers that add up across sites."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.checks import AGE_EDGES_DAYS, CONFIDENCE_BINS, CONFIDENCE_UNIT

Array = NDArray[Any]
Counts = NDArray[np.int64]
_DAY_S = 86_400


def by_label(given: Array, names: int) -> Counts:
    """Examples with each label, int64 [names].

    Args:
        given: Positions [n], -1 for none; or bool [n, names], where each label counts.
        names: How many labels there are.
    """
    if given.ndim == 2:
        return np.asarray(given.sum(axis=0), np.int64)
    return np.bincount(given[given >= 0], minlength=names).astype(np.int64)


def confusion(true: Array, predicted: Array, labels: int) -> Counts:
    """Examples by their label and what the model takes them for, int64 [labels, labels].

    Args:
        true: Positions [n]; those that are none of the contract's ``labels`` are left out.
        predicted: Positions [n].
        labels: How many the contract has.
    """
    own = (true >= 0) & (true < labels)
    cells = true[own] * labels + predicted[own]
    return np.bincount(cells, minlength=labels * labels).reshape(labels, labels).astype(np.int64)


def confidence_cells(confidence: Array) -> Array:
    """The bin of each confidence, int64 [n]: equal bins of 0 to 1, 1 is in the last."""
    return np.minimum((confidence * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)


def by_cell(cells: Array, chosen: Array) -> Counts:
    """Chosen examples (bool [n]) by their confidence bin."""
    return np.bincount(cells[chosen], minlength=CONFIDENCE_BINS).astype(np.int64)


def confidence_sums(confidence: Array, cells: Array) -> Counts:
    """The sum of the confidences by bin, each rounded to thousandths, in thousandths."""
    parts = np.rint(confidence * CONFIDENCE_UNIT).astype(np.int64)
    found: Counts = np.zeros(CONFIDENCE_BINS, np.int64)
    np.add.at(found, cells, parts)
    return found


def ages(time: Array, now: float) -> Counts:
    """Examples by their whole days of age, in cells between ``AGE_EDGES_DAYS``.

    Args:
        time: Seconds since 1970 UTC [n]; NaN, where nobody knows, is of today, as it is recent.
        now: The same, of the check; its day counts, not its hour.
    """
    days = np.floor(now / _DAY_S) - np.floor(np.where(np.isfinite(time), time, now) / _DAY_S)
    cells = np.searchsorted(np.asarray(AGE_EDGES_DAYS), days, side="right")
    return np.bincount(cells, minlength=len(AGE_EDGES_DAYS) + 1).astype(np.int64)
