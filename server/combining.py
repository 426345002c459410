"""Rounds whose updates are made and combined in the same place, so that only sums and short records travel.

A grid whose sites are processes of this machine may implement ``Combining``; Flower's grids do not. The round loop
hands it a round's order once and takes back, group of sites by group, what was folded and a verdict for each site.

Invariants:

- Rounds come out as they would by messages, bit for bit: the same rules judge an update (``server.admission``,
  ``server.norms``), integer sums do not depend on how sites are grouped, and bytes are those that would have travelled.
- A verdict stands only together with its group's sums: what a group that broke down has done counts for nothing, and
  its sites are asked again, each by a message of its own.

Used where updates are folded on arrival and travel as they are; see ``server.rounds``.
"""

import functools
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from fedretrain.contract import VariableSpec
from fedretrain.errors import RejectedUpdate
from fedretrain.messages import Declined, TrainRequest
from strategies.base import Arrays, State, Streaming, numpy_dtype

from .admission import admit_declined, counted, finite_norm
from .beside import Beside
from .norms import check_norm

if TYPE_CHECKING:
    from .exchange import Arrival, Question
    from .prepare import Site


@dataclass(frozen=True)
class Combination:
    """One round, for a grid that combines.

    Attributes:
        order: What a train request would say.
        params: The global values of the variables that travel.
        variables: Their specs by key.
        sites: Who is asked.
        empty: The aggregation, and a fresh state of it.
        total: Examples that the sites declared together.
        bound: The largest L2 norm an update may have; infinite where it is not known yet.
        deadline_s: Seconds until answers are late.
    """

    order: TrainRequest
    params: Arrays
    variables: Mapping[str, VariableSpec]
    sites: "tuple[Site, ...]"
    empty: tuple[Streaming, State]
    total: int
    bound: float
    deadline_s: float


@dataclass(frozen=True)
class Counted:
    """An update that is in the sums: the numbers of ``server.admission.Update`` without its arrays."""

    examples: int
    norm: float
    claims: Mapping[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What became of one site's request, ``seconds`` after it was sent.

    Attributes:
        node: The site's.
        seconds: Since the round's requests were sent.
        update: Where it counts. Together with a refusal: where it could not be folded, but its norm is one of those
            that a first round's bound comes from.
        refusal: Why it does not count.
        declined: The code a site declined with, empty where there was an update.
    """

    node: int
    seconds: float
    update: Counted | None = None
    refusal: RejectedUpdate | None = None
    declined: str = ""


@dataclass(frozen=True)
class Part:
    """What a group of sites came to.

    Attributes:
        verdicts: One for each site that answered.
        state: Their updates, folded; None where there are none.
        open: Nodes without an answer, to be asked by message.
    """

    verdicts: tuple[Verdict, ...]
    state: State | None = None
    open: tuple[int, ...] = ()


@runtime_checkable
class Combining(Protocol):
    """A grid that can have many sites asked at once."""

    @property
    def combines(self) -> bool:
        """Whether ``combine`` may be used in this run."""
        ...

    def combine(self, combination: Combination) -> Iterator[Part]:
        """Start a round at once, then yield its parts as they are ready; every site is in exactly one."""
        ...

    def ask_together(self, nodes: Sequence[int], question: "Question") -> "Iterator[Arrival]":
        """As ``server.exchange.exchange``, for answers without arrays, one per node."""
        ...


class Folding:
    """Judges the updates of a group where they are made, and folds those that count.

    Args:
        run: The run's id.
        variables: Specs of an update's arrays by key.
        empty: The aggregation, and a fresh state of it.
        bound: The largest L2 norm an update may have.
        beside: Judges what comes with an update, where something does.
    """

    def __init__(
        self,
        run: str,
        variables: Mapping[str, VariableSpec],
        empty: tuple[Streaming, State],
        bound: float,
        beside: Beside | None = None,
    ) -> None:
        self._run = run
        self._variables = variables
        self._streaming, self._state = empty
        self._bound = bound
        self._beside = beside

    @property
    def state(self) -> State:
        """What was folded so far, ready to be sent elsewhere."""
        self._state = self._streaming.settle(self._state)
        return self._state

    def take(
        self, declared: int, update: Arrays, metrics: Mapping[str, Any]
    ) -> tuple[Counted | None, RejectedUpdate | None]:
        """Judge one update and fold it where it counts; as ``Verdict`` has the two.

        Args:
            declared: Training examples the site declared when it was prepared.
            update: Site minus global, in the order of ``variables``.
            metrics: ``num-examples`` and the site's claims.
        """
        judged = None
        try:
            examples, claims, flags = counted(metrics, declared)
            norm = finite_norm(update, self._variables)
            if self._beside is not None:
                self._beside.check(update, norm)
            check_norm(norm, self._bound)
            if math.isinf(self._bound):
                judged = Counted(examples, norm, claims, flags)
            self._state = self._streaming.fold(self._state, update, examples, norm)
        except RejectedUpdate as refusal:
            return judged, refusal.with_traceback(None)  # its frames hold the update
        return Counted(examples, norm, claims, flags), None

    def refuse(self, site: str, declined: Declined) -> RejectedUpdate:
        """A site's refusal, as it is shown."""
        try:
            return shown_refusal(admit_declined(declined, self._run, site))
        except RejectedUpdate as refusal:
            return refusal.with_traceback(None)


def shown_refusal(declined: Declined) -> RejectedUpdate:
    """What is quarantined where a site declines."""
    where = f" at {declined.where}" if declined.where else ""
    expected = f": expected {declined.expected}" if declined.expected else ""
    return RejectedUpdate("declined", f"{declined.code}{where}{expected}")


def update_bytes(variables: Mapping[str, VariableSpec]) -> int:
    """Bytes of an update's arrays as they travel, npy headers included (``server.admission.wire_bytes``)."""
    return sum(spec.nbytes + _npy_header(spec.dtype, spec.shape) for spec in variables.values())


@functools.cache
def _npy_header(dtype: str, shape: tuple[int, ...]) -> int:
    described = np.lib.format.header_data_from_array_1_0(np.empty(0, numpy_dtype(dtype)))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {**described, "shape": shape})
    return len(header.getvalue())
