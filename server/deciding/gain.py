r"""What a retraining should bring: what is at stake, the share of it that each way gets back, corrected by experience.

The expected gain of a way a is ``stake * SHARES[nature][a] * c(a)``.

**Stake**, of the metric: what was lost, plus what more data bring.

- Lost: the level that can be reached (``server.deciding.level``) minus the metric on recent data. Without labels it
  is the greater of two: that level minus the accuracy that the model's own confidence lets expect, and what drift of
  effect e is taken to cost, ``e * LOSS[kind]``, at most ``MOST``; a model may be certain and wrong.
- More data: the error 1 - metric falls as a power of the number n of examples, so new data bring
  ``error * (1 - (1 + new / old) ** -b)`` with b = 0.25 (0.07 to 0.5). J. Hestness et al.: Deep Learning Scaling is
  Predictable, Empirically (2017), https://arxiv.org/abs/1712.00409, found exponents of 0.07 to 0.35; 0.5 is theory's.
- New labels: of the recent examples that bear them, all wrong so far, ``NEW_LABELS``.

**Shares** are priors: none is known of a job before it was retrained, and a plan says so (``gain_basis``). What they
order is what docs/retraining.md measures and this: many more data of the same kind favour training on all of them, few
favour going on; changed meaning favours recent examples with a few old ones, and makes all old ones misleading.

**Experience**: with the ratios r = gain / predicted gain of the n latest retrainings that way, within [0, 2], the
correction is c = (2 + sum r) / (2 + n), a prior of 1 that counts as two retrainings. From three on, the range is
Student's 95 % prediction interval of a further ratio.

The stake grows with every drift and with every drop of the metric, whatever the nature of the data is said to be.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fedretrain.planning import PlanSection, Retraining

from .evidence import Evidence, Past
from .level import below, fell, labelled, reachable, shaped
from .plan import Range
from .rules import Nature, learnable, nature, standing

LOSS: Final[Mapping[str, Range]] = {
    "covariate": Range(0.0, 0.1, 0.4),
    "label": Range(0.0, 0.1, 0.3),
    "concept": Range(0.5, 1.0, 1.0),  # its effect is a difference of accuracies already
}
"""Of the metric, by unit of effect: priors."""
MOST: Final = 0.5
NEW_LABELS: Final = Range(0.4, 0.8, 1.0)
EXPONENT: Final = Range(0.07, 0.25, 0.5)
ERROR: Final = 0.1
"""Of a model of which nothing is known: a prior."""
CONFIDENT: Final = 0.05
"""How far off an accuracy is taken to be that was told from confidence alone."""
LATEST = 10
LEAST_PREDICTED = 0.005
_PRIOR_RUNS = 2

_LITTLE: Final[Mapping[Nature, Mapping[Retraining, Range]]] = {
    "more": {
        "incremental": Range(0.4, 0.8, 1.0),
        "replay": Range(0.4, 0.8, 1.0),
        "transfer": Range(0.2, 0.5, 0.8),
        "full": Range(0.2, 0.6, 1.0),
    },
    "covariate": {
        "incremental": Range(0.2, 0.6, 0.9),
        "replay": Range(0.4, 0.8, 1.0),
        "transfer": Range(0.1, 0.4, 0.8),
        "full": Range(0.2, 0.6, 0.9),
    },
    "label": {
        "incremental": Range(0.1, 0.5, 0.8),
        "replay": Range(0.4, 0.8, 1.0),
        "transfer": Range(0.2, 0.6, 0.9),
        "full": Range(0.3, 0.7, 1.0),
    },
    "concept": {
        "incremental": Range(0.2, 0.6, 0.9),
        "replay": Range(0.4, 0.8, 1.0),
        "transfer": Range(0.1, 0.4, 0.8),
        "full": Range(0.0, 0.3, 0.6),
    },
    "unexplained": {
        "incremental": Range(0.2, 0.7, 1.0),
        "replay": Range(0.2, 0.7, 1.0),
        "transfer": Range(0.1, 0.3, 0.6),
        "full": Range(0.0, 0.5, 0.9),
    },
    "labels": {"extend": Range(0.5, 0.9, 1.0)},
}
"""Where there are few new data beside the old ones."""
_MUCH: Final[Mapping[Nature, Mapping[Retraining, Range]]] = {
    **_LITTLE,
    "more": {
        "incremental": Range(0.2, 0.5, 0.8),
        "replay": Range(0.3, 0.7, 1.0),
        "transfer": Range(0.1, 0.3, 0.6),
        "full": Range(0.6, 1.0, 1.0),
    },
    "covariate": {**_LITTLE["covariate"], "full": Range(0.4, 0.85, 1.0)},
    "label": {**_LITTLE["label"], "full": Range(0.4, 0.85, 1.0)},
    "concept": {**_LITTLE["concept"], "incremental": Range(0.3, 0.7, 1.0), "full": Range(0.0, 0.4, 0.7)},
}
"""Where new data are ``plan.share_full`` of the old ones or more."""


@dataclass(frozen=True)
class Experience:
    """What past retrainings of one way say: the correction, and the range of a further ratio where it is known."""

    correction: float = 1.0
    ratios: tuple[float, float] | None = None
    runs: int = 0


def stake(evidence: Evidence, policy: PlanSection) -> Range:
    """How much of the metric could be gained at most, from 0 to 1."""
    parts = [lost(evidence, policy), _more(evidence), _unknown_labels(evidence, policy)]
    return shaped(*(min(1.0, sum(values)) for values in zip(*map(_three, parts), strict=True)))


def lost(evidence: Evidence, policy: PlanSection) -> Range:
    """How much of the metric was lost since it was as good as it can be, from 0 to 1."""
    known = fell(evidence, policy)
    if known is not None:
        return known
    told, reached = evidence.expected_accuracy, reachable(evidence, policy)
    parts = [_guessed(evidence, policy)]
    if reached is not None and told is not None and not labelled(evidence):
        parts.append(below(reached, Range(told - CONFIDENT, told, told + CONFIDENT)))
    return shaped(*map(max, zip(*map(_three, parts), strict=True)))


def shares(evidence: Evidence, policy: PlanSection) -> Mapping[Retraining, Range]:
    """The share of the stake that each way is believed to get back; ways that do not answer to the data are missing."""
    return (_MUCH if much(evidence, policy) else _LITTLE)[nature(evidence, policy)]


def much(evidence: Evidence, policy: PlanSection) -> bool:
    """Whether new data are ``plan.share_full`` of the old ones, or more."""
    new, old = evidence.new_examples or 0, evidence.old_examples or 0
    return new > 0 and new >= policy.share_full * old


def gain_of(stake: Range, share: Range, experience: Experience) -> Range:
    """The gain of one way, from 0 to 1."""
    expected = stake.expected * share.expected
    low, high = stake.low * share.low * experience.correction, stake.high * share.high * experience.correction
    if experience.ratios is not None:
        low, high = expected * experience.ratios[0], expected * experience.ratios[1]
    return shaped(low, expected * experience.correction, high)


def experience_of(action: Retraining, past: Sequence[Past]) -> Experience:
    """What the latest retrainings that way say."""
    scored = [(one.gain, one.predicted) for one in past if one.action == action]
    ratios = [
        min(2.0, max(0.0, gain / predicted))
        for gain, predicted in scored
        if gain is not None and predicted is not None and predicted >= LEAST_PREDICTED
    ][-LATEST:]
    n = len(ratios)
    correction = (_PRIOR_RUNS + math.fsum(ratios)) / (_PRIOR_RUNS + n)
    if n < 3:
        return Experience(correction, None, n)
    from scipy.special import stdtrit

    mean = math.fsum(ratios) / n
    deviation = math.sqrt(math.fsum((r - mean) ** 2 for r in ratios) / (n - 1))
    reach = float(stdtrit(n - 1, 0.975)) * deviation * math.sqrt(1 + 1 / n)
    return Experience(correction, (max(0.0, mean - reach), mean + reach), n)


def _guessed(evidence: Evidence, policy: PlanSection) -> Range:
    """From drift alone: the greatest of what each kind is taken to cost."""
    drifts = [LOSS[signal.kind].times(max(0.0, signal.effect)) for signal in standing(evidence, policy)]
    return shaped(*(min(MOST, max(values)) for values in zip((0.0, 0.0, 0.0), *map(_three, drifts), strict=True)))


def _more(evidence: Evidence) -> Range:
    new, old = evidence.new_examples or 0, evidence.old_examples or 0
    known = evidence.reference or evidence.metric
    error = ERROR if known is None else 1.0 - known.value
    more = 1.0 + new / max(old, 1, new // 4)  # five times as many at most: no law was measured beyond
    return shaped(*(error * (1.0 - more**-exponent) for exponent in _three(EXPONENT)))


def _unknown_labels(evidence: Evidence, policy: PlanSection) -> Range:
    count = sum(count for _, count in learnable(evidence, policy))
    return NEW_LABELS.times(min(1.0, count / max(1, evidence.new_examples or count)))


def _three(value: Range) -> tuple[float, float, float]:
    return value.low, value.expected, value.high
