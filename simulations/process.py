"""One worker process, as its place in the pool sees it (``simulations.pool``)."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from io import BufferedReader, RawIOBase
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from fedretrain.errors import MachineError

from .devices import seen_by
from .frames import Frame, read_frame, write_frame
from .memory import Memory
from .worker import Sites

if TYPE_CHECKING:
    from .pool import Request

_SECONDS_TO_END = 3.0
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")


class Process:
    """One worker process, seen from its place's thread. Only ``end``, ``alive`` and ``pid`` may be used from others."""

    def __init__(self, handler: str, memory: Memory, place: int, log: Path | None) -> None:
        command = [sys.executable, "-P", "-m", "simulations.worker", str(os.getpid()), handler, str(memory.handle)]
        with contextlib.ExitStack() as files:
            errors: IO[bytes] | None = None
            if log is not None:
                log.parent.mkdir(parents=True, exist_ok=True)
                errors = files.enter_context(log.open("ab"))
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**environment(), **seen_by(place)},
                pass_fds=[memory.handle],
                process_group=0,  # a terminal's Ctrl-C reaches the parent alone
            )
        if self._popen.stdin is None or self._popen.stdout is None:
            raise MachineError("a worker process was started without pipes")
        self._requests, self._answers = self._popen.stdin, self._popen.stdout
        unbuffered = cast(BufferedReader, self._popen.stdout).raw  # ``answers_by`` cannot see what a buffer holds
        self._unread = cast(RawIOBase, unbuffered)
        self._sites: Sites | None = None
        self.pid = self._popen.pid
        self.log_hint = f"; see {log}" if log else ""

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._popen.poll() is None

    @property
    def fate(self) -> str:
        """How it ended: by which signal or with which exit code."""
        code = self._popen.returncode
        if code is None:
            return "still running"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def ready(self) -> bool:
        """Wait until it takes requests; False where it ends before."""
        return self.receive() is not None

    def send(self, request: "Request", place: int) -> bool:
        """Hand a request over; False where the worker is gone and has not seen it whole."""
        try:
            if self._sites is not request.sites:
                write_frame(self._requests, request.sites.header())
                self._sites = request.sites
            write_frame(self._requests, {**request.header, "place": place}, request.body)
        except OSError:
            return False
        return True

    def answers_by(self, expires: float) -> bool:
        """Wait until it says something or ends; False where neither happens before ``expires``."""
        return bool(wait([self._answers.fileno()], max(0.0, expires - time.monotonic())))

    def receive(self) -> Frame | None:
        """The next frame; None where the worker ends first."""
        return read_frame(self._unread)

    def end(self) -> None:
        """Make sure that it is gone. What it writes at a site is written atomically, so any moment will do."""
        self._popen.terminate()
        try:
            self._popen.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()

    def discard(self) -> None:
        """End it and close its pipes."""
        self.end()
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):  # what was not sent is not going to be
                pipe.close()


def environment() -> dict[str, str]:
    """Imports as in this process, and one thread, so that bits do not depend on the number of cores."""
    paths = os.pathsep.join(str(Path(p or ".").absolute()) for p in sys.path)
    return {**os.environ, **_ONE_THREAD, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": paths}
