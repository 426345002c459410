"""The gate: whether a candidate may replace the incumbent, with the evidence.

Every holdout and every named slice of it must pass its holdout's rule, on the one-sided 95 % lower bound of the
paired difference (``server.paired``), candidate minus incumbent and larger is better:

    not-worse   bound > -margin
    improve     bound > margin; the margin is the gain asked, by default 0

All must pass, so the chance of a wrong release does not grow with their number. What does not pass is

    failed      the data speak against it, or would have shown it with 80 % power had it been so
    too small   neither: there are fewer examples than that takes, and the data leave it open

``needed_n`` is 6.2 variance / distance^2, where distance is the margin for not-worse, and for improve what was seen
beyond the gain asked; never less than it takes to have a bound at all. A model whose weights, predictions or losses
are not finite does not pass.

``judge`` reads files and runs models; everything else here is pure.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedretrain.contract import Contract
from fedretrain.job import HoldoutSection, Job, TrainSection
from fedretrain.labelspace import LabelSpace
from fedretrain.modelfile import BaseModel

from . import paired
from .holdouts import holdout_digest, load_holdouts
from .scores import Scores, score_holdouts

Decided = Literal["passed", "failed", "too small"]


@dataclass(frozen=True)
class SliceVerdict:
    """The verdict on one slice, or on a whole holdout.

    Attributes:
        name: Of the slice or holdout.
        metric: "accuracy", "auc" or "loss".
        must: "not-worse" or "improve".
        margin: In units of the metric.
        n: Examples judged; those of weight 0 are not.
        incumbent: Its metric on them, as people read it (a loss is smaller when better); None where not finite.
        candidate: Likewise.
        difference: Candidate against incumbent, positive is better.
        lower_bound: One-sided 95 % lower bound on the difference; None where the data support none.
        passed: Whether the rule holds.
        decided: "passed", "failed" or "too small".
        needed_n: Examples that would decide, about; None where that cannot be said.
        discordance: What one example contributes: n times the squared standard error; for accuracy the share of
            examples on which one model is right and the other wrong.
        reason: Why it did not pass, one sentence; empty where it passed.
    """

    name: str
    metric: str
    must: str
    margin: float
    n: int
    incumbent: float | None
    candidate: float | None
    difference: float | None
    lower_bound: float | None
    passed: bool
    decided: Decided
    needed_n: int | None
    discordance: float | None
    reason: str


@dataclass(frozen=True)
class HoldoutVerdict(SliceVerdict):
    """The verdict on a holdout as a whole; ``passed`` is of the whole, its slices have their own.

    Attributes:
        uses: In how many runs this holdout decided about a release.
        slices: By name.
    """

    uses: int = 0
    slices: tuple[SliceVerdict, ...] = ()


@dataclass(frozen=True)
class GateReport:
    """The gate's decision. ``reasons`` has one sentence for all that did not pass and is empty when ``passed``."""

    passed: bool
    holdouts: tuple[HoldoutVerdict, ...]
    reasons: tuple[str, ...] = ()
    confidence: float = paired.CONFIDENCE

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: dicts, lists, text, finite numbers, true, false and null."""
        value: dict[str, Any] = _plain(dataclasses.asdict(self))
        return value


def judge(  # noqa: PLR0913, PLR0917 - what a decision depends on, each from another source
    job: Job,
    contract: Contract,
    train: TrainSection,
    base: BaseModel,
    candidate: BaseModel,
    uses: Mapping[str, int] | None = None,
    space: LabelSpace | None = None,
) -> GateReport:
    """Measure the candidate against the incumbent on all holdouts of the job.

    Args:
        job: Says where the holdouts are and what they ask.
        contract: The candidate's: what data belong to.
        train: Resolved: metrics and losses are given.
        base: The incumbent.
        candidate: The candidate; of another architecture, it may be.
        uses: How often each holdout was used, by ``server.holdouts.holdout_digest``; for the report.
        space: How the incumbent's labels become the contract's, where they differ.

    Raises:
        ConfigurationError: A holdout that does not fit the contract, or a metric that does not fit the model.
        ModelRefused: Weights that do not belong to the architecture.
    """
    holdouts = load_holdouts(job, contract, train)
    scored = score_holdouts(job.model, contract, train, (base, candidate), holdouts, space)
    counts = [uses.get(holdout_digest(data), 0) if uses else 0 for _, data in holdouts]
    verdicts = [
        judge_scores(section, scores, count)
        for (section, _), scores, count in zip(holdouts, scored, counts, strict=True)
    ]
    return report(verdicts, _spoiled(base, candidate))


def report(verdicts: Sequence[HoldoutVerdict], spoiled: Sequence[str] = ()) -> GateReport:
    """The decision over all verdicts.

    Args:
        verdicts: One for each holdout.
        spoiled: What else speaks against the candidate, one sentence each.
    """
    parts = [part for verdict in verdicts for part in (verdict, *verdict.slices)]
    reasons = (*spoiled, *(part.reason for part in parts if not part.passed))
    if not verdicts:
        reasons = (*reasons, "there is no holdout, so nothing speaks for the candidate")
    return GateReport(passed=not reasons, holdouts=tuple(verdicts), reasons=reasons)


def judge_scores(section: HoldoutSection, scores: Scores, uses: int = 0) -> HoldoutVerdict:
    """The verdict on one holdout and its slices, from the scores alone."""
    counted = np.ones(len(scores.incumbent), bool) if scores.weights is None else scores.weights > 0
    whole = _verdict(section, scores, counted, section.name, f"holdout '{section.name}'")
    names = [] if scores.slices is None else sorted(set(scores.slices.tolist()) - {""})
    slices = tuple(
        _verdict(section, scores, counted & (scores.slices == name), name, f"holdout '{section.name}', slice '{name}'")
        for name in names
    )
    fields = {f.name: getattr(whole, f.name) for f in dataclasses.fields(whole)}
    return HoldoutVerdict(**fields, uses=uses, slices=slices)


def _verdict(section: HoldoutSection, scores: Scores, rows: NDArray[Any], name: str, where: str) -> SliceVerdict:
    """Judge the examples in ``rows`` (bool [n])."""
    spoiled = _not_finite(scores, rows, where)
    n = int(rows.sum())
    found = paired.Comparison(n, math.nan, math.nan, math.nan) if spoiled else _compare(scores, rows)
    threshold = section.margin if section.must == "improve" else -section.margin
    distance = section.margin if section.must == "not-worse" else found.difference - section.margin
    needed = None if spoiled else paired.examples_needed(found, distance)
    decided = "failed" if spoiled else _decide(found, threshold, needed)
    sign = -1.0 if scores.metric == "loss" else 1.0
    verdict = SliceVerdict(
        name=name,
        metric=scores.metric,
        must=section.must,
        margin=section.margin,
        n=n,
        incumbent=_finite(sign * found.incumbent),
        candidate=_finite(sign * found.candidate),
        difference=_finite(found.difference),
        lower_bound=_finite(found.lower),
        passed=decided == "passed",
        decided=decided,
        needed_n=needed,
        discordance=_finite(found.variance),
        reason=spoiled,
    )
    return verdict if spoiled else dataclasses.replace(verdict, reason=_reason(verdict, found.problem, where))


def _not_finite(scores: Scores, rows: NDArray[Any], where: str) -> str:
    """A sentence if a model has scores that are no numbers; the candidate's fault comes first."""
    for who, of in (("candidate", scores.candidate), ("incumbent", scores.incumbent)):
        bad = int((~np.isfinite(of[rows])).sum())
        if bad:
            return f"{where}: predictions or losses of the {who} are not finite for {bad} of {int(rows.sum())} examples"
    return ""


