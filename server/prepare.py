"""Which sites can take part: each is asked whether its data fit, and gets the base model if it lacks it.

Invariants: a site that cannot take part costs nothing but itself; no name is used by two nodes; what a site declares
here bounds what it may claim later.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from flwr.serverapp import Grid

from fedretrain import words
from fedretrain.contract import keys
from fedretrain.errors import RejectedUpdate, RunFailed
from fedretrain.messages import BASE, PREPARE, BaseReply, BaseRequest, Declined, PrepareReply, PrepareRequest, pack

from .admission import admit_base, admit_prepare, judged, wire_bytes
from .combining import Combining
from .events import EventLog
from .exchange import POLL_S, Arrival, Question, exchange, transport_errors
from .messenger import PLAIN, Messenger
from .plan import Plan
from .wanted import wanted_sums

NODE_WAIT_S = 60.0  # how long a run waits for its nodes to be connected
LEAST_WAIT_S = 120.0  # for an answer here, however short the job's rounds are: sites load TensorFlow first
MOST_BY_MEDIAN = 1000  # times the median example count of the sites is the most one site counts for


@dataclass(frozen=True)
class Site:
    """A site that is ready to train: its node, and how many examples it declared.

    ``declines``: modes that it does not allow, as it says when it is asked for a check.
    """

    name: str
    node: int
    train_examples: int
    validation_examples: int
    declines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """Who is ready, by name; why others are not, one line for each reason; bytes of arrays that were sent for it.

    ``declined`` has the reason of each who is not, by name or "node N".
    """

    sites: dict[str, Site]
    refusals: tuple[str, ...]
    base_bytes: int
    declined: Mapping[str, str]


def await_nodes(grid: Grid, wanted: int, at_least: int, limit_s: float = NODE_WAIT_S) -> list[int]:
    """Node ids, ascending, as soon as ``wanted`` are connected, or what is there after ``limit_s`` seconds.

    Raises:
        RunFailed: Fewer than ``at_least``.
    """
    end = time.monotonic() + limit_s
    with transport_errors("ask which sites are connected"):
        while len(nodes := sorted(grid.get_node_ids())) < wanted and time.monotonic() < end:
            time.sleep(POLL_S)
    if len(nodes) < at_least:
        raise RunFailed(
            f"expected at least {at_least} sites to be connected within {limit_s:g} s, got {len(nodes)}; "
            "start the missing ones, or lower participation.min_sites, and resume"
        )
    return nodes


class Preparation:
    """Asks nodes whether they can take part, and brings the base model to those that lack it.

    Args:
        plan: What is fixed.
        grid: Where the sites are.
        emit: Takes ``site-prepared`` or ``site-declined`` for each node.
        messenger: How messages go out and come back.
        sums: What will be asked beside updates (``fedretrain.sums``); default: what the job needs.
        check: Whether the sites are asked about their data alone, and nothing is trained.
    """

    def __init__(  # noqa: PLR0913 - each is another part of a run
        self,
        plan: Plan,
        grid: Grid,
        emit: EventLog,
        messenger: Messenger = PLAIN,
        *,
        sums: tuple[str, ...] | None = None,
        check: bool = False,
    ) -> None:
        self._plan = plan
        self._grid = grid
        self._emit = emit
        self._messenger = messenger
        self._sums = wanted_sums(plan.job) if sums is None else sums
        self._check = check

    def ask(self, nodes: Sequence[int], taken: Iterable[str], deadline_s: float) -> Prepared:
        """Ask ``nodes`` and wait ``deadline_s`` seconds at most; ``taken`` are names that other nodes bear already."""
        ready: dict[str, tuple[Site, bool]] = {}
        refusals = []
        for node, answer in sorted(self._answers(nodes, deadline_s).items()):
            if isinstance(answer, PrepareReply) and answer.site not in ready and answer.site not in taken:
                site = Site(answer.site, node, answer.train_examples, answer.validation_examples, answer.declines)
                ready[site.name] = (site, answer.needs_base)
            else:
                refusals.append(_refusal(self._messenger.name(node) or f"node {node}", answer))
        base_bytes, without = self._distribute([site for site, lacks in ready.values() if lacks], deadline_s)
        sites = {name: site for name, (site, _) in sorted(ready.items()) if name not in without}
        refusals += without.values()
        for refusal in refusals:
            self._emit("site-declined", **refusal)
        for site in sites.values():
            counts = {"train_examples": site.train_examples, "validation_examples": site.validation_examples}
            self._emit("site-prepared", site=site.name, **counts)
        told = words.together(((refusal["site"], _reason(refusal)) for refusal in refusals), len(nodes))
        declined = {refusal["site"]: _reason(refusal) for refusal in refusals}
        return Prepared(sites, tuple(f"{who}: {why}" for who, why in told), base_bytes, declined)

    def _answers(self, nodes: Sequence[int], deadline_s: float) -> dict[int, PrepareReply | Declined | RejectedUpdate]:
        """What each node answers first."""
        plan = self._plan
        request = PrepareRequest(
            run=plan.run,
            contract=plan.contract,
            architecture=plan.base.architecture,
            freeze=plan.job.model.freeze,
            train=plan.train,
            strategy=plan.job.strategy,
            codec=plan.job.messages.codec,
            sums=self._sums,
            check=self._check,
        )
        question = Question(pack(request), PREPARE, "prepare", deadline_s)
        admit = partial(admit_prepare, run=plan.run, contract=plan.contract.digest)
        answers: dict[int, PrepareReply | Declined | RejectedUpdate] = {}
        for arrival in self._exchange(nodes, question):
            answer = judged(arrival.outcome, partial(admit, site=self._messenger.name(arrival.node)))
            answers.setdefault(arrival.node, answer)
        return answers

    def _exchange(self, nodes: Sequence[int], question: Question) -> Iterator[Arrival]:
        if isinstance(self._grid, Combining) and self._messenger is PLAIN:
            return self._grid.ask_together(nodes, question)
        return exchange(self._grid, nodes, question, self._messenger)

    def _distribute(self, sites: Sequence[Site], deadline_s: float) -> tuple[int, dict[str, dict[str, str]]]:
        """Send the base model; bytes of arrays sent, and the refusals of the sites that did not store it."""
        if not sites:
            return 0, {}
        base, weights = self._plan.contract.base, self._plan.base.weights
        request = BaseRequest(run=self._plan.run, base=base)
        content = pack(request, dict(zip(keys(range(len(weights))), weights, strict=True)))
        question = Question(content, BASE, "base", deadline_s)
        names = {site.node: site.name for site in sites}
        refusals: dict[str, dict[str, str]] = {}
        for arrival in self._exchange(sorted(names), question):
            name = names[arrival.node]
            answer = judged(arrival.outcome, partial(admit_base, run=request.run, site=name, base=base))
            if not isinstance(answer, BaseReply):
                refusals.setdefault(name, _refusal(name, answer))
        return wire_bytes(content) * len(sites), refusals


def capped(sites: Mapping[str, Site], emit: EventLog) -> dict[str, Site]:
    """The sites with example counts of at most 1000 times their lower median; a ``warning`` for each that had more.

    Weights are summed in integers scaled by what all sites declared, so that a site which declares without bound would
    cost the others their precision.
    """
    counts = sorted(site.train_examples for site in sites.values())
    most = MOST_BY_MEDIAN * counts[(len(counts) - 1) // 2] if counts else 0
    for site in sites.values():
        if site.train_examples > most:
            text = f"{site.name} declares {site.train_examples} examples, {MOST_BY_MEDIAN} times the median or more"
            emit("warning", text=f"{text}; it counts for {most}")
    return {name: replace(site, train_examples=min(site.train_examples, most)) for name, site in sites.items()}


def _refusal(who: str, answer: PrepareReply | Declined | RejectedUpdate) -> dict[str, str]:
    """Why a node does not take part, as the event's fields; ``who`` stands in for a name it did not give."""
    if isinstance(answer, Declined):
        return {"site": answer.site or who, "code": answer.code, "where": answer.where, "expected": answer.expected}
    if isinstance(answer, PrepareReply):
        return {"site": who, "code": "site", "where": answer.site, "expected": "a name that no other node bears"}
    return {"site": who, "code": answer.code, "where": "", "expected": answer.detail}


def _reason(refusal: dict[str, str]) -> str:
    where = f" at {refusal['where']}" if refusal["where"] else ""
    return f"{refusal['code']}{where}" + (f" ({refusal['expected']})" if refusal["expected"] else "")
