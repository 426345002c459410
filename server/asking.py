"""One round's requests, and what comes back, until all have answered or the deadline has passed.

Two ways, with the same outcome: each site gets a message and sends its update, or a grid that can combines the updates
where they are made (``server.combining``). The latter serves where updates are folded on arrival, travel as they are,
and nobody has to be proved to have sent them.

Invariant: requests are out when an ``Asking`` is made, so that what has to be done meanwhile can be.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

from flwr.serverapp import Grid

from fedretrain.codecs import Codec, Float32
from fedretrain.messages import TRAIN, TrainRequest, pack
from strategies.base import Arrays

from .admission import Expected, wire_bytes
from .aggregate import Collector
from .combining import Combination, Combining, Part, update_bytes
from .exchange import Question, exchange
from .intake import Intake
from .messenger import PLAIN, Messenger
from .prepare import Site


@dataclass(frozen=True)
class Round:
    """What is sent in one round.

    Attributes:
        expected: What every reply has to match.
        params: The global values of the variables that travel.
        sites: Who is asked.
        deadline_s: How long they have.
        companions: Digests of the arrays that they hold for the run's objectives, by name.
    """

    expected: Expected
    params: Arrays
    sites: Sequence[Site]
    deadline_s: float
    companions: Mapping[str, str] = field(default_factory=dict)

    @property
    def order(self) -> TrainRequest:
        """What every site is told."""
        e = self.expected
        return TrainRequest(
            run=e.run,
            round=e.round,
            contract=e.contract,
            globals_digest=e.globals_digest,
            companions=dict(self.companions),
        )

    def question(self, deadline_s: float) -> Question:
        """The order and the arrays, as a message."""
        content = pack(self.order, dict(zip(self.expected.variables, self.params, strict=True)))
        return Question(content, TRAIN, str(self.expected.round), deadline_s, self.expected.round)


class Asking(Protocol):
    """Requests that are out; ``bytes_down`` of arrays."""

    bytes_down: int

    def take(self, intake: Intake) -> None:
        """Take all answers and settle which of them count; returns at the deadline at the latest."""
        ...


def combining(grid: Grid, messenger: Messenger, codec: Codec) -> Combining | None:
    """The grid, where it can fold updates that are folded on arrival; None where it cannot, or must not."""
    plain = messenger is PLAIN and isinstance(codec, Float32)
    return grid if plain and isinstance(grid, Combining) and grid.combines else None


class ByMessage:
    """Each site gets a message and sends its update; raises MachineError where they cannot be sent."""

    def __init__(self, grid: Grid, messenger: Messenger, round_: Round) -> None:
        question = round_.question(round_.deadline_s)
        self.bytes_down = wire_bytes(question.content) * len(round_.sites)
        self._arrivals = exchange(grid, [site.node for site in round_.sites], question, messenger)

    def take(self, intake: Intake) -> None:
        """See ``Asking``."""
        for arrival in self._arrivals:
            intake.receive(arrival)
        intake.settle()


class Together:
    """The sites are processes of this machine, which fold their updates themselves.

    Args:
        grid: Where they are.
        round_: What is sent.
        collect: Gives an empty collector that folds.
        intake: Of the round.

    Raises:
        MachineError: No process is left.
    """

    def __init__(self, grid: Combining, round_: Round, collect: Callable[[], Collector], intake: Intake) -> None:
        self._grid = grid
        self._round = round_
        self._collect = collect
        self._ends = time.monotonic() + round_.deadline_s
        self.bytes_down = update_bytes(round_.expected.variables) * len(round_.sites)
        self._parts = grid.combine(self._combination(round_.sites, intake))

    def take(self, intake: Intake) -> None:
        """See ``Asking``."""
        unanswered: list[int] = []
        for part in self._parts:
            self._merge(part, intake)
            unanswered += part.open
        self._ask_again(unanswered, intake)
        if intake.settle_folded():
            self._fold_again(intake)

    def _merge(self, part: Part, intake: Intake) -> None:
        if part.state is not None:
            intake.collector.merge(part.state)
        for verdict in part.verdicts:
            intake.receive_verdict(verdict)

    def _ask_again(self, nodes: Sequence[int], intake: Intake) -> None:
        """By a message to each, for as long as there is time."""
        left = self._ends - time.monotonic()
        if nodes and left > 0:
            for arrival in exchange(cast(Grid, self._grid), nodes, self._round.question(left)):
                intake.receive(arrival)
        else:
            for node in nodes:
                intake.lose(node, self._round.deadline_s)

    def _fold_again(self, intake: Intake) -> None:
        """A first round's sums hold an update that does not count: have the others made again, to the same bits."""
        sites = [site for site in self._round.sites if site.name in intake.admitted]
        intake.collector = self._collect()
        counted: set[int] = set()
        for part in self._grid.combine(self._combination(sites, intake)) if sites else ():
            if part.state is not None:
                intake.collector.merge(part.state)
            counted |= {verdict.node for verdict in part.verdicts if verdict.refusal is None}
        for site in sites:
            if site.node not in counted:
                intake.lose(site.node, self._round.deadline_s)

    def _combination(self, sites: Sequence[Site], intake: Intake) -> Combination:
        return Combination(
            order=self._round.order,
            params=self._round.params,
            variables=self._round.expected.variables,
            sites=tuple(sites),
            empty=intake.collector.empty(),
            total=sum(site.train_examples for site in self._round.sites),
            bound=intake.bound,
            deadline_s=self._round.deadline_s,
        )
