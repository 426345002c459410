"""Which requests a site has seen, so that none counts twice, whatever is killed in between.

Invariants: a request is on the disk as begun before anything is done for it, and as answered before its answer leaves;
an answered one is refused ever after. One that was begun and never answered, because the trainer died, may come again
``ATTEMPTS`` times in all: the same request has the same answer.

The file has a line per event, ``b`` (begun) or ``a`` (answered), the request's expiry in Unix seconds, and its nonce::

    b 1767225600 0123456789abcdef0123456789abcdef

Lines of requests that expired more than a day ago are dropped at the start; by then the time in them refuses them.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path

from fedretrain import atomic
from fedretrain.errors import DeclinedRequest

ATTEMPTS = 3
KEEP_S = 86_400  # longer than any correction of the site's clock
MOST_LINES = 20_000  # then the file is written afresh


class Nonces:
    """The file ``path`` and what is in it; for one process at a time."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._seen: dict[str, tuple[int, int]] = {}  # expiry, and how often begun; ATTEMPTS where it was answered
        self._lines = 0
        self._load()

    def begin(self, nonce: str, expires: int) -> None:
        """Note that this request is being worked on.

        Raises:
            DeclinedRequest: ``request-replayed``.
            MachineError: The disk does not take it.
        """
        begun = self._seen.get(nonce, (expires, 0))[1]
        if begun >= ATTEMPTS:
            raise DeclinedRequest("request-replayed", "nonce", "a request that this site has not answered yet")
        self._append("b", nonce, expires)
        self._seen[nonce] = (expires, begun + 1)

    def answered(self, nonce: str, expires: int) -> None:
        """Note that this request has its answer; raises MachineError."""
        self._append("a", nonce, expires)
        self._seen[nonce] = (expires, ATTEMPTS)

    def _append(self, event: str, nonce: str, expires: int) -> None:
        if self._lines >= MOST_LINES:
            self._compact()
        with atomic.disk_errors(self._path):
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                # The line end comes first: what a power cut left of a line before does not spoil this one.
                line = f"\n{event} {expires} {nonce}".encode()
                if os.write(handle, line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(handle)
            finally:
                os.close(handle)
        self._lines += 1

    def _load(self) -> None:
        atomic.make_folder(self._path.parent)
        with atomic.disk_errors(self._path, "read"):
            text = self._path.read_text(encoding="ascii", errors="replace") if self._path.exists() else ""
        for line in text.splitlines():
            match line.split(" "):
                case [("a" | "b") as event, expires, nonce] if expires.isdigit():
                    begun = self._seen.get(nonce, (0, 0))[1]
                    self._seen[nonce] = (int(expires), ATTEMPTS if event == "a" else begun + 1)
        self._compact()

    def _compact(self) -> None:
        oldest = self._clock() - KEEP_S
        self._seen = {nonce: seen for nonce, seen in self._seen.items() if seen[0] >= oldest}
        lines = [
            f"{'a' if begun >= ATTEMPTS else 'b'} {expires} {nonce}"
            for nonce, (expires, begun) in self._seen.items()
            for _ in range(1 if begun >= ATTEMPTS else begun)
        ]
        atomic.write_bytes(self._path, "\n".join(lines).encode(), mode=0o600)
        self._lines = len(lines)
