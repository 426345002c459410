"""Whether a model's certainty is what happens: calibration error, intervals and sets of labels, on examples.

Calibration error is the expected calibration error over 15 bins of equal width (M. P. Naeini, G. F. Cooper,
M. Hauskrecht: Obtaining Well Calibrated Probabilities Using Bayesian Binning. AAAI 2015; C. Guo, G. Pleiss, Y. Sun,
K. Q. Weinberger: On Calibration of Modern Neural Networks. ICML 2017, https://arxiv.org/abs/1706.04599): the mean over
examples of | share of right decisions - mean chance given to the decision | within the example's bin.

Everything here is pure; ``weights`` are the examples' [n], or None for all alike.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BINS = 15
INTERVAL = 0.95
_Z = 1.959963984540054  # of a normal distribution, 95 % lie within so many deviations
_LEAST = 1e-12


def calibration_error(chances: Array, right: Array, weights: Array | None = None) -> float:
    """Expected calibration error, in [0, 1].

    Args:
        chances: What the model gave its decision, [n].
        right: Whether the decision was right, bool [n].
        weights: Of the examples.
    """
    weight = _weights(chances, weights)
    bins = np.minimum((chances * BINS).astype(int), BINS - 1)
    total = np.bincount(bins, weight, BINS)
    apart = np.bincount(bins, weight * (right - chances), BINS)
    return float(np.sum(np.abs(apart)) / np.sum(total))


def of_labels(chances: Array, labels: Array, weights: Array | None = None) -> dict[str, float]:
    """How well chances of labels fit, chances [n, c], labels int [n].

    Returns:
        ``ece``; ``nll``, the mean of -log of the chance given to the label; of the smallest sets of labels that have
        95 % together, ``coverage``, the share that has the label, and ``set_size``, the mean.
    """
    weight = _weights(labels, weights)
    rows = np.arange(len(labels))
    decided = chances.argmax(1)
    order = np.argsort(-chances, axis=1, kind="stable")
    sorted_ = np.take_along_axis(chances, order, 1)
    before = np.cumsum(sorted_, axis=1) - sorted_
    inside = before < INTERVAL
    found = np.any(inside & (order == labels[:, None]), axis=1)
    return {
        "ece": calibration_error(chances[rows, decided], decided == labels, weights),
        "nll": float(np.average(-np.log(np.maximum(chances[rows, labels], _LEAST)), weights=weight)),
        "coverage": float(np.average(found, weights=weight)),
        "set_size": float(np.average(inside.sum(1), weights=weight)),
    }


def of_decisions(chances: Array, labels: Array, weights: Array | None = None) -> dict[str, float]:
    """How well chances of yes fit, chances and labels 0 or 1 [n, k], each a decision of its own: ``ece``, ``nll``."""
    weight = np.repeat(_weights(labels, weights), labels.shape[1])
    chance, yes = chances.reshape(-1), labels.reshape(-1) > 0.5
    given = np.where(yes, chance, 1 - chance)
    decided = chance > 0.5
    return {
        "ece": calibration_error(np.where(decided, chance, 1 - chance), decided == yes, weight),
        "nll": float(np.average(-np.log(np.maximum(given, _LEAST)), weights=weight)),
    }


def of_values(means: Array, variances: Array, targets: Array, weights: Array | None = None) -> dict[str, float]:
    """How well normal distributions of answers fit, each [n, k].

    Returns:
        ``nll``; ``coverage``, the share of targets within their 95 % interval, and ``width``, the intervals' mean.
    """
    weight = np.repeat(_weights(targets, weights), targets.shape[1])
    spread = np.sqrt(np.maximum(variances, _LEAST)).reshape(-1)
    apart = np.abs(means - targets).reshape(-1)
    nll = 0.5 * (np.square(apart / spread) + np.log(2 * math.pi * np.square(spread)))
    return {
        "nll": float(np.average(nll, weights=weight)),
        "coverage": float(np.average(apart <= _Z * spread, weights=weight)),
        "width": float(np.average(2 * _Z * spread, weights=weight)),
    }


def _weights(examples: Array, weights: Array | None) -> Array:
    return np.ones(len(examples)) if weights is None else np.asarray(weights, np.float64)
