"""Questions that are asked together, and how they become findings.

A question is drift where it is large enough *and* its p-value is rejected by the Benjamini-Hochberg procedure among all
questions of its kind, at the level divided by the number of kinds: where nothing changed, a whole check calls something
drift in at most ``level`` of all cases, as far as the p-values hold. Kinds stand apart, so that many changed inputs do
not make it easier to find that meanings changed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .findings import KINDS, Finding, Kind, Verdict
from .psi import LARGE, Compared
from .tests import benjamini_hochberg


@dataclass(frozen=True)
class Question:
    """A finding but for its verdict; fields as ``Finding`` has them.

    Attributes:
        large: Whether the change is above its threshold and the floor.
        unclear: Why it is not "no drift" either, where it is not drift; empty where it is "no drift".
        name: What changed, such as "input age at hospital-a", to begin the sentence with.
        numbers: What was measured, such as "PSI 0.30, chance leaves it below 0.22".
        certain: Whether it is drift without a p-value, where it is large.
        moved: Share of the recent examples that lie elsewhere than before, where histograms are compared.
    """

    kind: Kind
    subject: str
    site: str | None
    statistic: float
    threshold: float
    p: float | None
    effect: float
    n_reference: int
    n_recent: int
    large: bool
    unclear: str
    name: str
    numbers: str
    certain: bool = False
    moved: float = 0.0


def answer(questions: Sequence[Question], level: float) -> tuple[Finding, ...]:
    """The findings, in the order of kind, subject and site, pooled ones first."""
    asked = {kind: [q for q in questions if q.kind == kind] for kind in KINDS}
    families = sum(any(q.p is not None for q in of) for of in asked.values())
    found: list[Finding] = []
    for of in asked.values():
        ordered = sorted(of, key=lambda q: (q.subject, q.site is not None, q.site or ""))
        found += _answered(ordered, level / max(families, 1))
    return tuple(found)


def _answered(questions: Sequence[Question], level: float) -> Iterator[Finding]:
    tested = [q for q in questions if q.p is not None]
    rejected = dict(zip(map(id, tested), benjamini_hochberg([q.p or 0.0 for q in tested], level), strict=True))
    for question in questions:
        drift = question.large and (rejected.get(id(question), False) or question.certain)
        verdict: Verdict = "drift" if drift else "too little data" if question.unclear else "no drift"
        yield Finding(
            kind=question.kind,
            subject=question.subject,
            site=question.site,
            statistic=question.statistic,
            threshold=question.threshold,
            p=question.p,
            effect=question.effect,
            n_reference=question.n_reference,
            n_recent=question.n_recent,
            verdict=verdict,
            text=_sentence(question, verdict),
        )


def _sentence(question: Question, verdict: Verdict) -> str:
    name = question.name[:1].upper() + question.name[1:]
    of = f"{question.n_reference:,} examples before, {question.n_recent:,} since"
    match verdict:
        case "drift":
            return f"{name} changed: {question.numbers} ({of})."
        case "no drift":
            return f"{name} did not change measurably: {question.numbers} ({of})."
        case _:
            return f"{name}: too little data: {question.unclear} ({of})."


def at(site: str | None) -> str:
    """Where, in words."""
    return "at all sites together" if site is None else f"at {site}"


def about_distance(
    kind: Kind,
    about: tuple[str, str | None, str],
    compared: Compared | None,
    examples: tuple[int, int],
    asked: tuple[float, float],
) -> Question:
    """A question about two histograms: drift by the alike reading of what is suppressed, none only by both.

    Args:
        kind: The finding's.
        about: Its subject, its site, and its name in words.
        compared: None where cells cannot be told apart.
        examples: Before and since.
        asked: The level and the floor of the effect.
    """
    subject, site, name = about
    if compared is None:
        unclear = "not enough in any two cells, for the noise on them and what is suppressed"
        return Question(kind, subject, site, 0.0, 0.0, None, 0.0, *examples, False, unclear, name, "")
    near, far = compared.alike, compared.apart
    unclear = ""
    if far.is_drift(*asked) and not near.is_drift(*asked):
        unclear = "it depends on what the suppressed counts are"
    elif near.is_blunt:
        unclear = f"chance alone makes a PSI of {near.threshold:.2f}, and {LARGE} is a large change"
    numbers = f"PSI {near.psi:.2f}, chance leaves it below {near.threshold:.2f}"
    return Question(
        kind=kind,
        subject=subject,
        site=site,
        statistic=near.psi,
        threshold=near.threshold,
        p=near.p,
        effect=near.effect,
        n_reference=min(near.reference, examples[0]),  # suppressed counts may be less than assumed
        n_recent=min(near.recent, examples[1]),
        large=near.is_large(asked[1]),
        unclear=unclear,
        name=name,
        numbers=numbers,
        moved=near.moved,
    )
