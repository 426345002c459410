"""Runs a command and ends it, with everything that came of it, when its own standard input ends.

Invariants:

- The end of the process that started the supervisor, however it ends, is the end of that input.
- Nobody hides: a process whose parent dies becomes the supervisor's own child, whatever session it is in (Linux).
  Elsewhere the command's session is all that is found.
- The supervisor ends when all of them are gone: first they are asked, and killed three seconds later, and so is what
  they start meanwhile.

Use: ``python -m simulations.supervisor COMMAND ARGUMENT...``
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

_PATIENCE_S = {signal.SIGTERM: 3.0, signal.SIGKILL: 10.0}
_POLL_S = 0.1
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def below(root: int) -> list[int]:
    """Process ids of the living descendants of a process; empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone meanwhile
            state, parent = file.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(file.parent.name))
    found: list[int] = []
    todo = [root]
    while todo:
        todo += (mine := children.get(todo.pop(), []))
        found += mine
    return found


def supervise(command: list[str]) -> int:
    """Run the command until it or the standard input ends, then end what is left; the command's exit code."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_watch, args=(child,), daemon=True).start()
    try:
        return child.wait()
    finally:
        _end(child)


def _watch(child: "subprocess.Popen[bytes]") -> None:
    """End everything when nobody holds the other end of the standard input any more."""
    while os.read(0, 1):
        pass
    _end(child)


def _end(child: "subprocess.Popen[bytes]") -> None:
    for sent, patience in _PATIENCE_S.items():
        deadline = time.monotonic() + patience
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, sent)
        sent_to: set[int] = set()
        while (left := set(below(os.getpid()))) and time.monotonic() < deadline:
            for pid in left - sent_to:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sent)
            sent_to |= left
            time.sleep(_POLL_S)


def _stop(*_: object) -> None:
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(supervise(sys.argv[1:]))
