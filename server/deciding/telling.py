"""How a decision becomes a plan: what else could be done and why it is not, and what would change its mind."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import JsonValue

from fedretrain.planning import ACTIONS, Action, PlanSection

from .evidence import Evidence
from .gain import lost, stake
from .level import level
from .plan import Alternative, Plan, Range
from .rules import ROLL_BACK, RULES
from .ways import Way, equals, settings_of


@dataclass(frozen=True)
class Decision:
    """What was decided, before the rest is told; the fields are those of a plan."""

    action: Action
    rule: str
    sentence: str
    threshold: str
    wanted: Action | None = None
    not_before: datetime | None = None
    changes: tuple[str, ...] = ()

    @property
    def acts(self) -> bool:
        """Whether there is anything to carry out."""
        return self.action not in {"nothing", "watch"}


def told(decision: Decision, evidence: Evidence, policy: PlanSection, ways: Sequence[Way]) -> Plan:
    """The plan that says the decision, and all that a person needs to judge it."""
    way = next((way for way in ways if way.action == decision.action), None)
    known = level(evidence.past) is not None or (way is not None and way.known > 0)
    return Plan(
        action=decision.action,
        rule=decision.rule,
        sentence=decision.sentence,
        threshold=decision.threshold,
        wanted=decision.wanted,
        settings=_settings(decision, evidence, policy, way),
        gain=_regained(evidence) if decision.action == "roll-back" else way.gain if way else None,
        gain_basis="past" if known or decision.action == "roll-back" else "prior",
        cost=way.cost if way else None,
        alternatives=tuple(_alternatives(decision, evidence, policy, {way.action: way for way in ways})),
        would_change=tuple(_changes(decision, evidence, policy, ways)),
        not_before=decision.not_before,
        evidence=evidence,
    )


def span(value: Range) -> str:
    """A range for a person."""
    return f"{value.expected:.3f} ({value.low:.3f} to {value.high:.3f})"


def _settings(decision: Decision, evidence: Evidence, policy: PlanSection, way: Way | None) -> Mapping[str, JsonValue]:
    if decision.action == "roll-back":
        return {"release": evidence.previous_release}
    return settings_of(way.action, evidence, policy) if way else {}


def _regained(evidence: Evidence) -> Range | None:
    """What the release before did better."""
    before, now = evidence.previous_metric, evidence.metric
    if before is None or now is None:
        return None
    ends = (before.low - now.high, before.value - now.value, before.high - now.low)
    return Range(*(round(end, 6) for end in ends))


def _alternatives(
    decision: Decision, evidence: Evidence, policy: PlanSection, ways: Mapping[str, Way]
) -> Iterator[Alternative]:
    for action in ACTIONS:
        if action == decision.action:
            continue
        way = ways.get(action)
        if way is not None:
            why_not = _why_not_this(way, decision, policy, ways)
            yield Alternative(action, way.gain, way.cost if way.gain else None, why_not)
        elif action == "roll-back":
            yield Alternative(action, None, None, _why_not_back(evidence, policy))
        else:
            yield Alternative(action, None, None, _why_not_rest(action, decision, evidence, policy))


def _why_not_this(way: Way, decision: Decision, policy: PlanSection, ways: Mapping[str, Way]) -> str:
    """Why a way to retrain is not taken."""
    if way.why_not:
        return way.why_not
    if not decision.acts:
        return "Nothing asks for it." if decision.wanted is None else f"Held back: {decision.rule}."
    taken = ways.get(decision.action)
    if taken is None:
        return "The release before did better, and that is known."
    if way not in equals([taken, way], policy):
        less = "gain less" if way.expected < taken.expected else "be worth less"
        paid = f", {way.net:.3f} against {taken.net:.3f} with its cost paid" if way.price or taken.price else ""
        return f"It should {less}: {way.expected:.3f} against {taken.expected:.3f}{paid}."
    unit = policy.compare_by.replace("_", " ")
    its, of_taken = way.cost.of(policy.compare_by), taken.cost.of(policy.compare_by)
    if its is None or of_taken is None or its.expected <= of_taken.expected:
        return f"It should gain as much, and its kind usually takes more {unit} than {taken.action}."
    return f"It should gain as much, and cost more {unit}."


def _why_not_back(evidence: Evidence, policy: PlanSection) -> str:
    if "roll-back" not in policy.actions:
        return "plan.actions does not name it."
    if evidence.previous_release is None:
        return "There is no release before."
    if ROLL_BACK.fires(evidence, policy):
        return "Drift may explain why the release in use does worse."
    return "The release in use is not known to do worse than the one before."


def _why_not_rest(action: Action, decision: Decision, evidence: Evidence, policy: PlanSection) -> str:
    """Why not to do nothing, or only to watch."""
    if decision.action == "nothing":
        return "Nothing was found that asks for another look before the next check."
    if action == "nothing":
        return (
            f"There is a reason to look again: {decision.rule}." if not decision.acts else f"It fired: {decision.rule}."
        )
    return f"It would leave what was lost: {span(lost(evidence, policy))} of the metric."


def _changes(decision: Decision, evidence: Evidence, policy: PlanSection, ways: Sequence[Way]) -> Iterator[str]:
    yield from decision.changes
    if not decision.acts:
        for rule in RULES:
            if rule.threshold(policy) is not None and not rule.fires(evidence, policy):
                yield rule.missing(evidence, policy)
        if decision.rule == "too-little-to-gain":
            yield f"At least {policy.least_gain:g} of the metric lost."
        return
    yield f"A check after which {decision.rule} does not fire."
    if decision.action == "roll-back":
        yield "Drift that explains it, standing in the checks to come, and new data."
        return
    yield f"Fewer than {policy.fewest_new} new examples."
    taken = next((way for way in ways if way.action == decision.action), None)
    others = [way for way in ways if not way.why_not and way.action != decision.action]
    if taken is not None and others:
        second, most = max(others, key=lambda way: way.net), stake(evidence, policy).expected
        yield (
            f"More to gain, or less to pay, by {second.action} than expected so far: it should gain "
            f"{second.expected:.3f}, and {taken.action} {taken.expected:.3f}, of {most:.3f} at most."
        )
