"""Writes a round's checkpoint beside the next round's training.

Invariants: a round is announced when its checkpoint is in place, and never before; what could not be written is raised
at the next ``wait``; one checkpoint is under way at most.
"""

from concurrent.futures import Future, ThreadPoolExecutor

from fedretrain.crashpoint import crash_point

from .checkpoint import Checkpoint, Checkpoints
from .events import EventLog


class Saver:
    """Saves to ``checkpoints``, and tells ``emit`` what is in place."""

    def __init__(self, checkpoints: Checkpoints, emit: EventLog) -> None:
        self._checkpoints = checkpoints
        self._emit = emit
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._deferred: Checkpoint | None = None

    def begin(self, checkpoint: Checkpoint, *, defer: bool = False) -> None:
        """Start to save; nobody may change the checkpoint's arrays before ``wait`` has returned.

        Args:
            checkpoint: The state after a round.
            defer: Leave it to ``wait``, which is called soon: until then this process has something better to do.
        """
        self.wait()
        if defer:
            self._deferred = checkpoint
        else:
            self._pending = self._thread.submit(self._save, checkpoint)

    def wait(self) -> None:
        """Return when the last checkpoint is in place and its round announced; raises MachineError where it is not."""
        (pending, deferred), self._pending, self._deferred = (self._pending, self._deferred), None, None
        if deferred is not None:
            self._save(deferred)
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Let what is under way come to its end; raises MachineError as ``wait``."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _save(self, checkpoint: Checkpoint) -> None:
        self._checkpoints.save(checkpoint)
        crash_point("checkpoint-committed")
        self._emit("checkpoint", round=checkpoint.round)
        self._emit("round-finished", **checkpoint.history[-1])