def _compare(scores: Scores, rows: NDArray[Any]) -> paired.Comparison:
    """The comparison that belongs to the metric, on these rows."""
    if not rows.any():
        return paired.Comparison(0, math.nan, math.nan, math.nan, problem="none has a weight above 0")
    pair = scores.incumbent[rows], scores.candidate[rows]
    weights = None if scores.weights is None else scores.weights[rows]
    if scores.labels is not None:
        return paired.auc(*pair, scores.labels[rows], weights)
    if scores.metric == "loss":
        return paired.mean(*pair, weights)
    return paired.matched(*pair) if scores.single and weights is None else paired.mean_bounded(*pair, weights)


def _decide(found: paired.Comparison, threshold: float, needed: int | None) -> Decided:
    if found.lower is None or found.upper is None:
        return "too small"
    if found.lower > threshold:
        return "passed"
    undecided = needed is not None and found.n < needed and found.upper > threshold
    return "too small" if undecided else "failed"


def _reason(verdict: SliceVerdict, problem: str, where: str) -> str:
    """Why it did not pass, and what to do where there is something; empty where it passed."""
    if verdict.passed:
        return ""
    if problem:
        ask = "" if verdict.needed_n is None else f", about {verdict.needed_n} examples like these"
        return f"{where} has {verdict.n} examples; {problem}{ask}"
    margin = f"{verdict.margin:g}"
    if verdict.decided == "too small":
        kind = "an increase" if verdict.metric == "loss" else "a loss"
        goal = f"{kind} of at most {margin} at this disagreement"
        if verdict.must == "improve":
            goal = f"a gain above {margin} where it is as large as here"
        return f"{where} has {verdict.n} examples; about {verdict.needed_n} are needed to show {goal}"
    least = margin if verdict.must == "improve" else f"-{margin}" if verdict.margin else "0"
    return (
        f"{where}: {verdict.metric} {verdict.incumbent:.4g} -> {verdict.candidate:.4g} on {verdict.n} examples; "
        f"lower bound of the difference {verdict.lower_bound:.4g}, expected above {least}"
    )


def _spoiled(incumbent: BaseModel, candidate: BaseModel) -> list[str]:
    """A sentence for each variable that is not finite in the candidate, unless it is so in the incumbent as well."""
    same = incumbent.architecture == candidate.architecture
    known = [same and not np.isfinite(old).all() for old in incumbent.weights] if same else []
    return [
        f"candidate: variable {position} has values that are not finite"
        for position, new in enumerate(candidate.weights)
        if not np.isfinite(new).all() and not (same and known[position])
    ]


def _finite(value: float | None) -> float | None:
    """The number without a sign on zero, or None where there is none."""
    return float(value) + 0.0 if value is not None and math.isfinite(value) else None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
