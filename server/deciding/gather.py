"""From what is kept to evidence: the history of checks, the registry and the results of runs.

Invariants:

- Nothing is measured, asked or written here; what is gathered is a function of the files and of ``now``.
- A check counts for the model that it looked at: what was found about a release that is in use no more is no evidence.
- A count that a site withheld counts as nothing, never as more than it may be.

Use::

    runs = runs_of(out, history.plans())
    evidence = evidence_of(history, job, runs, datetime.now(UTC))
    plan = decide(evidence, job.plan or PlanSection(), costs_of(evidence.past))
"""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from fedretrain.job import Job
from fedretrain.planning import RETRAININGS, Retraining

from .carry_out import mode_of
from .evidence import Estimate, Evidence, Signal
from .rules import DRIFTS
from .runs import Clock, Runs, costs_of, past_of, runs_of

if TYPE_CHECKING:
    from server.checking.document import Check, SiteCheck
    from server.drift.findings import Findings, Performance
    from server.history import History

__all__ = ["Clock", "Runs", "costs_of", "evidence_of", "past_of", "runs_of"]

Kind = Literal["covariate", "label", "concept", "quality"]
KINDS: Final[tuple[Kind, ...]] = ("covariate", "label", "concept", "quality")
"""Of findings, those that are evidence; what a site's detector saw is in its check's own tests as well."""
NO_LABELS: Final = "no labels"
_HOURS: Final = re.compile(r"\d\d:\d\d-\d\d:\d\d")


def evidence_of(history: "History", job: Job, runs: Runs, now: datetime) -> Evidence:
    """All that the planner may look at.

    Args:
        history: Of checks and findings.
        job: That is watched; its [watch] says which labels are looked for.
        runs: See ``runs_of``.
        now: The planner's clock.

    Raises:
        ConfigurationError: The history is damaged.
        MachineError: The disk.
    """
    pairs = list(zip(history.checks(), history.findings(), strict=True))
    mine = [pair for pair in pairs if runs.is_of(pair[0])]
    known: dict[str, Any] = {
        "at": now,
        "release": runs.release,
        "released_at": runs.released_at,
        "past": runs.past,
        "previous_release": runs.previous_release,
        "previous_metric": _recent([found for check, found in pairs if runs.is_of_previous(check)]),
    }
    if not pairs or not runs.is_of(pairs[-1][0]):
        return Evidence(**known, too_little=True)
    check, findings = mine[-1]
    if runs.released_at is None and check.since is not None:
        known["released_at"] = datetime.fromisoformat(check.since)  # from when on what came is new to the model in use
    performance = _worst(findings)
    watched = job.watch.labels if job.watch else ()
    declined = tuple(_declined(check, job))
    return Evidence(
        **known,
        signals=tuple(_signals(check, [found for _, found in mine])),
        metric=performance.recent if performance else None,
        reference=performance.reference if performance else None,
        best=_best([found for _, found in mine]),
        expected_accuracy=performance.expected if performance else None,
        new_examples=_examples(check, "recent"),
        old_examples=_examples(check, "reference"),
        new_labels=_new_labels(check, watched),
        unknown_labels=sum(_count(site, output, -1) for site in check.sites.values() for output in check.labels),
        sites=len(check.sites),
        new_sites=_new_sites([one for one, _ in pairs], runs),
        withheld=tuple(sorted(_withheld(check))),
        too_little=_says_nothing(check, findings),
        site_hours=tuple(_site_hours(check)),
        declined=declined,
        needed=job.participation.min_sites if declined else 0,
    )


def _signals(check: "Check", findings: "Sequence[Findings]") -> Iterator[Signal]:
    """Drift that the latest of these findings have, one for each kind."""
    for kind in KINDS:
        drifted = [f for f in findings[-1].findings if f.kind == kind and f.verdict == "drift"]
        if not drifted:
            continue
        greatest = max(drifted, key=lambda f: (abs(f.effect), f.subject))
        sites = {finding.site for finding in drifted if finding.site is not None}
        yield Signal(kind, abs(greatest.effect), len(sites), len(check.sites), _stood(findings, kind), greatest.subject)


