"""Worker processes and the threads that feed them: the next free worker takes the next request.

Invariants:

- Every request that is taken gets exactly one answer, unless the pool is closed first.
- The death of a worker costs the one request it held. A new worker takes its place, as long as workers get anything
  done: the third death in a row without one answer in between retires the place.
- A request whose time is over is not begun, and one whose time runs out is ended together with its worker.
- ``close`` leaves no process, nor does the end of this process, however it ends.

Each place has one thread, which starts the worker itself: the kernel ends a worker together with the thread that
started it (``simulations.worker``). The processes begin to import what is slow when the pool is made.
"""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO

from fedretrain.errors import MachineError

from .worker import HANDLER, Frame, Sites, read_frame, write_frame

DEATHS_IN_A_ROW = 3
_SECONDS_TO_END = 3.0
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")


@dataclass(frozen=True)
class Answer:
    """What became of a request: the records as bytes, or one line that says why there are none."""

    body: bytes | None
    error: str = ""
    raised: bool = False  # by the site's own code, which is alive, instead of a process or a deadline


@dataclass(frozen=True)
class Request:
    """One message to a site.

    Attributes:
        sites: The run it belongs to; the same object for all its requests.
        site: Who is asked.
        message_type: Flower's message type.
        body: The records as bytes.
        expires: When it is too late, in seconds of ``time.monotonic``.
        done: Takes the answer; called in a thread of the pool.
    """

    sites: Sites
    site: str
    message_type: str
    body: bytes
    expires: float
    done: Callable[[Answer], None]


class WorkerPool:
    """A fixed number of places for workers; use it as a context manager.

    Args:
        workers: How many, at least 1.
        logs: Folder for the workers' logs, ``worker-<place>.log``; None sends them to this process's standard error.
        handler: What serves the requests, as ``module:callable``.
    """

    def __init__(self, workers: int, *, logs: Path | None = None, handler: str = HANDLER) -> None:
        self._logs, self._handler = logs, handler
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._warnings: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._serving = max(1, workers)
        self._processes: dict[int, _Process] = {}
        self._threads = [
            threading.Thread(target=self._serve, args=(place,), name=f"worker-{place}", daemon=True)
            for place in range(1, self._serving + 1)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that live."""
        with self._lock:
            return [p.pid for p in self._processes.values() if p.alive]

    def warnings(self) -> list[str]:
        """What the operator should know and has not been told yet, one line each."""
        lines = []
        with contextlib.suppress(queue.Empty):
            while True:
                lines.append(self._warnings.get_nowait())
        return lines

    def submit(self, request: Request) -> None:
        """Queue a request; raises MachineError as ``require_workers``."""
        with self._lock:
            self._require_workers()
            self._requests.put(request)

    def require_workers(self) -> None:
        """Raise MachineError where every place has been given up, or the pool is closed."""
        with self._lock:
            self._require_workers()

    def _require_workers(self) -> None:
        if self._closed or not self._serving:
            logs = f"the workers' logs in {self._logs}" if self._logs else "what the workers wrote"
            raise MachineError(f"no worker process is left to stand in for the sites; see {logs}, then resume")

    def close(self) -> None:
        """End all workers, whatever they are doing; requests without an answer stay without."""
        with self._lock:
            self._closed = True
            processes = list(self._processes.values())
        for process in processes:
            process.end()
        for _ in self._threads:
            self._requests.put(None)
        for thread in self._threads:
            thread.join(_SECONDS_TO_END)

    def _serve(self, place: int) -> None:
        """One place's thread: keep a worker alive and pass requests to it."""
        deaths = 0
        while deaths < DEATHS_IN_A_ROW:
            process = self._start(place)
            if process is None:
                break
            cause, answered = self._feed(process) if process.ready() else ("while it started", False)
            process.discard()
            if self._closed or not cause:
                break
            deaths = 1 if answered else deaths + 1
            fate = "a new one takes its place" if deaths < DEATHS_IN_A_ROW else "it is not replaced again"
            self._warnings.put(f"worker {place} ended ({process.fate}) {cause}; {fate}{process.log_hint}")
        self._retire()

    def _feed(self, process: "_Process") -> tuple[str, bool]:
        """Serve until the worker is gone: the circumstances, or "" at the end of the pool; and whether it answered."""
        answered = False
        while (request := self._requests.get()) is not None:
            if time.monotonic() >= request.expires:
                request.done(Answer(None, "not begun in time"))
                continue
            if not process.send(request):
                self._requests.put(request)
                return "while it waited", answered
            if not process.answers_by(request.expires):
                request.done(Answer(None, "no answer in time"))
                return f"by us: no answer for site {request.site} in time", True
            frame = process.receive()
            if frame is None:
                request.done(Answer(None, "its worker process ended"))
                return f"while it served site {request.site}, whose answer is lost", answered
            header, body = frame
            failed = header["kind"] == "failed"
            request.done(Answer(None, f"worker: {header['reason']}", raised=True) if failed else Answer(body))
            answered = True
        return "", answered

    def _start(self, place: int) -> "_Process | None":
        """A new worker for the place; None when the pool is closed or the machine cannot start one."""
        log = self._logs / f"worker-{place}.log" if self._logs else None
        with self._lock:
            if self._closed:
                return None
            try:
                process = _Process(self._handler, log)
            except OSError as error:
                self._warnings.put(f"worker {place} cannot be started: {error}")
                return None
            self._processes[place] = process
            return process

    def _retire(self) -> None:
        """Give the place up; the last one answers what is still queued."""
        with self._lock:
            self._serving -= 1
            if self._serving or self._closed:
                return
        with contextlib.suppress(queue.Empty):
            while True:
                if (request := self._requests.get_nowait()) is not None:
                    request.done(Answer(None, "no worker process is left"))


class _Process:
    """One worker process, seen from its place's thread. Only ``end``, ``alive`` and ``pid`` may be used from others."""

    def __init__(self, handler: str, log: Path | None) -> None:
        command = [sys.executable, "-P", "-m", "simulations.worker", str(os.getpid()), handler]
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
                env=environment(),
                process_group=0,  # a terminal's Ctrl-C reaches the parent alone
            )
        if self._popen.stdin is None or self._popen.stdout is None:
            raise MachineError("a worker process was started without pipes")
        self._requests, self._answers = self._popen.stdin, self._popen.stdout
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

    def send(self, request: Request) -> bool:
        """Hand a request over; False where the worker is gone and has not seen it whole."""
        header = {"kind": "request", "site": request.site, "message_type": request.message_type}
        try:
            if self._sites is not request.sites:
                write_frame(self._requests, request.sites.header())
                self._sites = request.sites
            write_frame(self._requests, header, request.body)
        except OSError:
            return False
        return True

    def answers_by(self, expires: float) -> bool:
        """Wait until it says something or ends; False where neither happens before ``expires``."""
        return bool(wait([self._answers.fileno()], max(0.0, expires - time.monotonic())))

    def receive(self) -> Frame | None:
        """The next frame; None where the worker ends first."""
        return read_frame(self._answers)

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
