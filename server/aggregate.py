"""From the updates of one round to the next global model, whichever kind of algorithm the job names.

Three kinds, one face (``Method``):

- ``Streaming`` aggregation: each update is folded into integer sums and forgotten.
- ``CoordinateWise`` aggregation: updates wait on disk, and are reduced a piece at a time; a ``Selecting`` one first
  reads all of them once to choose some.
- A strategy written for Flower: updates wait on disk, and it sees them all.

Invariants: the result does not depend on the order in which updates arrived; ``average`` variables and auxiliaries
never go through a server optimizer; parameters that are not finite are never returned.

Auxiliaries (``fedretrain.travel``) are sums over all sites of a run, of which a round has seen some: what these changed
counts with the share of the examples that they hold.

Use::

    method = make_method(job, contract)
    memory = method.begin(params)                          # or method.restore(what a checkpoint holds)
    with Spool(...) as spool:
        collector = method.collect(spool, total_weight, at_once=True)
        collector.add("a", arrays, examples)               # on arrival
        memory, params = method.advance(collector, admitted, before=checkpoint, share=1.0)
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedretrain.contract import Contract, VariableSpec, keys
from fedretrain.errors import RejectedUpdate, RunFailed
from fedretrain.job import Job
from fedretrain.travel import travelling
from strategies import make
from strategies.base import Arrays, CoordinateWise, Selecting, State, Strategy, Streaming, is_finite, numpy_dtype

from .checkpoint import Checkpoint
from .online import Bounded
from .spool import Spool

if TYPE_CHECKING:
    from strategies.flower import FlowerStrategy

Memory = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Contribution:
    """What is known of an update besides its arrays, which the collector has."""

    site: str
    node: int
    examples: int
    claims: Mapping[str, float]


class Collector:
    """Keeps the updates of one round in the form its method needs.

    Args:
        streaming: The aggregation that folds, None where all updates have to wait on disk.
        specs: The variables of every update.
        spool: Where updates wait.
        total_weight: Examples that all sites asked have declared.
        at_once: Whether an update that is added is final; if not, ``take`` says later which are.
    """

    def __init__(
        self,
        streaming: Streaming | None,
        specs: Sequence[VariableSpec],
        spool: Spool,
        total_weight: int,
        *,
        at_once: bool,
    ) -> None:
        self.spool = spool
        self._streaming = streaming
        self._at_once = at_once
        self._specs = tuple(specs)
        self._total_weight = total_weight
        self._state = streaming.init(specs, total_weight) if streaming else None

    def add(self, site: str, update: Arrays, examples: int, norm: float = math.inf) -> None:
        """An update has arrived, of this L2 norm where it is known.

        Raises:
            RejectedUpdate: It cannot be folded.
            MachineError: The disk is full.
        """
        if self._streaming and self._at_once:
            self._state = self._streaming.fold(self._state, update, examples, norm)
        else:
            self.spool.put(site, update)

    def take(self, site: str, examples: int) -> None:
        """An update that was added and was not final counts; raises as ``add``."""
        if self._streaming:
            self._state = self._streaming.fold(self._state, self.spool.arrays(site), examples)

    @property
    def folds(self) -> bool:
        """Whether every update is folded as it is added, so that others may fold into ``empty`` states."""
        return self._streaming is not None and self._at_once

    def empty(self) -> tuple[Streaming, State]:
        """The aggregation, and a state without updates for someone else to fold into.

        Raises:
            RunFailed: Updates are not folded on arrival, see ``folds``.
        """
        if self._streaming is None or not self._at_once:
            raise RunFailed("aggregation: updates are not folded on arrival")
        return self._streaming, self._streaming.init(self._specs, self._total_weight)

    def merge(self, state: State) -> None:
        """Add what was folded into a state from ``empty``; raises RunFailed where it is not of this round."""
        if self._streaming is None:
            raise RunFailed("aggregation: updates are not folded on arrival")
        self._state = self._streaming.merge(self._state, state)

    def mean(self) -> Arrays:
        """What was folded, once: the sums are let go of. Raises RunFailed where that is nothing."""
        if self._streaming is None or self._state is None:
            raise RunFailed("aggregation: nothing was folded")
        state, self._state = self._state, None
        return self._streaming.finish(state)


class Method(Protocol):
    """One algorithm at the server, with what it remembers as named arrays."""

    def begin(self, params: Arrays) -> Memory:
        """What it remembers before the first round."""
        ...

    def restore(self, memory: Memory) -> None:
        """Go on from what a checkpoint holds; raises RunFailed where that is another algorithm's."""
        ...

    def choose(self, before: Checkpoint, nodes: list[int], grid: Grid) -> list[int] | None:
        """The nodes it wants in a round, None where it leaves that to the job."""
        ...

    def collect(self, spool: Spool, total_weight: int, *, at_once: bool) -> Collector:
        """Where a round's updates go."""
        ...

    def advance(
        self, collector: Collector, admitted: Sequence[Contribution], before: Checkpoint, share: float
    ) -> tuple[Memory, Arrays]:
        """What it remembers, and the global values of all that travels after a round.

        Args:
            collector: Holds the updates.
            admitted: Those that count, sorted by site.
            before: The state before the round.
            share: Examples of the admitted sites over those of all sites of the run, in (0, 1].

        Raises:
            RunFailed: The result is not finite, or the algorithm cannot work with these updates.
        """
        ...


def make_method(job: Job, contract: Contract) -> Method:
    """The method a job names; raises ConfigurationError for an unknown name or setting."""
    strategy, specs = make(job.strategy, job.train.seed), travelling(contract, job.strategy)
    method = BuiltIn(strategy, specs) if isinstance(strategy, Strategy) else Foreign(strategy, contract)
    if job.online is None:
        return method
    return Bounded(method, [i for i, spec in enumerate(specs) if spec.rule == "train"], job.online.step_norm)


