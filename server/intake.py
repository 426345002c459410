"""One round's replies, from arrival to the decision which of them count.

Invariants: every reply ends as admitted or quarantined with a code; which it is does not depend on the order of
arrival; nothing of a quarantined reply is in the aggregate.

Where the norm bound is known when the round begins, a reply is judged and folded as it arrives. In the first round
there is nothing to compare with yet: replies wait on disk and are judged by that round's own norms at its end.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from fedretrain.errors import RejectedUpdate
from fedretrain.messages import Declined

from .admission import Expected, Update, admit_train, judged, wire_bytes
from .aggregate import Collector, Contribution
from .combining import Verdict, shown_refusal, update_bytes
from .events import EventLog
from .exchange import Arrival
from .norms import check_norm, norm_bound
from .prepare import Site

FORGETFUL = frozenset({"model-missing", "request-invalid"})  # codes of a site that has to be prepared again


@dataclass(frozen=True)
class Bounds:
    """What the norm rule compares with: norms of the last round (none in the first), the model's, the job's bound."""

    previous: Sequence[float]
    global_norm: float
    fixed: float | None

    @property
    def known(self) -> bool:
        """Whether the bound is known before a reply is in."""
        return self.fixed is not None or len(self.previous) > 0


@dataclass(frozen=True)
class Admitted:
    """A reply that counts, as it is reported and recorded."""

    site: str
    examples: int
    norm: float
    bytes: int
    seconds: float
    metrics: dict[str, float]
    flags: list[str]


@dataclass(frozen=True)
class Quarantined:
    """A reply that does not count, or none at all."""

    site: str
    code: str
    detail: str


class Intake:
    """Takes the arrivals of one round.

    Args:
        expected: What every reply has to match.
        asked: The sites asked.
        bounds: For the norm rule.
        collector: Where the updates go.
        emit: For ``reply`` and ``quarantined``.
    """

    def __init__(
        self, expected: Expected, asked: Sequence[Site], bounds: Bounds, collector: Collector, emit: EventLog
    ) -> None:
        self.admitted: dict[str, Admitted] = {}
        self.quarantined: list[Quarantined] = []
        self.forgetful: set[int] = set()
        self.replies = 0
        self.bytes_up = 0
        self._unfolded: dict[str, RejectedUpdate] = {}
        self.collector = collector
        self._expected = expected
        self._update_bytes = update_bytes(expected.variables)
        self._sites = {site.node: site for site in asked}
        self._bounds = bounds
        self._emit = emit

    def receive(self, arrival: Arrival) -> None:
        """Judge one arrival."""
        site = self._sites[arrival.node]
        size = self._count(arrival)
        admit = partial(admit_train, site=site.name, declared=site.train_examples, expected=self._expected)
        answer = judged(arrival.outcome, admit)
        refusal = self._collect(answer, size, arrival.seconds) if isinstance(answer, Update) else _refusal(answer)
        if refusal is not None:
            self._quarantine(site.name, refusal)
        if isinstance(answer, Declined) and answer.code in FORGETFUL:
            self.forgetful.add(site.node)

    def receive_verdict(self, verdict: Verdict) -> None:
        """A site's update was judged, and folded where it counts, elsewhere (``server.combining``)."""
        site = self._sites[verdict.node]
        size = 0 if verdict.declined else self._update_bytes
        self.replies += 1
        self.bytes_up += size
        if verdict.update is not None:
            u = verdict.update
            self._admit(Update(site.name, [], u.examples, u.norm, u.claims, u.flags), size, verdict.seconds)
        if verdict.refusal is not None:
            if verdict.update is not None:
                self._unfolded[site.name] = verdict.refusal
            else:
                self._quarantine(site.name, verdict.refusal)
        if verdict.declined in FORGETFUL:
            self.forgetful.add(site.node)

    def lose(self, node: int, seconds: float) -> None:
        """No answer by the deadline, ``seconds`` after the request; what counted so far of that site does not."""
        name = self._sites[node].name
        self.admitted.pop(name, None)
        self._quarantine(name, RejectedUpdate("late", f"expected a complete reply within {seconds:g} s, got none"))

    @property
    def bound(self) -> float:
        """The largest L2 norm an update may have: infinite while the first round's replies come in."""
        bounds = self._bounds
        return norm_bound(bounds.previous, bounds.global_norm, bounds.fixed) if bounds.known else math.inf

    def settle(self) -> None:
        """All replies are in: judge those that had to wait, and fold those that count."""
        if self._bounds.known:
            return
        self._judge_norms()
        for name in sorted(self.admitted):
            try:
                self.collector.take(name, self.admitted[name].examples)
            except RejectedUpdate as refusal:
                self._drop(name, refusal)

    def settle_folded(self) -> bool:
        """As ``settle``, for updates that are folded already; whether one that does not count is in the sums."""
        if self._bounds.known:
            return False
        folded = set(self.admitted) - set(self._unfolded)
        self._judge_norms()
        for name in sorted(set(self._unfolded) & set(self.admitted)):
            self._drop(name, self._unfolded[name])
        return not folded <= set(self.admitted)

    def _judge_norms(self) -> None:
        """Quarantine by the bound that the first round's own norms give."""
        bound = norm_bound([a.norm for a in self.admitted.values()], self._bounds.global_norm, None)
        for name in sorted(self.admitted):
            try:
                check_norm(self.admitted[name].norm, bound)
            except RejectedUpdate as refusal:
                self._drop(name, refusal)

    def _drop(self, name: str, refusal: RejectedUpdate) -> None:
        del self.admitted[name]
        self._quarantine(name, refusal)

    def contributions(self) -> list[Contribution]:
        """The replies that count, sorted by site."""
        nodes = {site.name: node for node, site in self._sites.items()}
        counted = [self.admitted[name] for name in sorted(self.admitted)]
        return [Contribution(a.site, nodes[a.site], a.examples, a.metrics) for a in counted]

    def metrics(self) -> dict[str, float]:
        """The sites' claims averaged: those on validation data by validation examples, others by training examples."""
        validation = {site.name: site.validation_examples for site in self._sites.values()}
        counted = [self.admitted[name] for name in sorted(self.admitted)]
        names = sorted({name for a in counted for name in a.metrics} - {"seconds"})
        return {n: m for n in names if (m := _mean(n, counted, validation if n.startswith("val-") else {})) is not None}

    def _count(self, arrival: Arrival) -> int:
        """Bytes of a reply's arrays, whatever is in them."""
        if isinstance(arrival.outcome, RejectedUpdate):
            return 0
        size = wire_bytes(arrival.outcome)
        self.replies += 1
        self.bytes_up += size
        return size

    def _collect(self, update: Update, size: int, seconds: float) -> RejectedUpdate | None:
        """Take an update into the aggregate, or say why not."""
        if update.site in self.admitted:
            return RejectedUpdate("stale", "a second reply to the same request")
        try:
            check_norm(update.norm, self.bound)
            self.collector.add(update.site, update.arrays, update.examples, update.norm)
        except RejectedUpdate as refusal:
            return refusal.with_traceback(None)
        self._admit(update, size, seconds)
        return None

    def _admit(self, update: Update, size: int, seconds: float) -> None:
        admitted = Admitted(
            site=update.site,
            examples=update.examples,
            norm=update.norm,
            bytes=size,
            seconds=round(seconds, 3),
            metrics=dict(update.claims),
            flags=list(update.flags),
        )
        self.admitted[update.site] = admitted
        self._emit("reply", round=self._expected.round, **vars(admitted))

    def _quarantine(self, site: str, refusal: RejectedUpdate) -> None:
        self.quarantined.append(Quarantined(site, refusal.code, refusal.detail))
        self._emit("quarantined", round=self._expected.round, site=site, code=refusal.code, detail=refusal.detail)


def _refusal(answer: Declined | RejectedUpdate) -> RejectedUpdate:
    return answer if isinstance(answer, RejectedUpdate) else shown_refusal(answer)


def _mean(name: str, counted: Sequence[Admitted], weights: Mapping[str, int]) -> float | None:
    """Mean of one claim over the sites that make it, None where they weigh nothing."""
    weighed = [(weights.get(a.site, a.examples), a.metrics[name]) for a in counted if name in a.metrics]
    total = sum(weight for weight, _ in weighed)
    return sum(weight * value for weight, value in weighed) / total if total else None
