"""One round's replies, from arrival to the decision which of them count.

Invariants: every reply ends as admitted or quarantined with a code; which it is does not depend on the order of
arrival; nothing of a quarantined reply is in the aggregate.

Where the norm bound is known when the round begins, a reply is judged and folded as it arrives. In the first round
there is nothing to compare with yet: replies wait on disk and are judged by that round's own norms at its end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from fedretrain.errors import RejectedUpdate
from fedretrain.messages import Declined

from .admission import Expected, Update, admit_train, judged, wire_bytes
from .aggregate import Collector, Contribution
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
        self.collector = collector
        self._expected = expected
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

    def settle(self) -> None:
        """All replies are in: judge those that had to wait."""
        if self._bounds.known:
            return
        norms = [a.norm for a in self.admitted.values()]
        bound = norm_bound(norms, self._bounds.global_norm, None)
        for name in sorted(self.admitted):
            try:
                check_norm(self.admitted[name].norm, bound)
                self.collector.take(name, self.admitted[name].examples)
            except RejectedUpdate as refusal:
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
            if self._bounds.known:
                bounds = self._bounds
                check_norm(update.norm, norm_bound(bounds.previous, bounds.global_norm, bounds.fixed))
            self.collector.add(update.site, update.arrays, update.examples, update.norm)
        except RejectedUpdate as refusal:
            return refusal.with_traceback(None)
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
        self._emit("reply", round=self._expected.round, **asdict(admitted))
        return None

    def _quarantine(self, site: str, refusal: RejectedUpdate) -> None:
        self.quarantined.append(Quarantined(site, refusal.code, refusal.detail))
        self._emit("quarantined", round=self._expected.round, site=site, code=refusal.code, detail=refusal.detail)


def _refusal(answer: Declined | RejectedUpdate) -> RejectedUpdate:
    if isinstance(answer, RejectedUpdate):
        return answer
    where = f" at {answer.where}" if answer.where else ""
    expected = f": expected {answer.expected}" if answer.expected else ""
    return RejectedUpdate("declined", f"{answer.code}{where}{expected}")


def _mean(name: str, counted: Sequence[Admitted], weights: Mapping[str, int]) -> float | None:
    """Mean of one claim over the sites that make it, None where they weigh nothing."""
    weighed = [(weights.get(a.site, a.examples), a.metrics[name]) for a in counted if name in a.metrics]
    total = sum(weight for weight, _ in weighed)
    return sum(weight * value for weight, value in weighed) / total if total else None
