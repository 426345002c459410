"""What the commands of watching print: pure functions from checks, findings and plans to lines for a person.

Invariants: every number stands in the history; what could not be said is said to be so, with the reason.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedretrain import words
from fedretrain.answers import table

from .operations_text import when
from .options import to_type

if TYPE_CHECKING:
    from .checking.document import Check, SiteCheck, Window
    from .deciding.plan import Plan
    from .drift.findings import Estimate, Finding, Findings
    from .history import Decision, PlanRecord

NONE: Final = "-"
SHORT: Final = 12
MOST: Final = 12
"""Subjects that are told one by one; the JSON object and the report have all."""
WIDE: Final = 0.3
"""An interval of accuracy above which the table does not show it."""
_KINDS: Final = ("covariate", "label", "concept", "quality", "stream")


def seen_lines(check: "Check", findings: "Findings", plan: "Plan", folder: Path) -> Iterator[str]:
    """One look: who answered, what drifted, and the plan in a line."""
    release = "the job's model" if check.release is None else f"release {check.release[:16]}"
    yield (
        f"check {check.check}: {release}, {len(check.sites)} sites answered, {words.size(check.bytes)}, "
        f"{words.seconds(check.seconds)}"
    )
    yield from site_lines(check)
    yield from finding_lines(findings, folder)
    yield ""
    yield f"plan {plan.id[:SHORT]}: {plan.action}: {plan.sentence}"


def site_lines(check: "Check") -> Iterator[str]:
    """A table of the sites that answered, and the reasons of those that did not."""
    if check.sites:
        rows = [("site", "recent", "before", "not told")]
        for name, site in sorted(check.sites.items()):
            untold = [f"{part} ({why})" for part, why in site.withheld.items() if why != "not asked"]
            rows.append((name, _examples(site, site.recent), _before(site, check), ", ".join(untold) or NONE))
        yield from table(rows)
    for name, why in sorted(check.declined.items()):
        yield f"! {name} did not answer: {why}"
    for name, site in sorted(check.sites.items()):
        for metric, (value, unit) in sorted(site.business.items()):
            yield f"{name}: {metric} {value:.6g} {unit}".rstrip()


def finding_lines(findings: "Findings", folder: Path) -> Iterator[str]:
    """What drifted, a sentence a subject; how many questions had no answer; accuracy with its interval."""
    drifted = [one for one in findings.findings if one.verdict == "drift"]
    by_subject: dict[tuple[str, str], list[Finding]] = {}
    for one in drifted:
        by_subject.setdefault((one.kind, one.subject), []).append(one)
    lacking = Counter(one.kind for one in findings.findings if one.verdict == "too little data")
    yield _headline(len(drifted), len(findings.findings), lacking.total())
    told_of = sorted(by_subject, key=lambda key: (_KINDS.index(key[0]), -max(abs(f.effect) for f in by_subject[key])))
    yield from (f"  {kind}: {_together(by_subject[kind, subject])}" for kind, subject in told_of[:MOST])
    if len(told_of) > MOST:
        yield f"  and {len(told_of) - MOST} more: {to_type('drift --report FILE.md', folder)}"
    if lacking:
        counted = ", ".join(f"{kind} {lacking[kind]}" for kind in _KINDS if lacking[kind])
        yield f"  too little data to say: {counted}"
    for told in findings.performance:
        if told.site is None:
            yield f"accuracy of {told.output}: {accuracy(told.recent, told.reference, told.expected)}"


def _headline(drifted: int, asked: int, lacking: int) -> str:
    """How many of the questions that could be answered found drift, and how many could not be answered."""
    answered = asked - lacking
    if not answered:
        return f"too little data to say anything ({_questions(asked)})"
    found = f"drift in {drifted} of" if drifted else "no drift found in"
    return f"{found} {_questions(answered)}" + (
        f"; {lacking} more {'has' if lacking == 1 else 'have'} too little data" if lacking else ""
    )


def _questions(count: int) -> str:
    return f"{count} question{'' if count == 1 else 's'}"


def accuracy(recent: "Estimate | None", reference: "Estimate | None", expected: float | None) -> str:
    """Accuracy since the release, before it, and as confidence alone has it."""
    parts = [f"{_estimate(recent)} recently" if recent else "unknown recently, without labels that may be told"]
    if reference:
        parts.append(f"{_estimate(reference)} before")
    if expected is not None:
        parts.append(f"{expected:.1%} recently by confidence alone")
    return "; ".join(parts)


def drift_lines(checks: "Sequence[Check]", found: "Sequence[Findings]", last: int, folder: Path) -> Iterator[str]:
    """The history as a table, one line a check, and what the latest one found."""
    rows: list[tuple[str, ...]] = [("check", "when", "release", "sites", "recent", *_KINDS, "accuracy")]
    for check, findings in list(zip(checks, found, strict=True))[-last:]:
        counted = Counter(one.kind for one in findings.findings if one.verdict == "drift")
        asked = {one.kind for one in findings.findings if one.verdict != "too little data"}
        rows.append(
            (
                check.check,
                when(check.at),
                (check.release or NONE)[:SHORT],
                str(len(check.sites)),
                str(sum(site.recent.examples for site in check.sites.values())),
                *(str(counted[kind]) if kind in asked else NONE for kind in _KINDS),
                _pooled(findings),
            )
        )
    yield from table(rows)
    yield f"number of drifts by kind, accuracy with its interval; {NONE}: nothing, or too little, could be said"
    yield ""
    yield f"check {checks[-1].check}"
    yield from site_lines(checks[-1])
    yield from finding_lines(found[-1], folder)


def drift_value(checks: "Sequence[Check]", found: "Sequence[Findings]") -> dict[str, Any]:
    """The history as JSON values."""
    about = []
    for check in checks:
        sites = {
            name: {
                "recent": site.recent.examples,
                "reference": site.reference.examples,
                "min_count": site.min_count,
                "withheld": dict(site.withheld),
                "business": {metric: [value, unit] for metric, (value, unit) in site.business.items()},
            }
            for name, site in sorted(check.sites.items())
        }
        about.append(
            {
                "check": check.check,
                "at": check.at,
                "release": check.release,
                "since": check.since,
                "sites": sites,
                "declined": dict(check.declined),
                "seconds": check.seconds,
                "bytes": check.bytes,
            }
        )
    return {"checks": about, "findings": [findings.to_json() for findings in found]}


def report(checks: "Sequence[Check]", found: "Sequence[Findings]", picture: str, left_out: int) -> Iterator[str]:
    """The same as a Markdown document with the picture beside it."""
    yield "# Drift"
    yield ""
    yield f"{len(checks)} checks, from {checks[0].at[:16]} to {checks[-1].at[:16]} UTC."
    yield ""
    yield f"![Effect over time, by feature and site: a filled point is drift]({picture})"
    if left_out:
        yield ""
        yield f"{left_out} subjects that moved less are not in the picture."
    yield ""
    yield f"## The latest check, {checks[-1].check}"
    yield ""
    yield from markdown_table(
        ("kind", "subject", "site", "effect", "statistic", "threshold", "p", "before", "recent", "verdict"),
        [_row(one, checks[-1]) for one in found[-1].findings],
    )
    yield ""
    yield "## Not told, and why"
    yield ""
    untold = [
        f"- {name}: {part} ({why})"
        for name, site in sorted(checks[-1].sites.items())
        for part, why in site.withheld.items()
        if why != "not asked"
    ]
    untold += [f"- {name} did not answer: {why}" for name, why in sorted(checks[-1].declined.items())]
    yield from untold or ["Every site told what it was asked for."]
    yield ""
    yield "## Drifts over time"
    yield ""
    yield from markdown_table(("check", "at", *_KINDS, "accuracy"), list(_over_time(checks, found)))


def plan_lines(kept: "PlanRecord") -> Iterator[str]:
    """A plan with all there is to say about it, as a document."""
    from .deciding.document import markdown
    from .deciding.plan import Plan
    from .deciding.score import Score

    score = None if kept.score is None else Score.from_json(kept.score)
    yield markdown(Plan.from_json(kept.plan), kept.decision, score).rstrip()


def plan_value(kept: "PlanRecord") -> dict[str, Any]:
    """A plan, what was decided about it, and what it turned out to be worth, as JSON values."""
    return {"plan": kept.plan, "decision": decision_value(kept.decision), "score": kept.score}


def decision_value(decision: "Decision | None") -> dict[str, Any] | None:
    """A decision as JSON values."""
    return None if decision is None else dict(vars(decision))


def decision_line(identity: str, decision: "Decision") -> str:
    """A decision in a line."""
    word = "carried out by itself for" if decision.decision == "auto" else f"{decision.decision} by"
    why = f": {decision.why}" if decision.why else ""
    return f"plan {identity[:SHORT]}: {word} {decision.who}, {decision.at[:16]} UTC{why}"


def carried_out_lines(kept: "PlanRecord", decision: "Decision", folder: Path) -> Iterator[str]:
    """What was decided, and what follows."""
    yield decision_line(kept.id, decision)
    if decision.run is None:
        yield "the release before is in use again"
    elif kept.score is None:
        where = f"{decision.run} --folder {words.path(folder.resolve())}"
        yield f"run {decision.run}; to watch it: fedretrain server status {where}"
    else:
        from .deciding.score import Score

        yield Score.from_json(kept.score).text


def waiting_lines(plan: "Plan", why: str, folder: Path) -> Iterator[str]:
    """That a plan waits for a person, and what to type."""
    option, short = f"--folder {words.path(folder.resolve())}", plan.id[:SHORT]
    yield f"it waits {why}" if why.startswith("for") else f"it waits for a decision: {why}"
    yield f"  fedretrain server plan {option}"
    yield f"  fedretrain server approve {short} {option}"
    yield f"  fedretrain server reject {short} --why REASON {option}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown."""
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def _over_time(checks: "Sequence[Check]", found: "Sequence[Findings]") -> Iterator[Sequence[str]]:
    for check, findings in zip(checks, found, strict=True):
        counted: Mapping[str, int] = Counter(one.kind for one in findings.findings if one.verdict == "drift")
        yield [check.check, check.at[:16], *(str(counted[kind]) for kind in _KINDS), _pooled(findings)]


