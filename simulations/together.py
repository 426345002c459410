"""Groups of sites for the workers: asked together, trained and folded together, so that a round costs few frames.

Invariants:

- Every node that is asked comes out once: in a verdict or an arrival, or as one to be asked by message.
- How sites are grouped changes no bit of what comes out (``server.combining``).
- A site goes to the same worker in every round as far as the load allows, so that its data are in memory once.
"""

import math
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from fedretrain.errors import RejectedUpdate
from fedretrain.messages import FORMAT
from server.combining import Combination, Part
from server.exchange import Arrival, Question
from server.prepare import Site
from strategies.base import State
from strategies.weighted_mean import MeanState

from .frames import encode
from .group import filled, verdict_from_json
from .memory import extent, shapes_of
from .pool import Answer, Request, WorkerPool
from .worker import Sites

LARGEST_GROUP = 32  # sites; what a worker's death costs, and how long a round's last worker may be alone
GRACE_S = 5.0  # for a worker to say, at the deadline, what was done by then


def combine(pool: WorkerPool, sites: Sites, combination: Combination, by_message: set[str]) -> Iterator[Part]:
    """Start a round at once; its parts as they are ready (``server.combining.Combining``).

    Args:
        pool: The workers.
        sites: What they must know.
        combination: The round.
        by_message: Names of sites that are not to be put in a group; one that holds its group up is added.

    Raises:
        MachineError: No worker process is left, or there is no memory to share with them.
    """
    alone = tuple(site.node for site in combination.sites if site.name in by_message)
    _, empty = combination.empty
    if not isinstance(empty, MeanState):  # no other state is known to have a form that a worker can send
        return iter([Part((), open=tuple(site.node for site in combination.sites))])
    shapes = shapes_of(combination.params)
    sums = extent(shapes_of(empty.sums))
    at = extent(shapes)
    pool.memory.reserve(at + pool.places * sums)
    for there, values in zip(pool.memory.arrays(0, shapes), combination.params, strict=True):
        there[...] = values
    groups = grouped([site for site in combination.sites if site.name not in by_message], pool.places)
    parts: queue.SimpleQueue[Part] = queue.SimpleQueue()
    header, expires = _header(combination, at, sums)
    pool.submit(
        *(
            Request(
                sites,
                {**header, "sites": [[site.node, site.name, site.train_examples] for site in group]},
                b"",
                _about(group),
                expires + GRACE_S,
                _taking(pool, empty, group, parts, by_message),
                place=place,
            )
            for place, group in groups
        )
    )
    return _parts(parts, groups, alone, expires + GRACE_S)


def ask(
    pool: WorkerPool, sites: Sites, names: Mapping[int, str], question: Question
) -> Iterator[tuple[int, Arrival | None]]:
    """Put a question whose answers have no arrays; node by node an arrival, or None where it is to be asked again.

    Args:
        pool: The workers.
        sites: What they must know.
        names: The sites to be asked, by node.
        question: The question.

    Raises:
        MachineError: No worker process is left.
    """
    start = time.monotonic()
    nodes = {name: node for node, name in names.items()}
    body = encode(question.content)
    told: queue.SimpleQueue[tuple[str, str] | Answer] = queue.SimpleQueue()
    chunks = _chunks(sorted(nodes), pool.places)
    for number, chunk in enumerate(chunks):
        header = {"kind": "ask", "sites": chunk, "message_type": question.message_type}
        pool.submit(
            Request(
                sites,
                header,
                body,
                f"{len(chunk)} sites from {chunk[0]} on",
                start + question.deadline_s,
                told.put,
                lambda answer: told.put((answer["site"], answer["text"])),
                place=number,
            )
        )
    ended = 0
    while ended < len(chunks):
        try:
            answer = told.get(timeout=max(0.0, start + question.deadline_s + GRACE_S - time.monotonic()))
        except queue.Empty:
            break
        if isinstance(answer, Answer):
            ended += 1
            continue
        node = nodes.pop(answer[0])
        content = RecordDict({"body": ConfigRecord({"format": FORMAT, "json": answer[1]})})
        yield node, Arrival(node, content, time.monotonic() - start)
    for node in sorted(nodes.values()):
        late = RejectedUpdate("late", f"expected a complete reply within {question.deadline_s:g} s, got none")
        seconds = time.monotonic() - start
        yield node, None if seconds < question.deadline_s else Arrival(node, late, seconds)


