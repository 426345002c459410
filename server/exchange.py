"""One question to many nodes, and each answer as it comes.

Invariants:

- Every reply is pulled on its own, so whatever is wrong with one costs that one alone.
- Who sent a reply is the node the request went to; a reply that names another node in its metadata is refused, and so
  is one that the messenger cannot open (``server.messenger``).
- A pull that hangs holds up no other: it goes on in its own thread, and the next reply is pulled beside it.
- At the deadline everything still missing is ``late``, and the exchange is over.

Use::

    for arrival in exchange(grid, nodes, Question(content, "train", group="3", deadline_s=600)):
        ...  # arrival.node, arrival.outcome: RecordDict, or RejectedUpdate
"""

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedretrain.errors import ConfigurationError, MachineError, RejectedUpdate

from .messenger import PLAIN, Letter, Messenger

POLL_S = 0.05  # how often a node's reply is asked for
POLL_SHARE = 0.01  # of the time it was waited for already: who waits long is not in a hurry, and asking costs work
POLL_MOST_S = 0.25
PATIENCE_S = 1.0  # how long a pull may take before other replies are pulled beside it
_NO_MEMBER = "not asked: it is no member of the federation any more"
_UNDELIVERED = {ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE}

Pulled = list[Message] | Exception


@dataclass(frozen=True)
class Question:
    """What every node is asked.

    ``message_type`` is Flower's with our action (``fedretrain.messages``), ``group`` Flower's group id (the round), and
    ``deadline_s`` counts in seconds from sending; messages are valid for as long. ``round`` is 0 outside rounds.
    """

    content: RecordDict
    message_type: str
    group: str
    deadline_s: float
    round: int = 0


@dataclass(frozen=True)
class Arrival:
    """What came of the request to one node, ``seconds`` after it was sent."""

    node: int
    outcome: RecordDict | RejectedUpdate
    seconds: float


def exchange(grid: Grid, nodes: Sequence[int], question: Question, messenger: Messenger = PLAIN) -> Iterator[Arrival]:
    """Put the question to every node at once; then yield one arrival per node, and one more per surplus reply.

    Raises:
        MachineError: The messages cannot be sent, or, while arrivals are awaited, the grid itself broke down.
    """
    start = time.monotonic()
    letters = messenger.seal(nodes, question)
    return _arrivals(grid, nodes, question, messenger, letters, _push(grid, letters, question), start)


def _arrivals(  # noqa: PLR0913, PLR0917 - what an exchange knows
    grid: Grid,
    nodes: Sequence[int],
    question: Question,
    messenger: Messenger,
    letters: dict[int, Letter],
    asked: dict[str, int],
    start: float,
) -> Iterator[Arrival]:
    for node in sorted(set(nodes) - set(asked.values())):
        undelivered = ("late", "the request could not be delivered") if node in letters else ("site", _NO_MEMBER)
        yield Arrival(node, RejectedUpdate(*undelivered), 0.0)
    for message_id, pulled in _pull_each(grid, list(asked), start + question.deadline_s):
        node = asked.pop(message_id)
        letter = letters.pop(node)
        for outcome in _outcomes(pulled, node):
            yield Arrival(node, _opened(messenger, letter, outcome), time.monotonic() - start)
    for node in asked.values():
        late = RejectedUpdate("late", f"expected a complete reply within {question.deadline_s:g} s, got none")
        yield Arrival(node, late, time.monotonic() - start)


def _push(grid: Grid, letters: Mapping[int, Letter], question: Question) -> dict[str, int]:
    """Send the messages; node by message id, without those the transport did not take."""
    q = question
    messages = [Message(letters[n].content, n, q.message_type, ttl=q.deadline_s, group_id=q.group) for n in letters]
    if not messages:
        return {}
    with transport_errors("send requests to the sites"):
        ids = list(grid.push_messages(messages))
        if not ids:  # together they may exceed a limit of the transport
            ids = [message_id for m in messages for message_id in grid.push_messages([m])]
    if len(ids) != len(messages):
        raise MachineError(f"cannot send requests to the sites: {len(messages)} given, {len(ids)} taken; resume")
    return {i: m.metadata.dst_node_id for i, m in zip(ids, messages, strict=True) if i}


