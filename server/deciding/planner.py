"""From evidence, policy and cost to a plan: a pure function, so the same evidence gives the same plan.

In this order, and each step says so in the plan:

1. A trigger has to fire (``server.deciding.rules``); else nothing is done, or it is watched on where there is a reason.
2. There have to be new data, or it is refused.
3. Where only drift fired, there has to be enough to gain.
4. Of the ways that answer to what is new, that policy and enough sites allow and the budget affords, the one with the
   greatest expected gain is taken; of several with equal gain the cheapest.
5. It waits for the cool-down, and for hours at which server and sites may work.

A release that does worse than the one before is rolled back where no drift stands that might explain it, and where
there is such drift but the model cannot be retrained.

Invariants: without a trigger or without new data nothing is trained; more drift (a greater effect, at more sites, in
more checks, of a further kind) never turns a plan that acts into one that does not; the plan depends on its arguments
alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from fedretrain.planning import RETRAININGS, PlanSection

from . import hours
from .evidence import Evidence
from .gain import experience_of, lost
from .limits import cool_down, when
from .plan import Cost, Plan
from .rules import ROLL_BACK, RULES, Rule, enough_new, standing
from .telling import Decision, span, told
from .ways import Way, all_ways, equals

Fired = Sequence[tuple[Rule, str]]
_NEVER = datetime.max.replace(tzinfo=UTC)


def decide(evidence: Evidence, policy: PlanSection, costs: Mapping[str, Cost]) -> Plan:
    """The plan.

    Args:
        evidence: All that is known.
        policy: The job's ``[plan]``.
        costs: What retrainings took, by action (``fedretrain.planning.RETRAININGS``); those that never ran are
            missing, and are scaled from others (``server.deciding.cost``).
    """
    ways = all_ways(evidence, policy, costs)
    fired = [(rule, sentence) for rule in RULES if (sentence := rule.fires(evidence, policy))]
    decision = _retraining(evidence, policy, fired, ways) if fired and evidence.sites else _quiet(evidence)
    back = _rolling_back(evidence, policy)
    if back is not None and not (decision.acts and standing(evidence, policy)):
        decision = back
    return told(decision, evidence, policy, ways)


def _quiet(evidence: Evidence) -> Decision:
    """No trigger fired."""
    waiting = [signal for signal in evidence.signals if signal.kind != "quality"]
    if not evidence.sites:
        return Decision("watch", "no-evidence", "No check of the model in use has an answer.", "an answer of a site")
    if waiting:
        kinds = ", ".join(f"{signal.kind} ({signal.checks})" for signal in waiting)
        sentence = f"Drift was found, but does not stand for as many checks as are asked for: {kinds}."
        return Decision("watch", "not-long-enough", sentence, "plan.hysteresis, plan.sure_loss and plan.drift")
    if evidence.signals:
        sentence = "The quality of the data changed; training does not mend that, the sites have to look."
        return Decision("watch", "quality", sentence, "no change of quality")
    if evidence.new_labels or evidence.unknown_labels:
        count = sum(count for _, count in evidence.new_labels) + evidence.unknown_labels
        sentence = f"{count} recent examples have labels that the model does not know."
        return Decision("watch", "unknown-labels", sentence, "plan.fewest_of_label, names in watch.labels, and extend")
    if evidence.too_little:
        return Decision("watch", "too-little-data", "The data say too little to tell drift from chance.", "more data")
    return Decision("nothing", "nothing-fired", "No trigger fired.", "any trigger")


def _retraining(evidence: Evidence, policy: PlanSection, fired: Fired, ways: Sequence[Way]) -> Decision:
    """A trigger fired: which way to retrain, or why not."""
    why = " ".join(sentence for _, sentence in fired)
    possible = [way for way in ways if not way.why_not]
    chosen = equals(possible, policy)[0] if possible else None
    wanted = chosen.action if chosen else None
    if not enough_new(evidence, policy):
        known = "how many there are is unknown" if evidence.new_examples is None else f"{evidence.new_examples} are new"
        sentence = f"{why} Without new data nothing is retrained: {known}."
        needed = f"{policy.fewest_new} new examples"
        return Decision("watch", "no-new-data", sentence, needed, wanted, changes=(f"{needed}: {known}.",))
    if chosen is None:
        return _impossible(why, ways, evidence, policy)
    if all(rule.judged for rule, _ in fired) and (small := _too_small(evidence, policy, possible)):
        return Decision(
            "watch",
            "too-little-to-gain",
            f"{why} {small}",
            f"plan.least_gain {policy.least_gain:g}, plan.price",
            wanted,
        )
    cooling = cool_down(evidence, policy)
    if cooling is not None:
        until, sentence = cooling
        changes = (f"The time: from {when(until)} on it may be retrained.",)
        return Decision("watch", "cool-down", f"{why} {sentence}", "plan.cool_down", wanted, until, changes)
    rule = fired[0][0]
    return _timed(Decision(chosen.action, rule.name, why, rule.threshold(policy) or ""), evidence, policy)


def _too_small(evidence: Evidence, policy: PlanSection, possible: Sequence[Way]) -> str | None:
    """Why what was lost is not worth it; None where it is.

    What counts is the most that any allowed way got back of what was expected of it, whatever the drift is said to be,
    and the lowest price: so more drift is never worth less.
    """
    named = [action for action in RETRAININGS if action in policy.actions and action != "extend"]
    allowed = [action for action in named if not evidence.barred(action)]
    correction = max((experience_of(action, evidence.past).correction for action in allowed), default=1.0)
    at_stake, price = lost(evidence, policy).times(correction), min(way.price for way in possible)
    if at_stake.expected >= policy.least_gain and at_stake.expected >= price:
        return None
    priced = f", and the cost must bring {price:.3g}" if price else ""
    return f"What was lost is too little: {span(at_stake)} of the metric; {policy.least_gain:g} is asked for{priced}."


def _impossible(why: str, ways: Sequence[Way], evidence: Evidence, policy: PlanSection) -> Decision:
    """No way to retrain can be taken; where the budget is why, from when on one can."""
    fit = [way for way in ways if way.gain is not None]
    dear = [way for way in fit if way.dear]
    if not dear:
        sentence = f"{why} No way to retrain that answers to this is allowed."
        unnamed = ", ".join(way.action for way in fit if way.action not in policy.actions)
        declined = ", ".join(way.action for way in fit if evidence.barred(way.action))
        told = [("plan.actions", f"{unnamed} in plan.actions.")] if unnamed else []
        if declined:
            told.append(("participation.min_sites", f"{evidence.needed} sites that allow one of {declined}."))
        thresholds, changes = zip(*told, strict=True)
        return Decision("watch", "not-allowed", sentence, ", ".join(thresholds), changes=changes)
    free = min(dear, key=lambda way: (way.free_at or _NEVER, -way.expected))
    changes = (f"The time: from {when(free.free_at)} on the budget allows {free.action}.",) if free.free_at else ()
    sentence = f"{why} {free.why_not}"
    return Decision("watch", "budget", sentence, "plan.budget", free.action, free.free_at, changes or ("The budget.",))


def _timed(decision: Decision, evidence: Evidence, policy: PlanSection) -> Decision:
    """The decision, put off until server and sites may work."""
    own, sites = hours.Hours(policy.hours, policy.zone), hours.site_hours(evidence, policy)
    start, absent = hours.opens(evidence.at, own, sites)
    sentence = decision.sentence
    if start > evidence.at:
        sentence += f" It waits until {when(start)}, when server and sites may work."
    if absent:
        sentence += f" There is no time at which all may work; {', '.join(absent)} cannot take part."
    return replace(decision, sentence=sentence, not_before=start if start > evidence.at else None)


def _rolling_back(evidence: Evidence, policy: PlanSection) -> Decision | None:
    """Back to the release before; None where the one in use does no worse."""
    sentence = ROLL_BACK.fires(evidence, policy)
    if sentence is None:
        return None
    return Decision("roll-back", ROLL_BACK.name, sentence, ROLL_BACK.threshold(policy) or "")
