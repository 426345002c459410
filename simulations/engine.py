"""The local engine: a Flower ``Grid`` whose nodes are simulated sites on this machine, served by worker processes.

Invariants:

- The round loop cannot tell this grid from Flower's: messages in, message ids out, replies pulled by id, once each.
- Who sent a reply, and to what, is what this process noted when it pushed the message, never what the reply says.
- Every reply crosses a process boundary as bytes and is decoded when it is pulled: a malformed one raises there, and
  costs that reply alone.
- Nothing a worker does stops the run: a reply that cannot come is an error reply.

Use::

    with WorkerPool(workers) as pool:               # workers import TensorFlow while the job is being prepared
        with LocalGrid(Sites(simulated_sites(job), folder.store), pool=pool) as grid:
            execute(job, grid, folder)

Beyond Flower's face it can have groups of sites asked, trained and folded by a worker at once (``server.combining``,
``simulations.together``); the round loop uses that where it may, to the same bits.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedretrain.errors import ConfigurationError, RejectedUpdate
from server.combining import Combination, Part
from server.exchange import Arrival, Question, exchange

from .devices import default_workers
from .frames import decode, encode
from .pool import ENDED, Answer, Request, WorkerPool
from .together import ask, combine
from .worker import Sites

SERVER_NODE = 0
_POLL_S = 0.05


@dataclass
class _Exchange:
    """A message that was pushed, without its content, and the answer once it is there."""

    message: Message
    expires: float
    answer: Answer | None = None


class LocalGrid(Grid):
    """A grid over simulated sites; nodes are numbered from 1 in the order of the sites' names.

    Args:
        sites: The sites' data, store and poison.
        workers: How many worker processes to start where no ``pool`` is given; default: cores, at most one per site.
        pool: Workers that run already; they stay when the grid is closed.
        logs: Folder for the logs of workers started here; default: standard error.
        on_event: Takes ``warning`` events, one at a time, in whatever thread pushes or pulls.
    """

    def __init__(
        self,
        sites: Sites,
        *,
        workers: int | None = None,
        pool: WorkerPool | None = None,
        logs: Path | None = None,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._sites = sites
        self._names = dict(enumerate(sorted(sites.sources), start=1))
        self._on_event = on_event
        self._deadly: set[str] = set()  # sites whose worker died of a message to them alone
        self._exchanges: dict[str, _Exchange] = {}
        self._arrived = threading.Condition()
        self._telling = threading.Lock()
        self._owns_pool = pool is None
        self._pool = pool or WorkerPool(workers or default_workers(len(sites.sources)), logs=logs)
        self.set_run(Run.create_empty(run_id=1))

    def __enter__(self) -> "LocalGrid":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget what is under way and end the workers that were started here."""
        with self._arrived:
            self._exchanges.clear()
        if self._owns_pool:
            self._pool.close()
        self._report()

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to, for this process."""
        self._run = run
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run.run_id, SERVER_NODE, run.run_id

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to one node; ``ttl`` in seconds."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """1 to n, in the order of the sites' names."""
        return list(self._names)

    @property
    def combines(self) -> bool:
        """Whether updates can be folded in the workers: a poisoned reply is spoilt on its way out of one."""
        return not self._sites.poison

    def combine(self, combination: Combination) -> Iterator[Part]:
        """See ``server.combining.Combining``; raises MachineError."""
        parts = combine(self._pool, self._sites, combination, self._deadly)
        return self._reported(parts)

    def ask_together(self, nodes: Sequence[int], question: Question) -> Iterator[Arrival]:
        """See ``server.combining.Combining``; raises MachineError."""
        again = []
        start = time.monotonic()
        for node, arrival in ask(self._pool, self._sites, {node: self._names[node] for node in nodes}, question):
            if arrival is None:
                again.append(node)
            else:
                yield arrival
        self._report()
        left = question.deadline_s - (time.monotonic() - start)
        yield from exchange(self, again, dataclasses.replace(question, deadline_s=left))

    def _reported(self, parts: Iterator[Part]) -> Iterator[Part]:
        for part in parts:
            self._report()
            yield part

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages for the workers; their ids, in order. Content that several share is encoded once.

        Raises:
            ConfigurationError: A message is for a node that does not exist, or larger than protobuf's 2 GiB.
            MachineError: No worker process is left.
        """
        self._report()
        self._forget_expired()
        encoded: tuple[RecordDict | None, bytes] = (None, b"")
        ids = []
        for message in messages:
            if encoded[0] is not message.content:
                encoded = (message.content, _encoded(message.content))
            ids.append(self._push(message, encoded[1]))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that are there; each is handed out once.

        Raises:
            RejectedUpdate: ``malformed``, where a reply cannot be decoded; it is dropped. Replies before it are
                returned first, and the error is raised by the next call.
            MachineError: No worker process is left, so this reply cannot come, nor can any other.
        """
        self._report()
        replies: list[Message] = []
        for message_id in message_ids:
            with self._arrived:
                exchange = self._exchanges.get(message_id)
                if exchange is None or exchange.answer is None:
                    continue
                del self._exchanges[message_id]
            try:
                replies.append(self._reply(exchange, exchange.answer))
            except RejectedUpdate:
                if not replies:
                    raise
                with self._arrived:
                    self._exchanges[message_id] = exchange
                break
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push, and wait up to ``timeout`` seconds for the replies; a malformed one is left out."""
        waiting = set(self.push_messages(messages))
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting:
            for message_id in list(waiting):
                try:
                    pulled = self.pull_messages([message_id])
                except RejectedUpdate as error:
                    self._tell(str(error))
                    waiting.discard(message_id)
                    continue
                replies += pulled
                waiting -= {m.metadata.reply_to_message_id for m in pulled}
            if end is not None and time.monotonic() >= end:
                break
            with self._arrived:
                self._arrived.wait(_POLL_S)
        return replies

    def _push(self, message: Message, body: bytes) -> str:
        site = self._names.get(message.metadata.dst_node_id)
        if site is None:
            raise ConfigurationError(
                f"node {message.metadata.dst_node_id}: expected one of 1 to {len(self._names)}, one per site"
            )
        message_id = uuid4().hex
        _numbered(message, message_id)
        stub = Message(
            RecordDict(),
            message.metadata.dst_node_id,
            message.metadata.message_type,
            ttl=message.metadata.ttl,
            group_id=message.metadata.group_id,
        )
        exchange = _Exchange(_numbered(stub, message_id), time.monotonic() + message.metadata.ttl)
        with self._arrived:
            self._exchanges[message_id] = exchange

        def done(answer: Answer) -> None:
            if answer.error == ENDED:
                self._deadly.add(site)
            with self._arrived:
                if message_id in self._exchanges:
                    exchange.answer = answer
                    self._arrived.notify_all()

        header = {"kind": "request", "site": site, "message_type": message.metadata.message_type}
        self._pool.submit(Request(self._sites, header, body, f"site {site}", exchange.expires, done))
        return message_id

    def _reply(self, exchange: _Exchange, answer: Answer) -> Message:
        if answer.body is None:
            if not answer.raised:
                self._pool.require_workers()
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION if answer.raised else ErrorCode.NODE_UNAVAILABLE
            error = Error(code, answer.error)
            return _numbered(Message(error, reply_to=exchange.message), uuid4().hex)
        try:
            content = decode(answer.body)
        except Exception as error:
            site = self._names[exchange.message.metadata.dst_node_id]
            raise RejectedUpdate(
                "malformed", f"site {site}: the reply cannot be decoded ({type(error).__name__})"
            ) from error
        return _numbered(Message(content, reply_to=exchange.message), uuid4().hex)

    def _forget_expired(self) -> None:
        """Drop late replies that nobody is going to pull: memory holds the replies of one round."""
        now = time.monotonic()
        with self._arrived:
            self._exchanges = {k: e for k, e in self._exchanges.items() if e.expires > now}

    def _report(self) -> None:
        for text in self._pool.warnings():
            self._tell(text)

    def _tell(self, text: str) -> None:
        if self._on_event is not None:
            with self._telling:
                self._on_event({"event": "warning", "text": text})


def _encoded(content: RecordDict) -> bytes:
    try:
        return encode(content)
    except ValueError as error:
        raise ConfigurationError(f"a message to the sites cannot be encoded: {error}") from None


def _numbered(message: Message, message_id: str) -> Message:
    message.metadata.__dict__["_message_id"] = message_id  # as Flower's own grids do
    return message
