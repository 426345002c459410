"""Keeps what TensorFlow's and Flower's libraries write to standard error out of a person's sight, in a log file.

Such lines come from native code as well, past Python's logging, so it is the file descriptor that is exchanged. Who
still wants to speak to the person opens ``console_stream`` before.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from fedretrain import atomic

_STDERR = 2


@contextmanager
def console_stream() -> Iterator[TextIO]:
    """Standard error as it is on entering, whatever is diverted later."""
    sys.stderr.flush()
    with os.fdopen(os.dup(_STDERR), "w", encoding=sys.stderr.encoding, errors="replace") as stream:
        yield stream


@contextmanager
def diverted_stderr(log: Path) -> Iterator[None]:
    """Append what is written to standard error to ``log``; raises MachineError where that cannot be opened."""
    atomic.make_folder(log.parent)
    with atomic.disk_errors(log):
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stderr.flush()
    keep = os.dup(_STDERR)
    os.dup2(target, _STDERR)
    os.close(target)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(keep, _STDERR)
        os.close(keep)
