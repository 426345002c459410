"""Files that are either the old one or the new one, whole, whenever the process or the machine dies.

The new content goes into a temporary file in the same folder, is flushed to the disk, takes the name with one
``os.replace``, and the folder is flushed too. What was under the name stays until then and after any failure.
A temporary file left by a crash starts with a dot and ends with ``.tmp``; ``remove_leftovers`` clears them away.
"""

import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .digest import canonical_json
from .errors import MachineError

_NOT_OURS = "run the command as the user whom the folder belongs to, or choose another folder"
_ADVICE = {
    errno.ENOSPC: "free some space there and start again",
    errno.EDQUOT: "free some of the disk quota and start again",
    errno.EFBIG: "raise the file size limit and start again",
    errno.EROFS: "the disk is read-only; choose another folder or mount it writable",
    errno.EACCES: _NOT_OURS,
    errno.EPERM: _NOT_OURS,
}


@contextmanager
def disk_errors(path: Path, doing: str = "write") -> Iterator[None]:
    """Turn an ``OSError`` inside the block into a ``MachineError`` that names ``path`` and what to do."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "what was complete before is as it was; mend the cause and start again")
        raise MachineError(f"{path}: cannot {doing}: {error.strerror or error}; {advice}") from error


@contextmanager
def replacing(path: Path, *, mode: int = 0o644, before_replace: Callable[[], None] | None = None) -> Iterator[Path]:
    """A temporary path beside ``path``; what the block writes there takes the name ``path`` when the block succeeds.

    Args:
        path: The file that appears or is replaced; its folder exists.
        mode: Permission bits of the new file.
        before_replace: Called when the new content is on the disk and the name still holds the old one.

    Raises:
        MachineError: The disk is full or the folder is not writable; ``path`` is as it was.
    """
    with disk_errors(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(mode)
            _flush(temporary)
            if before_replace is not None:
                before_replace()
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        flush_folder(path.parent)


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Make ``data`` the content of ``path``, all or nothing; raises MachineError as ``replacing``."""
    with replacing(path, mode=mode) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """``write_bytes`` of the value's canonical JSON and a line end; raises ValueError on NaN."""
    write_bytes(path, canonical_json(value) + b"\n", mode=mode)


def read_json(path: Path, format_: str, advice: str) -> dict[str, Any] | None:
    """The JSON object of one format that ``write_json`` left in a file of ours; None where there is no file.

    Args:
        path: The file.
        format_: What stands under its key "format".
        advice: What to do about another file there.

    Raises:
        MachineError: It cannot be read, or is another file.
    """
    with disk_errors(path, "read"):
        try:
            value = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, dict) or value.get("format") != format_:
        raise MachineError(f"{path}: expected a {format_} file, got another; {advice}")
    return value


def make_folder(path: Path, *, mode: int = 0o755) -> None:
    """Create ``path`` and what is missing above it; raises MachineError where that is not possible."""
    with disk_errors(path, "create the folder"):
        path.mkdir(mode=mode, parents=True, exist_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files in ``folder`` that a crash left behind; only for a folder nobody else writes to."""
    with disk_errors(folder, "clear away temporary files"):
        for file in folder.glob(".*.tmp"):
            file.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Put the folder's entries on the disk, so that a rename survives a power cut; raises OSError."""
    _flush(folder)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path``, which is made if need be; waits; ends with the process."""
    with disk_errors(path, "lock"):
        path.touch(mode=0o600)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
