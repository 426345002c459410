"""A plan as a document for people, in Markdown; ``Plan.to_json`` is the same for machines.

Invariants: it says what the plan says and nothing else; the same plan, decision and score have the same text.

Sections, those without content left out: what is to be done and by which rule, the evidence, what it should bring and
cost, the alternatives and why not, what would change its mind, who decided, and what came of it.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from fedretrain import words
from fedretrain.planning import UNITS

from .evidence import Estimate, Evidence, Past
from .plan import Cost, Plan, Range
from .score import Amount, Score
from .units import NAMES, Teller, teller

if TYPE_CHECKING:
    from server.history import Decision

_ACTIONS: Final = {
    "nothing": "do nothing",
    "watch": "keep watching",
    "incremental": "retrain on what is new",
    "replay": "retrain on what is new, mixed with old examples",
    "transfer": "train the head alone, on a frozen base",
    "full": "retrain on all data",
    "extend": "extend the labels",
    "roll-back": "go back to the release before",
}
_BASIS: Final = {
    "prior": "stated priors",
    "past": "past retrainings of this model",
}
_SETTINGS: Final = {
    "mode": "way to train",
    "since": "train.since",
    "replay_share": "train.replay.share",
    "half_life_days": "half-life of the objective recency, in days",
    "labels": "labels to be added",
    "release": "release to go back to",
}
_PAST_ROWS: Final = 5


def markdown(plan: Plan, decision: "Decision | None" = None, score: Score | None = None) -> str:
    """The plan as Markdown.

    Args:
        plan: The plan.
        decision: Who decided about it; None where nobody has.
        score: What came of it; None where that is not known.
    """
    sections = [
        [f"# Plan {plan.id[:16]}: {_ACTIONS[plan.action]}", "", *_head(plan)],
        ["## Evidence", "", *_evidence(plan.evidence)],
        _expected(plan),
        _how(plan),
        ["## Alternatives", "", *_alternatives(plan)],
        _listed("What would change its mind", plan.would_change),
        _decided(decision),
        _scored(score),
    ]
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def _head(plan: Plan) -> Iterator[str]:
    yield from (plan.sentence, "")
    rows = [
        ("made", _time(plan.at)),
        ("release in use", plan.evidence.release[:16] if plan.evidence.release else "none yet"),
        ("rule", plan.rule),
        ("threshold", plan.threshold),
        ("held back", _ACTIONS[plan.wanted] if plan.wanted else ""),
        ("not before", _time(plan.not_before) if plan.not_before else ""),
        ("id", f"`{plan.id}`"),
    ]
    yield from _table(("", ""), [row for row in rows if row[1]])


def _evidence(evidence: Evidence) -> Iterator[str]:
    rows = [
        ("accuracy on recent data", _estimate(evidence.metric)),
        ("on data before the release", _estimate(evidence.reference)),
        ("by the model's own confidence", _share(evidence.expected_accuracy)),
        ("of the release before, when it was replaced", _estimate(evidence.previous_metric)),
        ("examples since the release, and before", f"{_count(evidence.new_examples)}, {_count(evidence.old_examples)}"),
        ("labels the model does not know", ", ".join(f"{name} ({count})" for name, count in evidence.new_labels)),
        ("recent examples with a label nobody asked for", str(evidence.unknown_labels or "")),
        ("sites that answered", str(evidence.sites)),
        ("sites it was not trained at", ", ".join(evidence.new_sites)),
        ("examples are new from", _time(evidence.released_at) if evidence.released_at else ""),
    ]
    yield from _table(("what is known", ""), [row for row in rows if row[1]])
    if evidence.too_little:
        yield from ("", "There were too few data for most that was asked, or no check of the model in use.")
    if evidence.signals:
        drifts = [
            (s.kind, s.subject, f"{s.effect:.3g}", f"{s.sites} of {s.of}", str(s.checks)) for s in evidence.signals
        ]
        yield ""
        yield from _table(("drift", "most of all", "its effect", "sites with any", "checks in a row"), drifts)
    for title, told in (
        ("Not told by sites", evidence.withheld),
        ("Hours of sites", _hours(evidence)),
        ("Not allowed by sites", [f"{action} by {', '.join(sites)}" for action, sites in evidence.declined]),
    ):
        if told:
            yield from ("", f"{title}: {'; '.join(told)}.")
    if evidence.past:
        yield from ("", f"Retrainings so far: {len(evidence.past)}; the last ones:", "")
        yield from _past(evidence.past[-_PAST_ROWS:])


def _hours(evidence: Evidence) -> list[str]:
    return [f"{site} {', '.join(hours)}" for site, hours in evidence.site_hours]


def _past(past: Sequence[Past]) -> Iterator[str]:
    rows = [
        (
            _time(run.at),
            run.action,
            "released" if run.released else "not released",
            _points(run.gain),
            "" if run.forgetting is None else f"{run.forgetting * 100:.1f} points",
            words.seconds(run.seconds),
            words.size(run.bytes),
        )
        for run in past
    ]
    yield from _table(("ended", "way", "", "gain", "forgetting", "time", "sent"), rows)


def _expected(plan: Plan) -> list[str]:
    """What it should bring and cost, each with the range that is believed."""
    rows = [] if plan.gain is None else [("gain in accuracy", *_range(plan.gain, _points))]
    for unit in UNITS:
        cost = plan.cost.of(unit) if plan.cost else None
        if cost is not None:
            rows.append((NAMES[unit], *_range(cost, teller(unit))))
    if not rows:
        return []
    basis = _BASIS.get(plan.gain_basis, plan.gain_basis)
    known = f"The gain is expected by {basis}. {_known(plan.cost)}"
    return ["## What it should bring and cost", "", *_table(("", "expected", "believed range"), rows), "", known]


def _known(cost: Cost | None) -> str:
    if cost is None or all(cost.of(unit) is None for unit in UNITS):
        return "Nothing like it ever ran here, so its cost is not known."
    if not cost.runs:
        return "Its cost is scaled from retrainings of other kinds."
    return f"Its cost is that of {cost.runs} {'run' if cost.runs == 1 else 'runs'} of the kind."


def _range(value: Range, tell: Teller) -> tuple[str, str]:
    return tell(value.expected), f"{tell(value.low)} to {tell(value.high)}"


def _how(plan: Plan) -> list[str]:
    rows = [(_SETTINGS.get(name, name), _value(value)) for name, value in sorted(plan.settings.items())]
    return ["## How", "", *_table(("setting", ""), rows)] if rows else []


def _value(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _alternatives(plan: Plan) -> Iterator[str]:
    rows = []
    for other in plan.alternatives:
        gain = "{} ({})".format(*_range(other.gain, _points)) if other.gain else ""
        seconds = other.cost.of("seconds") if other.cost else None
        rows.append((_ACTIONS[other.action], gain, words.seconds(seconds.expected) if seconds else "", other.why_not))
    yield from _table(("instead", "gain", "time", "why not"), rows)


def _listed(title: str, sentences: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {sentence}" for sentence in sentences)] if sentences else []


def _decided(decision: "Decision | None") -> list[str]:
    if decision is None:
        return []
    said = f"{decision.decision} by {decision.who} at {decision.at}"
    return ["## Decision", "", said + (f": {decision.why}" if decision.why else "") + "."] + (
        ["", f"Carried out by run `{decision.run}`."] if decision.run else []
    )


def _scored(score: Score | None) -> list[str]:
    """What came of it, beside what was expected."""
    if score is None:
        return []
    rows = [] if score.gain is None else [("gain in accuracy", *_amount(score.gain, _points))]
    rows += [(NAMES[unit], *_amount(score.costs[unit], teller(unit))) for unit in UNITS if unit in score.costs]
    lines = ["## What came of it", "", f"{score.outcome}." + (f" Run `{score.run}`." if score.run else "")]
    if score.forgetting is not None:
        lines += ["", f"Forgotten of what is older: {score.forgetting * 100:.1f} points."]
    return [*lines, "", *_table(("", "expected", "actual", "within the range"), rows)] if rows else lines


def _amount(amount: Amount, tell: Teller) -> tuple[str, str, str]:
    expected = f"{tell(amount.expected.low)} to {tell(amount.expected.high)}" if amount.expected else ""
    return expected, "" if amount.actual is None else tell(amount.actual), _YES[amount.within]


_YES: Final = {True: "yes", False: "no", None: ""}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in row)} |"


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _estimate(found: Estimate | None) -> str:
    if found is None:
        return ""
    return f"{found.value * 100:.1f} % ({found.low * 100:.1f} to {found.high * 100:.1f}, {found.n} examples)"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value * 100:.1f} %"


def _points(value: float | None) -> str:
    return "" if value is None else f"{value * 100:+.1f} points"


def _count(value: int | None) -> str:
    return "unknown" if value is None else str(value)
