"""The lock by which one `server up` at a time works on a federation, and what it says about itself while it does.

Invariants: the lock is free when its process has ended, however it ended; what stands in the file counts only while the
lock is held. Format ``fedretrain.up/1`` of ``state/up.lock``::

    {"format", "pid", "since", "problems": [text], "processes": {name: text}}
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from fedretrain import atomic
from fedretrain.digest import canonical_json
from fedretrain.errors import MachineError

FORMAT: Final = "fedretrain.up/1"
PATIENCE_S: Final = 1.0  # commands that only look hold the lock for an instant


class Held:
    """The lock, held by this process.

    Args:
        handle: File descriptor of the locked file.
        path: Its path.
    """

    def __init__(self, handle: int, path: Path) -> None:
        self._handle = handle
        self._path = path

    def tell(self, **fields: Any) -> None:
        """Replace what stands in the file; raises MachineError on a full disk."""
        data = canonical_json({"format": FORMAT, "pid": os.getpid(), **fields}) + b"\n"
        with atomic.disk_errors(self._path):
            os.pwrite(self._handle, data, 0)
            os.ftruncate(self._handle, len(data))


@contextmanager
def hold(path: Path) -> Iterator[Held]:
    """Hold the lock within the block.

    Raises:
        MachineError: Another process holds it, which is named; or the file cannot be written.
    """
    with atomic.disk_errors(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        end = time.monotonic() + PATIENCE_S
        while not _locked(handle):
            if time.monotonic() > end:
                raise MachineError(
                    f"{path.parent.parent}: 'fedretrain server up' is running already{_who(handle)}; "
                    "use that one, or end it first"
                )
            time.sleep(0.05)
        yield Held(handle, path)
    finally:
        os.close(handle)


def running(path: Path) -> dict[str, Any] | None:
    """What the running `server up` says about itself; None where none runs."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        if _locked(handle, fcntl.LOCK_SH):
            return None
        return _content(handle)
    finally:
        os.close(handle)


def _locked(handle: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _content(handle: int) -> dict[str, Any]:
    try:
        value = json.loads(os.pread(handle, 65536, 0))
    except ValueError:  # just being written
        return {}
    return value if isinstance(value, dict) else {}


def _who(handle: int) -> str:
    pid = _content(handle).get("pid")
    return f" (process {pid})" if pid else ""