def grouped(sites: Sequence[Site], places: int) -> list[tuple[int, list[Site]]]:
    """Sites in groups by the place that should train them, so that all places have about as many examples.

    The largest sites are dealt first; each goes to its own place where that is not fuller than its share, else to the
    emptiest. A place's groups are of one size, and at most ``LARGEST_GROUP``.
    """
    share = sum(site.train_examples for site in sites) / places
    loads = [0] * places
    dealt: list[list[Site]] = [[] for _ in range(places)]
    for site in sorted(sites, key=lambda site: (-site.train_examples, site.node)):
        own, emptiest = site.node % places, loads.index(min(loads))
        place = own if loads[own] + site.train_examples <= share else emptiest
        loads[place] += site.train_examples
        dealt[place].append(site)
    return [
        (place, group[start : start + size])
        for place, group in enumerate(dealt)
        if group
        for size in [math.ceil(len(group) / math.ceil(len(group) / LARGEST_GROUP))]
        for start in range(0, len(group), size)
    ]


def _header(combination: Combination, sums_at: int, sums: int) -> tuple[dict[str, Any], float]:
    """What all frames of a round have in common, and when answers are late."""
    sent = time.monotonic()
    expires = sent + combination.deadline_s
    order = combination.order
    header = {
        "kind": "combine",
        "run": order.run,
        "round": order.round,
        "globals": order.globals_digest,
        "companions": order.companions,
        "total": combination.total,
        "bound": None if math.isinf(combination.bound) else combination.bound,
        "sent": sent,
        "expires": expires,
        "params_at": 0,
        "sums_at": sums_at,
        "sums_bytes": sums,
    }
    return header, expires


def _taking(
    pool: WorkerPool, empty: State, group: Sequence[Site], parts: "queue.SimpleQueue[Part]", by_message: set[str]
) -> Callable[[Answer], None]:
    """What takes a group's answer, in the thread of the worker's place: the worker waits until its sums are copied."""

    def take(answer: Answer) -> None:
        nodes = tuple(site.node for site in group)
        if answer.body is None:
            parts.put(Part((), open=nodes))
            return
        try:
            verdicts = tuple(verdict_from_json(value) for value in answer.header["verdicts"])
            shared = pool.memory.arrays(answer.header["state_at"], shapes_of(empty.sums))
            state = filled(empty, [sums.copy() for sums in shared], answer.header["weight"])
        except Exception:  # noqa: BLE001 - whatever became of the group, each of its sites can be asked for itself
            parts.put(Part((), open=nodes))
            return
        if answer.header["stuck"]:
            by_message.add(answer.header["stuck"])
        done = {verdict.node for verdict in verdicts}
        left = tuple(node for node in nodes if node not in done)
        parts.put(Part(verdicts, state if state.weight else None, left))

    return take


def _parts(
    parts: "queue.SimpleQueue[Part]", groups: Sequence[tuple[int, list[Site]]], alone: tuple[int, ...], end: float
) -> Iterator[Part]:
    missing = {site.node for _, group in groups for site in group}
    for _ in groups:
        try:
            part = parts.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:  # a worker that has to be started again comes too late to say that it did nothing
            break
        missing -= {*part.open, *(verdict.node for verdict in part.verdicts)}
        yield part
    if missing or alone:
        yield Part((), open=(*sorted(missing), *alone))


def _chunks(names: Sequence[str], places: int) -> list[list[str]]:
    """Neighbours together, several chunks for a place, so that one slow site holds up few."""
    size = max(1, min(LARGEST_GROUP * 4, math.ceil(len(names) / (4 * places))))
    return [list(names[start : start + size]) for start in range(0, len(names), size)]


def _about(group: Sequence[Site]) -> str:
    return f"site {group[0].name}" + (f" and {len(group) - 1} more" if len(group) > 1 else "")
