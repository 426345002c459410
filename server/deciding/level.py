r"""How good the model can be, by what is known, and how far below that it is on recent data.

The level that can be reached is where the learning curves of the latest released retrainings ended, else the better of
the metric on older data and the best that the model in use did on recent ones, else ``plan.metric_below`` where the
metric is below that.

**Learning curve**: y(r) = a - b r^-c is fitted to the metric after round r by least squares, and taken at the last
round. C. Cortes et al.: Learning Curves: Asymptotic Values and Rate of Convergence. NIPS 1993.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np

from fedretrain.planning import PlanSection

from .evidence import Estimate, Evidence, Past
from .plan import Range

FEWEST_LABELLED: Final = 30
"""Examples below which a metric says too little about what is lost."""
CURVES = 3
_FEWEST_POINTS = 4


def labelled(evidence: Evidence) -> bool:
    """Whether there is a metric on recent data from examples enough."""
    return evidence.metric is not None and evidence.metric.n >= FEWEST_LABELLED


def fell(evidence: Evidence, policy: PlanSection) -> Range | None:
    """How far the metric on recent data is below what can be reached, from 0 to 1; None where either is unknown."""
    reached = reachable(evidence, policy)
    if evidence.metric is None or not labelled(evidence) or reached is None:
        return None
    return below(reached, _range(evidence.metric))


def unrecovered(evidence: Evidence, policy: PlanSection) -> Range | None:
    """The level that past retrainings reached, where the metric on recent data is ``plan.sure_loss`` below; else None.

    The metric counts with its interval, the level as it is expected: how many examples a curve is from is not known.
    It is from validation parts of the data trained on, so data that stay harder lower it with each retraining.
    """
    reached = level(evidence.past)
    if reached is None or evidence.metric is None or not labelled(evidence):
        return None
    return reached if reached.expected - evidence.metric.high >= policy.sure_loss else None


def reachable(evidence: Evidence, policy: PlanSection) -> Range | None:
    """How good the model can be, as the module says; None where nothing is known."""
    curves = level(evidence.past)
    if curves is not None:
        return curves
    known = [estimate for estimate in (evidence.reference, evidence.best) if estimate is not None]
    if known:
        return _range(max(known, key=lambda estimate: (estimate.low, estimate.value)))
    least, metric = policy.metric_below, evidence.metric
    if least is None or (metric is not None and metric.high >= least):  # it is asked for, not known to be reached
        return None
    return Range(least, least, least)


def level(past: Sequence[Past]) -> Range | None:
    """Where the curves of the latest released retrainings ended; None without any of four rounds or more."""
    curves = [one.curve for one in past if one.released and len(one.curve) >= _FEWEST_POINTS]
    ends = [_end(tuple(curve)) for curve in curves[-CURVES:] if all(map(math.isfinite, curve))]
    if not ends:
        return None
    values, deviations = [end for end, _ in ends], [deviation for _, deviation in ends]
    reach = 1.96 * max(deviations)
    mean = math.fsum(values) / len(values)
    return Range(max(0.0, min(values) - reach), mean, min(1.0, max(values) + reach))


def power_law(curve: Sequence[float]) -> tuple[float, float, float]:
    """a, b and c of the power law a - b r^-c that fits a curve best, round r from 1 on; at least four rounds."""
    from scipy.optimize import curve_fit

    rounds, values = np.arange(1, len(curve) + 1, dtype=np.float64), np.asarray(curve, dtype=np.float64)
    begin = (float(min(1.0, max(0.0, values[-1]))), float(max(0.0, values[-1] - values[0])), 0.5)
    (a, b, c), _ = curve_fit(
        lambda r, a, b, c: a - b * r**-c, rounds, values, p0=begin, bounds=([0.0, 0.0, 0.05], [1.0, 2.0, 3.0])
    )
    return float(a), float(b), float(c)


@lru_cache(maxsize=64)
def _end(curve: tuple[float, ...]) -> tuple[float, float]:
    """The fitted end of a curve and the deviation of what is left; without a fit the mean of its last quarter."""
    values = np.asarray(curve, dtype=np.float64)
    try:
        a, b, c = power_law(curve)
    except RuntimeError:  # it did not converge
        tail = values[-max(1, len(values) // 4) :]
        return float(tail.mean()), float(values[len(values) // 2 :].std())
    fitted = a - b * np.arange(1, len(values) + 1) ** -c
    return float(fitted[-1]), float(np.sqrt(np.mean((values - fitted) ** 2)))


def below(reached: Range, now: Range) -> Range:
    """How far one is below the other, from 0 to 1."""
    return shaped(reached.low - now.high, reached.expected - now.expected, reached.high - now.low)


def shaped(low: float, expected: float, high: float) -> Range:
    """Three numbers within 0 and 1, in order around the middle one; to six digits, more of them mean nothing."""
    first, middle, last = (round(min(1.0, max(0.0, value)), 6) for value in (low, expected, high))
    return Range(min(middle, first), middle, max(middle, last))


def _range(estimate: Estimate) -> Range:
    return Range(estimate.low, estimate.value, estimate.high)