def _stood(findings: "Sequence[Findings]", kind: Kind) -> int:
    """In how many checks in a row up to the latest there was such drift; those with too little data say neither."""
    count = 0
    for found in reversed(findings):
        verdicts = {finding.verdict for finding in found.findings if finding.kind == kind}
        if "drift" in verdicts:
            count += 1
        elif "no drift" in verdicts:
            break
    return count


def _worst(findings: "Findings") -> "Performance | None":
    """Of all sites together, the output that is right least often; those without labels come last."""
    pooled = [one for one in findings.performance if one.site is None]
    return min(pooled, key=lambda one: (one.recent is None, one.recent.value if one.recent else 0.0), default=None)


def _best(findings: "Sequence[Findings]") -> Estimate | None:
    """Of all these checks, the metric on recent data that is best for sure."""
    known = [one.recent for found in findings if (one := _worst(found)) is not None and one.recent is not None]
    return max(known, key=lambda estimate: (estimate.low, estimate.value), default=None)


def _recent(findings: "Sequence[Findings]") -> Estimate | None:
    worst = _worst(findings[-1]) if findings else None
    return worst.recent if worst else None


def _examples(check: "Check", window: Literal["reference", "recent"]) -> int | None:
    """Examples of sites that have labels to learn from; None where no site answered."""
    if not check.sites:
        return None
    told = [site for site in check.sites.values() if NO_LABELS not in site.withheld.values()]
    return sum((site.recent if window == "recent" else site.reference).examples for site in told)


def _new_labels(check: "Check", watched: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Labels that were looked for and are none of the model's, with how many recent examples bear each."""
    found: dict[str, int] = {}
    for output, names in check.labels.items():
        for position, name in enumerate(names[:-1]):
            beyond = [site for site in check.sites.values() if _is_new(site, output, position)]
            count = sum(_count(site, output, position) for site in beyond)
            if name in watched and count:
                found[name] = found.get(name, 0) + count
    return tuple((name, found[name]) for name in watched if name in found)


def _is_new(site: "SiteCheck", output: str, position: int) -> bool:
    """Whether a label's position is beyond those of the model."""
    return position >= len(site.recent.predicted.get(output, ()))


def _count(site: "SiteCheck", output: str, position: int) -> int:
    counts = site.recent.labels.get(output, ())
    return (counts[position] or 0) if counts else 0


def _new_sites(checks: "Sequence[Check]", runs: Runs) -> tuple[str, ...]:
    """Sites of the latest check that the release in use was not trained at, and that had no chance to be.

    Those that were there in checks before the release had it. Where it was not trained here, the first check of it
    says who was there.
    """
    before = [check for check in checks if not runs.is_of(check)]
    if runs.sites is None:
        before = [*before, *[check for check in checks if runs.is_of(check)][:1]]
    known = {name for check in before for name in check.sites} | (runs.sites or frozenset())
    return tuple(sorted(set(checks[-1].sites) - known))


def _withheld(check: "Check") -> Iterator[str]:
    for name, site in check.sites.items():
        for section, reason in site.withheld.items():
            if reason != "not asked":
                yield f"{name}: {section} ({reason})"


def _says_nothing(check: "Check", findings: "Findings") -> bool:
    """Whether no question is answered; or none finds drift, and most of those about it have no answer."""
    verdicts = [finding.verdict for finding in findings.findings]
    about_drift = [finding.verdict for finding in findings.findings if finding.kind in DRIFTS]
    most = 2 * about_drift.count("too little data") > len(about_drift)
    silent = all(verdict == "too little data" for verdict in verdicts)
    return not check.sites or silent or (most and "drift" not in verdicts)


def _declined(check: "Check", job: Job) -> Iterator[tuple[Retraining, tuple[str, ...]]]:
    """Ways to retrain whose run would be of a mode that sites do not allow, with these."""
    for action in RETRAININGS:
        mode = mode_of(action, job)
        against = tuple(sorted(name for name, site in check.sites.items() if mode in site.declines))
        if against:
            yield action, against


def _site_hours(check: "Check") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Hours that sites gave when they declined for them."""
    for name, reason in sorted(check.declined.items()):
        if reason.startswith(("policy hours", "policy at hours")):
            yield name, tuple(_HOURS.findall(reason))
