"""A group of sites, trained one after the other in a worker, whose updates are folded into one state.

The engine asks with a frame and the global values in shared memory; the worker answers with the sums in shared memory
and a frame::

    {"kind": "combine", "run", "round", "sites": [[node, name, declared examples], ...], "total", "bound" | null,
     "globals", "companions", "sent", "expires", "params_at", "sums_at", "sums_bytes"}
    {"kind": "part", "verdicts": [...], "weight", "state_at", "stuck": site | null}

``globals`` is the digest of the global values; times are seconds of the machine's monotonic clock. The worker at place
p, from 0 on, puts its sums at ``sums_at + p * sums_bytes``.

A verdict is the JSON form of ``server.combining.Verdict``. Sites without one were not begun in time, or, where the
worker is stuck, have not ended in time: then it has answered from beside its work, and is of no use any more.

Invariant: what is in the sums and what the verdicts say is the same set of sites, whenever the time runs out.
"""

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from fedretrain.errors import RejectedUpdate
from fedretrain.messages import Declined, PrepareRequest
from fedretrain.travel import travelling, travelling_variables
from server.beside import beside
from server.combining import Counted, Folding, Verdict
from strategies import make
from strategies.base import Arrays, Strategy, Streaming, numpy_dtype
from strategies.weighted_mean import MeanState

from .memory import Memory, Shape, shapes_of
from .ready import Ready


class Group:
    """One group.

    Args:
        header: Of the frame that asks for it.
        memory: Where the sums go.
        request: What the run's sites were asked to prepare.
        received: The global values of the variables that travel.
        ready: Gives a site by name.
        tell: Sends a frame.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - each is another part of a group
        self,
        header: Mapping[str, Any],
        memory: Memory,
        request: PrepareRequest,
        received: Arrays,
        ready: Ready,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:
        aggregation = aggregation_of(request)
        variables = travelling_variables(request.contract, request.strategy)
        bound = math.inf if header["bound"] is None else header["bound"]
        empty = aggregation, aggregation.init(tuple(variables.values()), header["total"])
        rule = beside(request.contract, request.strategy, request.train, received)
        self._folding = Folding(header["run"], variables, empty, bound, rule)
        self._header = header
        self._memory = memory
        self._request = request
        self._received = received
        self._ready = ready
        self._tell = tell
        self._verdicts: list[Verdict] = []
        self._lock = threading.Lock()
        self._told = False
        self._at = ""  # the site in work

    def run(self) -> None:
        """Train and fold until all are done or the time is over, and answer."""
        timer = threading.Timer(max(0.0, self._header["expires"] - time.monotonic()), self._finish, [True])
        timer.daemon = True
        timer.start()
        for node, name, declared in self._header["sites"]:
            if time.monotonic() >= self._header["expires"]:
                break
            self._at = name
            with self._ready.site(name) as site:
                header = self._header
                answer = site.update(self._request, header["round"], self._received, header["companions"])
            with self._lock:
                if self._told:
                    return
                self._judge(node, name, declared, answer)
        timer.cancel()
        self._finish(stuck=False)

    def _judge(self, node: int, name: str, declared: int, answer: Any) -> None:
        seconds = time.monotonic() - self._header["sent"]
        if isinstance(answer, Declined):
            refusal = self._folding.refuse(name, answer)
            self._verdicts.append(Verdict(node, seconds, refusal=refusal, declined=answer.code))
        else:
            metrics = {**answer.metrics, "num-examples": answer.examples}
            self._verdicts.append(Verdict(node, seconds, *self._folding.take(declared, answer.update, metrics)))

    def _finish(self, stuck: bool) -> None:
        """Answer, unless that was done."""
        with self._lock:
            if self._told:
                return
            self._told = True
            state = self._folding.state
            at = self._header["sums_at"] + self._header["place"] * self._header["sums_bytes"]
            shared = self._memory.arrays(at, shapes_of(state.sums))
            for there, values in zip(shared, state.sums, strict=True):
                there[...] = values
            part = {"kind": "part", "weight": state.weight, "state_at": at, "stuck": self._at if stuck else None}
            self._tell({**part, "verdicts": [verdict_to_json(verdict) for verdict in self._verdicts]})


def aggregation_of(request: PrepareRequest) -> Streaming:
    """How the run's updates are folded; raises TypeError where they are not."""
    strategy = make(request.strategy, request.train.seed)
    if not isinstance(strategy, Strategy) or not isinstance(strategy.aggregation, Streaming):
        raise TypeError(f"strategy {request.strategy.name} does not fold updates")
    return strategy.aggregation


def changing_shapes(request: PrepareRequest) -> list[Shape]:
    """Shapes and dtypes of what travels."""
    specs = travelling(request.contract, request.strategy)
    return [(spec.shape, numpy_dtype(spec.dtype)) for spec in specs]


def filled(state: MeanState, sums: Arrays, weight: int) -> MeanState:
    """An empty state, with what a worker folded."""
    return dataclasses.replace(state, sums=tuple(sums), weight=weight)


def verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    """As a frame carries it."""
    value: dict[str, Any] = {"node": verdict.node, "seconds": verdict.seconds, "declined": verdict.declined}
    if verdict.update is not None:
        value["update"] = dict(vars(verdict.update))
    if verdict.refusal is not None:
        value["refusal"] = [verdict.refusal.code, verdict.refusal.detail]
    return value


def verdict_from_json(value: Mapping[str, Any]) -> Verdict:
    """The value that ``verdict_to_json`` gave."""
    update = value.get("update")
    refusal = value.get("refusal")
    return Verdict(
        value["node"],
        value["seconds"],
        Counted(**{**update, "flags": tuple(update["flags"])}) if update else None,
        RejectedUpdate(*refusal) if refusal else None,
        value["declined"],
    )