class BuiltIn:
    """A ``strategies.base.Strategy``, for arrays with these specs."""

    def __init__(self, strategy: Strategy, specs: Sequence[VariableSpec]) -> None:
        self._strategy = strategy
        self._specs = tuple(specs)
        self._trained = [i for i, spec in enumerate(self._specs) if spec.rule == "train"]

    def begin(self, params: Arrays) -> Memory:
        """The server optimizer's state."""
        return _named(self._strategy.server.init([params[i] for i in self._trained]))

    def restore(self, memory: Memory) -> None:
        """Nothing: the state is passed in and returned."""

    def choose(self, before: Checkpoint, nodes: list[int], grid: Grid) -> None:
        """Left to the job."""

    def collect(self, spool: Spool, total_weight: int, *, at_once: bool) -> Collector:
        """Sums where the aggregation folds, else the spool."""
        aggregation = self._strategy.aggregation
        streaming = aggregation if isinstance(aggregation, Streaming) else None
        return Collector(streaming, self._specs, spool, total_weight, at_once=at_once)

    def advance(
        self, collector: Collector, admitted: Sequence[Contribution], before: Checkpoint, share: float
    ) -> tuple[Memory, Arrays]:
        """The aggregated update, through the server optimizer where a variable is trained, else added."""
        update = self._aggregate(collector, admitted)
        for spec, change in zip(self._specs, update, strict=True):
            if spec.rule == "auxiliary":
                np.multiply(change, share, out=change)
        state, trained = self._strategy.server.apply(
            [before.server[name] for name in sorted(before.server)],
            [before.params[i] for i in self._trained],
            [update[i] for i in self._trained],
        )
        stepped = dict(zip(self._trained, trained, strict=True))
        new = [
            stepped[i] if i in stepped else _added(p, u, i)
            for i, (p, u) in enumerate(zip(before.params, update, strict=True))
        ]
        return _named(state), new

    def _aggregate(self, collector: Collector, admitted: Sequence[Contribution]) -> Arrays:
        aggregation = self._strategy.aggregation
        if isinstance(aggregation, Streaming):
            return collector.mean()
        sites, weights = [c.site for c in admitted], np.array([c.examples for c in admitted])
        try:
            if isinstance(aggregation, Selecting):
                kept = aggregation.select(self._pieces(aggregation, collector.spool, sites))
                sites, weights = [sites[i] for i in kept], weights[kept]
            return [self._reduce(aggregation, weights, collector.spool, sites, i) for i in range(len(self._specs))]
        except RejectedUpdate as error:
            raise RunFailed(f"aggregation: {error}") from error

    def _pieces(self, aggregation: CoordinateWise, spool: Spool, sites: Sequence[str]) -> Iterator[NDArray[Any]]:
        """All variables, one after the other."""
        for position in range(len(self._specs)):
            yield from spool.stacks(sites, position, aggregation.memory_bytes)

    def _reduce(
        self, aggregation: CoordinateWise, weights: NDArray[Any], spool: Spool, sites: Sequence[str], position: int
    ) -> NDArray[Any]:
        """One variable, a piece at a time."""
        spec = self._specs[position]
        reduced = np.empty(spec.shape, numpy_dtype(spec.dtype))
        flat, start = reduced.reshape(-1), 0
        for piece in spool.stacks(sites, position, aggregation.memory_bytes):
            end = start + piece.shape[1]
            flat[start:end] = aggregation.reduce(piece, weights)
            start = end
        return reduced


class Foreign:
    """A strategy written for Flower; what it remembers lives in it."""

    def __init__(self, strategy: "FlowerStrategy", contract: Contract) -> None:
        self._strategy = strategy
        self._specs = contract.changing_specs
        self._keys = keys(contract.changing)

    def begin(self, params: Arrays) -> Memory:  # noqa: ARG002 - the protocol's signature
        """What it remembers when it was made."""
        return self._strategy.state()

    def restore(self, memory: Memory) -> None:
        """Put back what it remembered."""
        self._strategy.restore(memory)

    def choose(self, before: Checkpoint, nodes: list[int], grid: Grid) -> list[int]:
        """By the strategy's own ``configure_train``."""
        return self._strategy.sample(before.round + 1, self._by_key(before.params), nodes, grid)

    def collect(self, spool: Spool, total_weight: int, *, at_once: bool) -> Collector:
        """The spool."""
        return Collector(None, self._specs, spool, total_weight, at_once=at_once)

    def advance(
        self,
        collector: Collector,
        admitted: Sequence[Contribution],
        before: Checkpoint,
        share: float,  # noqa: ARG002
    ) -> tuple[Memory, Arrays]:
        """By the strategy's own ``aggregate_train``."""
        from strategies.flower import FlowerReply

        replies = [
            FlowerReply(c.site, c.node, self._by_key(collector.spool.arrays(c.site)), c.examples, c.claims)
            for c in admitted
        ]
        new = self._strategy.aggregate(before.round + 1, self._by_key(before.params), replies)
        return self._strategy.state(), [new[key] for key in self._keys]

    def _by_key(self, arrays: Arrays) -> dict[str, NDArray[Any]]:
        return dict(zip(self._keys, arrays, strict=True))


def _added(values: NDArray[Any], update: NDArray[Any], position: int) -> NDArray[Any]:
    """An ``average`` variable after the round."""
    with np.errstate(over="ignore"):
        new = np.asarray(values + update)  # the sum of scalars is no array
    if not is_finite(new):
        raise RunFailed(f"aggregation: travelling variable {position} would hold NaN or infinity")
    return new


def _named(state: Arrays) -> Memory:
    return {f"{i:05d}": array for i, array in enumerate(state)}
