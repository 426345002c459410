"""A ``Grid`` on which no reply can harm another, or the server.

Invariants:

- A reply is looked at alone. What is wrong with it is ``RejectedUpdate`` for that reply and nothing else. Only whether
  there are replies is asked for all of them at once: the answer is ids, which the SuperLink has checked.
- Its size is known, and within the limit, before anything of it is joined: bytes that travel, objects, and the bytes
  that arrays become when a piece is named more than once. A ConfigRecord that is nothing but bytes, as the parts of a
  parcel are (``fedretrain.parcel``), counts as arrays do.
- Nothing is waited for: a reply that is not complete is none yet, and is asked for again, ever more rarely, without
  keeping what came of it. Whether it comes in time is for the caller's deadline to decide.
- What is asked of the SuperLink while sites train does not grow with the time they take: the pause between two
  questions is a small part of the time a reply is already out.

A reply is a tree of objects, named by the SHA-256 of their content, which the SuperLink checks::

    Message -> RecordDict -> ConfigRecord | MetricRecord
                          -> ArrayRecord -> Array -> ArrayChunk

A site uploads the tree from the bottom, so that the message's own object comes last: it is asked for first.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedretrain.errors import RejectedUpdate

from .flowerside import Announced, Objects, blob_size, head, inflate, is_http_grid

DEFAULT_LIMIT = 256 * 2**20  # bytes of one reply's arrays, until the run says better
METADATA_LIMIT = 8 * 2**20  # bytes of everything else in a reply
OBJECTS_LIMIT = 20_000  # objects of one reply
DEPTH = 5
PAUSE_S = 0.05  # between two questions for what is not there yet
TRIES = 4  # how often an object is asked for before the whole reply waits
LONGEST_PAUSE_S = 1.0
PART = 0.02  # of the time a reply is out, by which the next question may be later
AT_ONCE = 2  # objects fetched side by side; more is no faster, the SuperLink is one process

_CHILDREN = {
    "Message": {"RecordDict"},
    "RecordDict": {"ArrayRecord", "ConfigRecord", "MetricRecord"},
    "ArrayRecord": {"Array"},
    "Array": {"ArrayChunk"},
    "ConfigRecord": set(),
    "MetricRecord": set(),
    "ArrayChunk": set(),
}


def guarded(grid: Grid) -> Grid:
    """The grid guarded where it talks to a SuperLink; any other grid as it is."""
    return GuardedGrid(grid) if is_http_grid(grid) else grid


class GuardedGrid(Grid):
    """Flower's ``HttpGrid`` with its own, careful, way to pull replies."""

    def __init__(self, grid: Any) -> None:
        self._grid = grid
        self._objects = Objects(grid)
        self._limit = DEFAULT_LIMIT
        self._out: dict[str, _Out] = {}
        self._asking = threading.Lock()
        self._look = _Out()  # for replies that are not announced
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="pull")

    def limit(self, size: int) -> None:
        """Take no reply whose arrays are, or become, more than ``size`` bytes."""
        self._limit = size

    def node_keys(self) -> dict[int, bytes]:
        """Public key (PEM, ``server.flowerside.key_bytes``) of every node that is online, by its id."""
        return {node.node_id: node.public_key for node in self._grid.get_nodes()}

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are complete; pull one at a time, because a bad one raises.

        Raises:
            RejectedUpdate: ``malformed`` where a reply is too large or no reply, ``late`` where it was announced and
                its site gave up sending it.
        """
        return [message for i in message_ids for message in self._pull(i)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send requests, as Flower does."""
        ids = list(self._grid.push_messages(messages))
        self._out.update((i, _Out()) for i in ids if i)
        self._look = _Out()
        return ids

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Not offered: it would keep every reply, and let one spoil the others. Use ``server.exchange``."""
        raise NotImplementedError("use server.exchange")

    def set_run(self, run: Any) -> None:
        """As Flower's."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """As Flower's."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """As Flower's."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are online."""
        return list(self._grid.get_node_ids())

    def _pull(self, message_id: str) -> list[Message]:
        out = self._out.setdefault(message_id, _Out())
        if out.reply is None:
            self._find_out()
        if out.reply is None or time.monotonic() < out.due:
            return []
        try:
            found = out.reply.error() or self._complete(out)
        except _NotYet as missing:
            out.wait(missing.object_id)
            return []
        except RejectedUpdate:
            self._forget(message_id)
            raise
        self._forget(message_id)
        return [found]

    def _find_out(self) -> None:
        """Ask which of all replies that are out are announced; whoever asks meanwhile need not."""
        if time.monotonic() < self._look.due or not self._asking.acquire(blocking=False):
            return
        try:
            awaited = {i: out for i, out in self._out.copy().items() if out.reply is None}
            for reply in self._objects.announced(list(awaited)):
                out = awaited.get(reply.reply_to)
                if out is None or out.reply is not None:  # a site may send the server what it did not ask for
                    self._objects.done(reply.root)
                else:
                    out.reply = reply
            self._look.wait("")
        finally:
            self._asking.release()

    def _complete(self, out: "_Out") -> Message:
        if out.missing and self._fetch(out.missing, tries=1) is None:
            raise _NotYet(out.missing)
        return self._read(out.root)

    def _read(self, root: str) -> Message:
        """Fetch a reply level by level, weigh it, and only then put it together."""
        tree = _Tree(self._limit)
        level: Sequence[str] = [root]
        for _ in range(DEPTH):
            for object_id, content in self._fetch_all(level, tries=1 if level == [root] else TRIES):
                tree.add(object_id, content)
            level = tree.wanted()
        try:
            tree.weigh()
            return inflate(root, tree.contents)
        except RejectedUpdate:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a peer's bytes make Flower raise costs this reply alone
            raise _malformed(f"the reply cannot be decoded ({type(error).__name__})") from None

    def _fetch_all(self, object_ids: Sequence[str], tries: int) -> Iterator[tuple[str, bytes]]:
        """A few at a time, so that no more than these are in memory when one turns out too large."""
        for start in range(0, len(object_ids), AT_ONCE):
            batch = object_ids[start : start + AT_ONCE]
            for object_id, content in zip(batch, self._pool.map(lambda i: self._fetch(i, tries), batch), strict=True):
                if content is None:
                    raise _NotYet(object_id)
                yield object_id, content

    def _fetch(self, object_id: str, tries: int) -> bytes | None:
        try:
            for attempt in range(tries):
                if attempt:
                    time.sleep(PAUSE_S)
                content = self._objects.fetch(object_id)
                if content is not None:
                    return content
        except KeyError:
            raise RejectedUpdate("late", "the reply was announced, and not sent completely") from None
        return None

    def _forget(self, message_id: str) -> None:
        out = self._out.pop(message_id)
        if out.root:
            self._objects.done(out.root)


