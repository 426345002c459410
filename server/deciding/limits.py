"""What keeps a retraining from being too much, too often, or at the wrong time.

**Cool-down**: none sooner after the last retraining or release than ``plan.cool_down * 2^k``, with k + 1 the
retrainings up to now that came to nothing, one after the other, and k at most ``DOUBLINGS``: one may come too early.

**Budget**: within ``plan.budget.period`` up to now, past retrainings and what this one is expected to take must stay
within each limit; what was not measured counts as nothing.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Final

from fedretrain.planning import UNITS, PlanSection, duration

from .evidence import Evidence, Past
from .plan import Cost

DOUBLINGS: Final = 6


def cool_down(evidence: Evidence, policy: PlanSection) -> tuple[datetime, str] | None:
    """Until when it cools down, and a sentence; None where it does not."""
    if evidence.last is None:
        return None
    vain = sum(1 for _ in takewhile(lambda past: not past.released, reversed(evidence.past)))
    doublings = min(max(0, vain - 1), DOUBLINGS)
    until = evidence.last + duration(policy.cool_down) * 2**doublings
    if until <= evidence.at:
        return None
    times = "once" if doublings == 1 else f"{doublings} times"
    why = f", doubled {times} as {vain} in a row came to nothing" if doublings else ""
    return until, f"It cools down until {when(until)}: plan.cool_down is {policy.cool_down}{why}."


def over_budget(cost: Cost, evidence: Evidence, policy: PlanSection) -> tuple[datetime | None, str] | None:
    """From when on the budget allows a retraining of that cost, and a sentence; None where it does already.

    The time is None where it costs more than the whole budget.
    """
    period = duration(policy.budget.period)
    counted = [past for past in evidence.past if past.at > evidence.at - period]
    found = [over for over in _overs(cost, counted, period, policy) if over is not None]
    if not found:
        return None
    never = [sentence for free, sentence in found if free is None]
    if never:
        return None, never[0]
    return max(((free, sentence) for free, sentence in found if free is not None), key=lambda pair: pair[0])


def _overs(
    cost: Cost, counted: list[Past], period: timedelta, policy: PlanSection
) -> Iterator[tuple[datetime | None, str] | None]:
    budget = policy.budget
    yield _over("retrainings", 1, [1] * len(counted), budget.retrainings, counted, period)
    for unit in UNITS:
        asked = cost.of(unit)
        spent = [getattr(past, unit) or 0 for past in counted]
        yield _over(unit, asked.expected if asked else 0, spent, getattr(budget, unit), counted, period)


def _over(  # noqa: PLR0913, PLR0917  # one line of arithmetic over six numbers
    what: str, asked: float, spent: list[float], limit: float | None, counted: list[Past], period: timedelta
) -> tuple[datetime | None, str] | None:
    """When enough of what was spent lies behind the period, so that what is asked for fits."""
    if limit is None or asked + sum(spent) <= limit:
        return None
    sentence = (
        f"plan.budget.{what} allows {limit:g} in {period.days} days: {sum(spent):g} spent, {asked:g} more needed."
    )
    left = sum(spent)
    for past, amount in sorted(zip(counted, spent, strict=True), key=lambda pair: pair[0].at):
        left -= amount
        if asked + left <= limit:
            return past.at + period, sentence
    return None, sentence


def when(moment: datetime) -> str:
    """A time for a person."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"
