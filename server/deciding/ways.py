"""The ways to retrain that answer to what is new, what each should bring and take, and which of them is best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pydantic import JsonValue

from fedretrain.planning import RETRAININGS, PlanSection, Retraining

from .cost import cheapness, costs_of_all, price_of
from .evidence import Evidence
from .gain import experience_of, gain_of, shares, stake
from .limits import over_budget
from .plan import Cost, Range
from .rules import learnable, nature

SHARE: Final = 0.5
"""Of old examples in a replay."""
SHARE_OF_OLD_MEANING: Final = 0.3
"""The same where inputs mean something else than before."""
_DAY = 86_400.0


@dataclass(frozen=True)
class Way:
    """A way to retrain.

    Attributes:
        action: Which.
        gain: Expected; None where it does not answer to what is new.
        cost: Expected.
        why_not: Why it cannot be taken; empty where it can.
        dear: Whether it is the budget that does not allow it.
        free_at: From when on the budget does; None where it never does.
        price: How much of the metric the cost must bring to be worth it.
        known: From how many past retrainings the gain was corrected.
    """

    action: Retraining
    gain: Range | None
    cost: Cost
    why_not: str = ""
    dear: bool = False
    free_at: datetime | None = None
    price: float = 0.0
    known: int = 0

    @property
    def expected(self) -> float:
        """The expected gain."""
        return self.gain.expected if self.gain else 0.0

    @property
    def net(self) -> float:
        """What is left of the expected gain when the cost is paid."""
        return self.expected - self.price


def all_ways(evidence: Evidence, policy: PlanSection, costs: Mapping[str, Cost]) -> tuple[Way, ...]:
    """Every way to retrain, in the order of ``RETRAININGS``."""
    at_stake, parts, priced = stake(evidence, policy), shares(evidence, policy), costs_of_all(costs)
    found = []
    for action in RETRAININGS:
        cost, price = priced[action], price_of(priced[action], policy)
        if action not in parts:
            found.append(Way(action, None, cost, _declined(action, evidence) or _unfit(action)))
            continue
        experience = experience_of(action, evidence.past)
        gain = gain_of(at_stake, parts[action], experience)
        if action not in policy.actions:
            found.append(Way(action, gain, cost, "plan.actions does not name it.", price=price, known=experience.runs))
            continue
        if declined := _declined(action, evidence):
            found.append(Way(action, gain, cost, declined, price=price, known=experience.runs))
            continue
        free_at, why_not = over_budget(cost, evidence, policy) or (None, "")
        found.append(Way(action, gain, cost, why_not, bool(why_not), free_at, price, experience.runs))
    return tuple(found)


def _declined(action: Retraining, evidence: Evidence) -> str:
    """Which sites do not allow it, where too few others do; else empty."""
    against = evidence.barred(action)
    if not against:
        return ""
    verb = "does" if len(against) == 1 else "do"
    whose = f"{len(against)} of {evidence.sites} sites {verb} not allow it ({', '.join(against)})"
    return f"{whose}; a run needs {evidence.needed} that do."


def _unfit(action: Retraining) -> str:
    return "No labels are new." if action == "extend" else "It does not learn labels that are new."


def equals(ways: Sequence[Way], policy: PlanSection) -> tuple[Way, ...]:
    """Those that are as good as the best, from cheap to dear; of ways that can be taken, at least one.

    What counts is the gain without what the cost must bring (``plan.price``), and a difference of ``plan.equal_gain``
    of the greatest gain is none.
    """
    reach = policy.equal_gain * max(way.expected for way in ways)
    best = max(way.net for way in ways)
    equal = [way for way in ways if way.net >= best - reach - 1e-12]
    key = cheapness({way.action: way.cost for way in ways}, policy.compare_by)
    return tuple(sorted(equal, key=lambda way: key(way.action)))


def settings_of(action: Retraining, evidence: Evidence, policy: PlanSection) -> dict[str, JsonValue]:
    """What the job has to be for it, see ``server.deciding.plan``."""
    since = evidence.released_at
    concept = nature(evidence, policy) == "concept"
    settings: dict[str, JsonValue] = {"mode": policy.full_mode if action == "full" else action}
    if action in {"incremental", "replay"} and since is not None:
        settings["since"] = since.isoformat()
    if action == "replay":
        settings["replay_share"] = SHARE_OF_OLD_MEANING if concept else SHARE
    if concept and action != "transfer" and since is not None:
        settings["half_life_days"] = round(max(1.0, (evidence.at - since).total_seconds() / _DAY / 2), 2)
    if action == "extend":
        settings["labels"] = [name for name, _ in learnable(evidence, policy)]
    return settings
