"""Writes a round's checkpoint beside the next round's training.

Invariants: a round is announced when its checkpoint is in place, and never before; what could not be written is raised
at the next ``wait``; one checkpoint is under way at most.
"""

from concurrent.futures import Future, ThreadPoolExecutor

from fedretrain.crashpoint import crash_point

from .checkpoint import Checkpoint, Checkpoints
from .events import EventLog


class Saver:
    """Saves to ``checkpoints`` in a thread of its own, which tells ``emit`` what is in place."""

    def __init__(self, checkpoints: Checkpoints, emit: EventLog) -> None:
        self._checkpoints = checkpoints
        self._emit = emit
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def begin(self, checkpoint: Checkpoint) -> None:
        """Start to save; nobody may change the checkpoint's arrays before ``wait`` has returned."""
        self.wait()
        self._pending = self._thread.submit(self._save, checkpoint)

    def wait(self) -> None:
        """Return when the last checkpoint is in place and its round announced; raises MachineError where it is not."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Let what is under way come to its end."""
        self._thread.shutdown()

    def _save(self, checkpoint: Checkpoint) -> None:
        self._checkpoints.save(checkpoint)
        crash_point("checkpoint-committed")
        self._emit("checkpoint", round=checkpoint.round)
        self._emit("round-finished", **checkpoint.history[-1])
