"""What each way to retrain takes: known from its own runs, else scaled from those of other ways.

With the relative work W(a) of a way a (``WORK``, ``TRAVEL``), a way that never ran is expected to cost what the way b
with the most runs did, times W(a) / W(b), from half to double of that. The relative work is that of the measurements
in docs/retraining.md: time and bytes of runs with as many rounds, "incremental" = 1.
"""

import math
from collections.abc import Callable, Mapping
from typing import Final

from fedretrain.planning import RETRAININGS, UNITS, PlanSection, Retraining, Unit

from .plan import Cost, Range

WORK: Final[Mapping[Retraining, float]] = {
    "incremental": 1.0,
    "replay": 1.3,
    "transfer": 0.8,
    "full": 1.5,
    "extend": 1.4,
}
"""Seconds, at the server and at sites, and energy."""
TRAVEL: Final[Mapping[Retraining, float]] = {
    "incremental": 1.0,
    "replay": 1.0,
    "transfer": 0.5,
    "full": 1.0,
    "extend": 1.0,
}
"""Bytes: a frozen base does not travel."""
DOUBT: Final = 2.0
"""Between the scaled cost divided by this and times this."""


def costs_of_all(costs: Mapping[str, Cost]) -> dict[Retraining, Cost]:
    """The cost of every way to retrain, those that never ran scaled; all unknown where none ever ran."""
    ran = [action for action in RETRAININGS if action in costs and costs[action].runs > 0]
    if not ran:
        return {action: costs.get(action, Cost()) for action in RETRAININGS}
    best = max(ran, key=lambda action: costs[action].runs)  # the first of several
    return {action: costs[action] if action in ran else _scaled(costs[best], best, action) for action in RETRAININGS}


def _scaled(known: Cost, known_as: Retraining, action: Retraining) -> Cost:
    def by(work: Mapping[Retraining, float], cost: Range | None) -> Range | None:
        if cost is None:
            return None
        expected = cost.expected * work[action] / work[known_as]
        return Range(expected / DOUBT, expected, expected * DOUBT)

    return Cost(
        by(WORK, known.seconds), by(TRAVEL, known.bytes), by(WORK, known.site_seconds), by(WORK, known.kwh), runs=0
    )


def price_of(cost: Cost, policy: PlanSection) -> float:
    """How much of the metric the expected cost must bring to be worth it; what is unknown is free."""
    known = [(policy.price.of(unit), amount) for unit in UNITS if (amount := cost.of(unit)) is not None]
    return math.fsum(price * amount.expected for price, amount in known)


def cheapness(costs: Mapping[Retraining, Cost], unit: Unit) -> Callable[[Retraining], tuple[float, int]]:
    """The order of ways to retrain from cheap to dear, as a sorting key.

    By what each is expected to take in the unit, where that is known of all, else by relative work.
    """
    known = {action: cost for action in costs if (cost := costs[action].of(unit)) is not None}
    relative = TRAVEL if unit == "bytes" else WORK

    def key(action: Retraining) -> tuple[float, int]:
        amount = known[action].expected if len(known) == len(costs) else relative[action]
        return amount, RETRAININGS.index(action)

    return key