def _pull_each(grid: Grid, message_ids: list[str], deadline: float) -> Iterator[tuple[str, Pulled]]:
    """Ask for each id in turn until it is answered or ``deadline`` (monotonic) has passed."""
    start = time.monotonic()
    answers: queue.SimpleQueue[tuple[str, Pulled]] = queue.SimpleQueue()
    due = dict.fromkeys(message_ids, 0.0)  # when to ask again, the earliest first
    under_way: dict[str, float] = {}  # since when
    while due and (now := time.monotonic()) < deadline:
        ready = next((i for i, at in due.items() if i not in under_way and at <= now), None)
        if ready is not None and all(now - since > PATIENCE_S for since in under_way.values()):
            under_way[ready] = now
            threading.Thread(target=_pull, args=(grid, ready, answers), daemon=True).start()
        try:
            message_id, pulled = answers.get(timeout=min(POLL_S, deadline - now))
        except queue.Empty:
            continue
        del under_way[message_id], due[message_id]
        if isinstance(pulled, MachineError):
            raise pulled
        if not pulled or _is_transport(pulled):
            now = time.monotonic()
            due[message_id] = now + min(max(POLL_S, POLL_SHARE * (now - start)), POLL_MOST_S)
        else:
            yield message_id, pulled


def _pull(grid: Grid, message_id: str, answers: "queue.SimpleQueue[tuple[str, Pulled]]") -> None:
    try:
        answers.put((message_id, list(grid.pull_messages([message_id]))))
    except Exception as error:  # noqa: BLE001 - whatever decoding a peer's bytes raises costs this reply alone
        answers.put((message_id, error.with_traceback(None)))  # its frames hold what was decoded so far


@contextmanager
def transport_errors(doing: str) -> Iterator[None]:
    """Turn what the network raises inside the block into a ``MachineError`` that says what was being done."""
    try:
        yield
    except Exception as error:
        if not _is_transport(error):
            raise
        raise MachineError(f"cannot {doing}: {error}; check the network and resume") from error


def _is_transport(pulled: Pulled) -> bool:
    """Whether it failed on the way and not in a reply, so that trying again makes sense."""
    return isinstance(pulled, OSError) or type(pulled).__module__.partition(".")[0] in {"httpx", "httpcore"}


def _outcomes(pulled: Pulled, node: int) -> Iterator[RecordDict | RejectedUpdate]:
    if isinstance(pulled, RejectedUpdate):
        yield pulled
    elif isinstance(pulled, Exception):
        yield RejectedUpdate("malformed", f"the reply cannot be decoded ({type(pulled).__name__})")
    else:
        yield _outcome(pulled[0], node)
        for _ in pulled[1:]:
            yield RejectedUpdate("stale", "a second reply to the same request")


def _opened(messenger: Messenger, letter: Letter, outcome: RecordDict | RejectedUpdate) -> RecordDict | RejectedUpdate:
    """The content of one reply, as the messenger finds it."""
    if isinstance(outcome, RejectedUpdate):
        return outcome
    try:
        return messenger.open(letter, outcome)
    except RejectedUpdate as refusal:
        return refusal.with_traceback(None)  # its frames hold the reply
    except ConfigurationError:  # the roster is damaged: not this site's fault
        raise
    except Exception as error:  # noqa: BLE001 - as in _pull
        return RejectedUpdate("malformed", f"the reply cannot be decoded ({type(error).__name__})")


def _outcome(message: Message, node: int) -> RecordDict | RejectedUpdate:
    """The content of one reply; an error's text stays unread, because it may hold a site's data."""
    try:
        if message.has_error():
            kind = "late" if message.error.code in _UNDELIVERED else "declined"
            return RejectedUpdate(kind, f"Flower error {int(message.error.code)} instead of a reply")
        sender = message.metadata.src_node_id
        content: object = message.content
        if not isinstance(content, RecordDict):  # Flower does not look when it puts a message together
            return RejectedUpdate("malformed", f"expected records, got a {type(content).__name__}")
    except Exception as error:  # noqa: BLE001 - as in _pull
        return RejectedUpdate("malformed", f"the reply cannot be decoded ({type(error).__name__})")
    if sender != node:
        return RejectedUpdate("site", f"expected a reply labelled as node {node}, got another node's id")
    return content