class _Out:
    """A request whose reply is not complete; times are seconds of ``time.monotonic``."""

    def __init__(self) -> None:
        self.reply: Announced | None = None
        self.missing = ""  # the object that was not there last time
        self.due = 0.0
        self._since = time.monotonic()
        self._restarts = 0

    @property
    def root(self) -> str:
        """The reply's topmost object, once it is announced."""
        return self.reply.root if self.reply is not None else ""

    def wait(self, missing: str) -> None:
        """Ask again later; later still where most of a reply had to be fetched for nothing."""
        now = time.monotonic()
        if missing not in {self.missing, self.root}:
            self._restarts += 1
        self.missing = missing
        pause = PAUSE_S + PART * (now - self._since) + PAUSE_S * (2 ** min(self._restarts, 8) - 1)
        self.due = now + min(pause, LONGEST_PAUSE_S if self._restarts < 5 else 10 * LONGEST_PAUSE_S)


class _NotYet(Exception):
    """An object of a reply has not arrived."""

    def __init__(self, object_id: str) -> None:
        super().__init__(object_id)
        self.object_id = object_id


class _Tree:
    """What was fetched of one reply, weighed as it comes."""

    def __init__(self, limit: int) -> None:
        self.contents: dict[str, bytes] = {}
        self._limit = limit
        self._chunks: dict[str, int] = {}  # bytes of each piece of an array, and of each part of a parcel
        self._travelled = 0  # bytes of all of them
        self._records: list[str] = []  # records, as often as the reply names them
        self._arrays: dict[str, list[str]] = {}  # their pieces, in order, repetitions included
        self._names: list[str] = []  # arrays, as often as records name them
        self._metadata = 0
        self._wanted: dict[str, set[str]] = {}  # object: kinds its parent allows

    def add(self, object_id: str, content: bytes) -> None:
        """Take in one object; raises RejectedUpdate where it has no place in a reply, or is one too many."""
        try:
            self._add(object_id, content)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise _malformed(f"an object of the reply cannot be decoded ({type(error).__name__})") from None

    def _add(self, object_id: str, content: bytes) -> None:
        kind, children, body = head(content)
        allowed = self._wanted.pop(object_id, {"Message"})
        if kind not in allowed:
            raise _malformed(f"expected {' or '.join(sorted(allowed)) or 'nothing'} at a place of the reply's tree")
        if len(self.contents) + len(children) > OBJECTS_LIMIT:
            raise _malformed(f"expected at most {OBJECTS_LIMIT} objects")
        self.contents[object_id] = content
        size = len(body) if kind == "ArrayChunk" else blob_size(body) if kind == "ConfigRecord" else None
        if size is not None:
            self._chunks[object_id] = size
            self._travelled += size
            self._weigh_bytes(self._travelled)
            return
        self._metadata += len(content)
        if self._metadata > METADATA_LIMIT:
            raise _malformed(f"expected at most {METADATA_LIMIT} bytes around the arrays")
        if kind == "Array":
            self._arrays[object_id] = [children[i] for i in _indices(json.loads(body))]
        elif kind == "ArrayRecord":
            self._names += map(str, json.loads(body).values())
        elif kind == "RecordDict":
            self._records += map(str, json.loads(body).values())
        self._wanted.update((child, _CHILDREN[kind]) for child in children if child not in self.contents)

    def wanted(self) -> list[str]:
        """Objects that were named and are not here."""
        return list(self._wanted)

    def weigh(self) -> None:
        """Check what the arrays will be when they are joined; raises RejectedUpdate."""
        if self._wanted:
            raise _malformed("the reply's objects are nested too deep")
        total = sum(self._chunks.get(name, 0) for name in self._records)
        self._weigh_bytes(total)
        for name, times in Counter(self._names).items():
            pieces = Counter(self._arrays[name])
            total += times * sum(self._chunks[piece] * often for piece, often in pieces.items())
            self._weigh_bytes(total)

    def _weigh_bytes(self, size: int) -> None:
        if size > self._limit:
            raise _malformed(f"expected arrays of at most {self._limit} bytes, got {size} or more")


def _indices(metadata: Any) -> list[int]:
    """Which of its children an array is made of, in order."""
    found = metadata["arraychunk_ids"]
    if not isinstance(found, list) or not all(type(i) is int and i >= 0 for i in found):
        raise TypeError("expected whole numbers")
    return found


def _malformed(detail: str) -> RejectedUpdate:
    return RejectedUpdate("malformed", detail)