def _row(one: "Finding", check: "Check") -> list[str]:
    p = NONE if one.p is None else f"{one.p:.2g}"
    numbers = [f"{value:.4g}" for value in (one.effect, one.statistic, one.threshold)]
    where = one.site or "all"
    before, recent = str(one.n_reference), str(one.n_recent)
    site = check.sites.get(one.site or "")
    if site is not None and not one.n_reference and not site.reference.examples:
        before = _before(site, check)
    if site is not None and not one.n_recent and not site.recent.examples:
        recent = _examples(site, site.recent)
    return [one.kind, one.subject, where, *numbers, p, before, recent, one.verdict]


def _together(found: "Sequence[Finding]") -> str:
    """One sentence for a subject: of all sites together if they drifted, else of where it moved furthest."""
    main = max(found, key=lambda one: (one.site is None, abs(one.effect)))
    others = sorted(str(one.site) for one in found if one is not main)
    return main.text + (f" Likewise at {', '.join(others)}." if others else "")


def _before(site: "SiteCheck", check: "Check") -> str:
    return _examples(site, site.reference) if check.since is not None else "0"


def _examples(site: "SiteCheck", window: "Window") -> str:
    """How many there are; where none are told, all that is known is that they are fewer than the smallest count."""
    return str(window.examples) if window.examples or site.min_count == 1 else f"<{site.min_count}"


def _estimate(one: "Estimate") -> str:
    return f"{one.value:.1%} ({one.low:.1%} to {one.high:.1%}, {one.n} examples)"


def _pooled(findings: "Findings") -> str:
    """Accuracy of all sites together with its interval, of the first output that has one that says something."""
    for told in findings.performance:
        if told.site is None and told.recent is not None and told.recent.high - told.recent.low <= WIDE:
            return f"{told.recent.value:.1%} ({told.recent.low:.1%} to {told.recent.high:.1%})"
    return NONE
