"""What may make it act: each trigger as a row with its threshold, what it says where it fires, and what is missing.

A row looks at evidence and policy alone. Those that a person asked for by a number act where they fire; drift
(``judged``) acts where there is enough to gain besides (``server.deciding.gain``). Rows stand in the order in which
they give a plan its name, and ``ROLL_BACK`` stands apart: it is no reason to retrain.

Drift counts where it stood for ``plan.hysteresis`` checks in a row, and at once where the metric fell by
``plan.sure_loss`` even at the favourable ends of the intervals: two findings of different kinds are as good as two
checks. An interval counts where it lies wholly on one side.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from fedretrain.planning import PlanSection, duration

from .evidence import Estimate, Evidence, Signal
from .level import fell, unrecovered

Nature = Literal["labels", "concept", "label", "covariate", "unexplained", "more"]
"""What is new about the data: labels, meaning, how frequent labels are, inputs, something that makes the metric low and
that no drift since the release explains, or nothing but their number."""
DRIFTS: Final[tuple[Nature, ...]] = ("concept", "label", "covariate")
_CALLED = {
    "concept": "what inputs mean",
    "label": "how frequent labels are",
    "covariate": "inputs",
    "quality": "quality",
}


@dataclass(frozen=True)
class Rule:
    """One trigger.

    Attributes:
        name: As plans name it.
        threshold: What it compares with; None where the policy does not ask.
        found: What it found, a sentence; None where it does not fire.
        missing: What would make it fire.
        judged: Whether it acts only where enough can be gained.
    """

    name: str
    threshold: Callable[[PlanSection], str | None]
    found: Callable[[Evidence, PlanSection], str | None]
    missing: Callable[[Evidence, PlanSection], str]
    judged: bool = False

    def fires(self, evidence: Evidence, policy: PlanSection) -> str | None:
        """What it found, where the policy asks for it and it fires."""
        return self.found(evidence, policy) if self.threshold(policy) is not None else None


def standing(evidence: Evidence, policy: PlanSection) -> tuple[Signal, ...]:
    """Drift that stood for long enough; none where the policy does not act on drift."""
    if not policy.drift:
        return ()
    least = 1 if surely_fell(evidence, policy) else policy.hysteresis
    return tuple(signal for signal in evidence.signals if signal.kind in DRIFTS and signal.checks >= least)


def surely_fell(evidence: Evidence, policy: PlanSection) -> bool:
    """Whether the metric fell so far that one check is enough to believe in drift."""
    loss = fell(evidence, policy)
    return loss is not None and loss.low >= policy.sure_loss


def learnable(evidence: Evidence, policy: PlanSection) -> tuple[tuple[str, int], ...]:
    """Labels that the model does not know, with examples enough to learn them."""
    if not policy.new_labels or "extend" not in policy.actions or evidence.barred("extend"):
        return ()
    return tuple((name, count) for name, count in evidence.new_labels if count >= policy.fewest_of_label)


def nature(evidence: Evidence, policy: PlanSection) -> Nature:
    """What is new about the data, the one that decides most about the way to retrain."""
    if learnable(evidence, policy):
        return "labels"
    kinds = {signal.kind for signal in standing(evidence, policy)}
    low = _unrecovered_found(evidence, policy) or _below_found(evidence, policy)
    rest: Nature = "unexplained" if low else "more"
    return next((kind for kind in DRIFTS if kind in kinds), rest)


def about(estimate: Estimate) -> str:
    """An estimate with its interval."""
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f}, {estimate.n} examples)"


def _labels_found(evidence: Evidence, policy: PlanSection) -> str | None:
    labels = learnable(evidence, policy)
    if not labels:
        return None
    named = ", ".join(f"{name} ({count} examples)" for name, count in labels)
    return f"Recent data have labels that the model does not know: {named}."


def _below_found(evidence: Evidence, policy: PlanSection) -> str | None:
    metric, least = evidence.metric, policy.metric_below
    if metric is None or least is None or metric.high >= least:
        return None
    return f"The metric on recent data is {about(metric)}, all of it below {least:g}."


def _below_missing(evidence: Evidence, policy: PlanSection) -> str:
    known = f"it is {about(evidence.metric)}" if evidence.metric else "it is not known"
    return f"The metric on recent data, with its interval, below {policy.metric_below:g}; {known}."


def _drift_threshold(policy: PlanSection) -> str | None:
    if not policy.drift:
        return None
    return f"drift in {_checks(policy.hysteresis)}, or in one where the metric surely fell by {policy.sure_loss:g}"


def _drift_rule(kind: Nature) -> Rule:
    def signal(evidence: Evidence) -> Signal | None:
        return next((s for s in evidence.signals if s.kind == kind), None)

    def found(evidence: Evidence, policy: PlanSection) -> str | None:
        drift = signal(evidence)
        if drift is None or drift not in standing(evidence, policy):
            return None
        effect = f"effect {drift.effect:.3g}"
        most = f", most of all {drift.subject} ({effect});" if drift.subject else f" ({effect}),"
        where = f"at {drift.sites} of {drift.of} sites" if drift.sites else "in all sites together"
        sure = (
            "" if drift.checks >= policy.hysteresis else f", and the metric surely fell by {policy.sure_loss:g} or more"
        )
        return f"Drift in {_CALLED[kind]}{most} {where}, in {_checks(drift.checks)}{sure}."

    def missing(evidence: Evidence, policy: PlanSection) -> str:
        drift = signal(evidence)
        seen = drift.checks if drift else 0
        at_once = f"in one where the metric surely fell by {policy.sure_loss:g}"
        return f"Drift in {_CALLED[kind]} in {_checks(policy.hysteresis)}, or {at_once}; it was found in {seen}."

    return Rule(
        {"concept": "concept-drift", "label": "label-shift", "covariate": "covariate-drift"}[kind],
        _drift_threshold,
        found,
        missing,
        judged=True,
    )


def _checks(count: int) -> str:
    return "one check" if count == 1 else f"{count} checks in a row"


def _unrecovered_found(evidence: Evidence, policy: PlanSection) -> str | None:
    reached = unrecovered(evidence, policy) if policy.drift else None
    if reached is None or evidence.metric is None:
        return None
    return (
        f"Past retrainings reached {reached.expected:.3f} where they trained; the metric on recent data is "
        f"{about(evidence.metric)}: the last one did not get over what had changed."
    )


def _site_found(evidence: Evidence, _policy: PlanSection) -> str | None:
    if not evidence.new_sites:
        return None
    return f"The release in use was not trained at {', '.join(evidence.new_sites)}."


def _volume_found(evidence: Evidence, policy: PlanSection) -> str | None:
    new, least = evidence.new_examples, policy.volume
    return f"{new} examples are new; {least} were asked for." if new and least and new >= least else None


def _schedule_found(evidence: Evidence, policy: PlanSection) -> str | None:
    if policy.schedule is None:
        return None
    if evidence.last is None:
        return "The model was never retrained."
    if evidence.at - evidence.last < duration(policy.schedule):
        return None
    return f"The last retraining or release was on {evidence.last:%Y-%m-%d %H:%M} UTC, {policy.schedule} ago or longer."


def _schedule_missing(evidence: Evidence, policy: PlanSection) -> str:
    if evidence.last is None or policy.schedule is None:
        return "A schedule."
    return f"The time: it is due from {evidence.last + duration(policy.schedule):%Y-%m-%d %H:%M} UTC on."


RULES: Final[tuple[Rule, ...]] = (
    Rule(
        "new-labels",
        lambda p: f"{p.fewest_of_label} examples of a label the model does not know" if p.new_labels else None,
        _labels_found,
        lambda e, p: (
            f"{p.fewest_of_label} examples of a label that the model does not know"
            + (
                "; names that nobody asked for are counted together: list them in watch.labels."
                if e.unknown_labels
                else "."
            )
        ),
    ),
    Rule(
        "metric-below",
        lambda p: None if p.metric_below is None else f"interval of the metric below {p.metric_below:g}",
        _below_found,
        _below_missing,
    ),
    *(_drift_rule(kind) for kind in DRIFTS),
    Rule(
        "not-recovered",
        lambda p: f"{p.sure_loss:g} below what past retrainings reached" if p.drift else None,
        _unrecovered_found,
        lambda _e, p: (
            f"The metric on recent data, with its interval, {p.sure_loss:g} below what past retrainings reached."
        ),
    ),
    Rule(
        "new-site",
        lambda p: "a site that the release in use was not trained at" if p.new_site else None,
        _site_found,
        lambda _e, _p: "A site that the release in use was not trained at.",
    ),
    Rule(
        "volume",
        lambda p: None if p.volume is None else f"{p.volume} new examples",
        _volume_found,
        lambda e, p: f"{p.volume} new examples; there are {_number(e.new_examples)}.",
    ),
    Rule(
        "schedule",
        lambda p: None if p.schedule is None else f"{p.schedule} since the last retraining or release",
        _schedule_found,
        _schedule_missing,
    ),
)


def _worse_found(evidence: Evidence, policy: PlanSection) -> str | None:
    now, before, since = evidence.metric, evidence.previous_metric, evidence.released_at
    if now is None or before is None or evidence.previous_release is None or now.high >= before.low:
        return None
    if since is None or evidence.at - since > duration(policy.roll_back_within):
        return None  # what comes later is not the release's fault
    return f"The release in use achieves {about(now)} on recent data; the one before achieved {about(before)}."


ROLL_BACK: Final = Rule(
    "roll-back",
    lambda p: "interval of the metric below that of the release before" if "roll-back" in p.actions else None,
    _worse_found,
    lambda _e, p: (
        f"A metric, with its interval, below that of the release before when it was last checked, "
        f"within {p.roll_back_within} of the release."
    ),
)


def enough_new(evidence: Evidence, policy: PlanSection) -> bool:
    """Whether there are data to learn from that the model in use has not seen."""
    return (evidence.new_examples or 0) >= policy.fewest_new or bool(learnable(evidence, policy))


def _number(count: int | None) -> str:
    return "an unknown number" if count is None else str(count)
