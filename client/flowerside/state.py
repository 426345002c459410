"""What a SuperNode knows: Flower's state, which can be waited for and hands a dead executor's task to the next one.

Invariants:

- One executor at a time: the one that asked for a task last. What an earlier one had in hand is offered again.
- A request for a task is held until there is one, so that nobody polls.
- What large messages are made of lies in files, not in memory; they are gone with the message, or at the next start.

Locks are taken in this order: ``_turn``, Flower's task store, Flower's message store, ``_changed``.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.common.constant import Status
from flwr.supercore.constant import TaskType
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from fedretrain import atomic
from fedretrain.processes import Litter

ATTEMPTS = 3  # executors that may take a task before it is given up: one that ends them all is not offered for ever
IN_MEMORY = 256 * 1024  # bytes; larger objects lie in files
OBJECT_WAIT_S = 5.0  # how long the Runtime API holds a request for an object that is not there yet


class Objects(InMemoryObjectStore):
    """Flower's store of what messages are made of, which says when something came.

    Args:
        came: Called when an object came.
        folder: Of this store alone, emptied here; objects of more than ``IN_MEMORY`` bytes lie there. None: none does.
    """

    def __init__(self, came: Callable[[], None], folder: Path | None = None) -> None:
        super().__init__()
        self._came, self._folder, self._litter = came, folder, Litter()
        if folder is not None:
            atomic.make_folder(folder, mode=0o700)
            for left in folder.iterdir():
                left.unlink()

    def put(self, object_id: str, object_content: bytes) -> None:
        """As Flower's."""
        super().put(object_id, object_content)
        with self.lock_store:
            entry = self.store.get(object_id)
            if self._folder is not None and entry is not None and len(entry.content) > IN_MEMORY:
                (self._folder / object_id).write_bytes(entry.content)
                entry.content = b""
        self._litter.left(len(object_content))
        self._came()

    def get(self, object_id: str) -> bytes | None:
        """As Flower's."""
        with self.lock_store:
            entry = self.store.get(object_id)
            if self._folder is not None and entry is not None and entry.is_available and not entry.content:
                content = (self._folder / object_id).read_bytes()
                self._litter.left(len(content))
                return content
            return super().get(object_id)

    def delete(self, object_id: str) -> None:
        """As Flower's, which calls this for the objects below as well."""
        with self.lock_store:
            super().delete(object_id)
            if self._folder is not None and object_id not in self.store:
                (self._folder / object_id).unlink(missing_ok=True)


class State(InMemoryNodeState):
    """See the module docstring. ``active_at``: when a message or a reply last came (``time.monotonic``).

    Args:
        folder: For objects of large messages, of this state alone; None keeps them in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.active_at = self._worked_at = time.monotonic()
        self._changed, self._version, self._seen = threading.Condition(), 0, 0
        self._turn, self._asker = threading.Lock(), 0
        self._taken_back: Counter[int] = Counter()
        super().__init__(Objects(self._notify, folder))

    def store_message(self, message: Message) -> str | None:
        """As Flower's."""
        self.active_at = time.monotonic()
        stored = super().store_message(message)
        self._notify()
        return stored

    def create_task(self, *arguments: Any, **named: Any) -> int | None:
        """As Flower's."""
        task = super().create_task(*arguments, **named)
        self._notify()
        return task

    def get_object(self, run_id: int, object_id: str) -> bytes | None:
        """As Flower's, but of an object that is announced and on its way the bytes, if they come soon."""
        deadline = time.monotonic() + OBJECT_WAIT_S
        while True:
            version = self._version
            content = super().get_object(run_id, object_id)
            left = deadline - time.monotonic()
            if content != b"" or left <= 0:
                return content
            self._wait_past(version, left)

    def wait_for_change(self, seconds: float) -> None:
        """Wait until something changes, at most so long; a change since the last wait ends it at once."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != self._seen, seconds)
            self._seen = self._version

    def orphaned_for(self) -> float:
        """Seconds since there was a task that an executor has or can take."""
        with self.lock_task_store:
            if any(task.status.status != Status.FINISHED for task in self.task_store.values()):
                self._worked_at = time.monotonic()
        return time.monotonic() - self._worked_at

    def forget_work(self) -> None:
        """Drop every task that is not finished, with its message: there is no reply that anybody waits for."""
        with self.lock_task_store, self.lock_msg_store:
            for task in self.task_store.values():
                if task.status.status != Status.FINISHED:
                    self._finish(task)
            dropped = [i for i, e in self.msg_store.items() if not e.message.metadata.reply_to_message_id]
            for message_id in dropped:
                del self.msg_store[message_id]
        for message_id in dropped:
            self.object_store.delete(message_id)
        self._notify()

    def offer(self, claim: Callable[[], Any], wait_s: float) -> Any:
        """What ``claim`` gives as soon as it has a token; after ``wait_s`` seconds, what it gives then.

        Returns:
            None where another executor asked meanwhile.
        """
        with self._turn:
            self._asker += 1
            me = self._asker
            self._take_back()
        self._notify()
        deadline = time.monotonic() + wait_s
        while True:
            version = self._version
            with self._turn:
                response = claim() if self._asker == me else None
            left = deadline - time.monotonic()
            if response is None or response.token or left <= 0:
                return response
            self._wait_past(version, left)

    def release(self) -> None:
        """Let go whoever waits in ``offer``, empty-handed."""
        with self._turn:
            self._asker += 1
        self._notify()

    def _take_back(self) -> None:
        """Whoever asks for a task has none in hand: what is claimed belongs to an executor that is gone."""
        with self.lock_task_store, self.lock_msg_store:
            for task in self.task_store.values():
                if task.type == TaskType.CLIENT_APP and task.status.status in {Status.STARTING, Status.RUNNING}:
                    self._taken_back[task.task_id] += 1
                    lost = self._taken_back[task.task_id] >= ATTEMPTS
                    self._finish(task, Status.FINISHED if lost else Status.PENDING)
            for entry in self.msg_store.values():
                if not entry.message.metadata.reply_to_message_id:
                    entry.is_retrieved = False

    def _finish(self, task: Any, status: str = Status.FINISHED) -> None:
        """Take a task from whoever has it; under ``lock_task_store``."""
        task.status.status = status
        if (record := self.task_token_store.pop(task.task_id, None)) is not None:
            self.task_token_to_task_id.pop(record.token, None)

    def _wait_past(self, version: int, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._version != version, seconds)

    def _notify(self) -> None:
        with self._changed:
            self._version += 1
            self._changed.notify_all()
