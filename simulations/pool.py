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
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedretrain.errors import MachineError

from .memory import Memory
from .process import Process
from .worker import HANDLER, Sites

DEATHS_IN_A_ROW = 3
ENDED = "its worker process ended"
_SECONDS_TO_END = 3.0


@dataclass(frozen=True)
class Answer:
    """What became of a request: the last frame that answers it, or one line that says why there is none."""

    body: bytes | None
    error: str = ""
    raised: bool = False  # by the site's own code, which is alive, instead of a process or a deadline
    header: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """One frame for a worker.

    Attributes:
        sites: The run it belongs to; the same object for all its requests.
        header: The frame's (``simulations.frames``).
        body: The frame's.
        about: Whom it is about, for a person.
        expires: When it is too late, in seconds of ``time.monotonic``.
        done: Takes the answer; called in a thread of the pool, which gives its worker nothing else before it returns.
        some: Takes the headers of the frames before the last one.
        place: Whose worker should take it, from 0 on; another does when it has nothing else to do.
    """

    sites: Sites
    header: Mapping[str, Any]
    body: bytes
    about: str
    expires: float
    done: Callable[[Answer], None]
    some: Callable[[Mapping[str, Any]], None] | None = None
    place: int | None = None


class _Requests:
    """What waits for workers: each takes what is meant for it first, then what is meant for nobody, then any other."""

    def __init__(self, places: int) -> None:
        self._waiting: list[deque[Request]] = [deque() for _ in range(places + 1)]  # the last is for nobody's
        self._changed = threading.Condition()
        self._closed = False

    def put(self, requests: Iterable[Request]) -> None:
        """All at once: nobody takes what is meant for another because it came first."""
        with self._changed:
            for request in requests:
                nobodys = len(self._waiting) - 1
                self._waiting[nobodys if request.place is None else request.place % nobodys].append(request)
            self._changed.notify_all()

    def get(self, place: int) -> Request | None:
        """The next one for a place, waited for; None when nothing will come any more."""
        with self._changed:
            while not self._closed:
                own, nobodys, others = self._waiting[place], self._waiting[-1], self._waiting[:-1]
                for waiting in (own, nobodys, max(others, key=len)):
                    if waiting:
                        return waiting.popleft()
                self._changed.wait()
            return None

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def drain(self) -> list[Request]:
        """Everything that waits."""
        with self._changed:
            left = [request for waiting in self._waiting for request in waiting]
            for waiting in self._waiting:
                waiting.clear()
            return left


class WorkerPool:
    """A fixed number of places for workers; use it as a context manager.

    Args:
        workers: How many, at least 1.
        logs: Folder for the workers' logs, ``worker-<place>.log``; None sends them to this process's standard error.
        handler: What serves the requests, as ``module:callable``.

    Attributes:
        places: How many workers there are at most.
        memory: What they share with this process.
    """

    def __init__(self, workers: int, *, logs: Path | None = None, handler: str = HANDLER) -> None:
        self._logs, self._handler = logs, handler
        self.memory = Memory.create()
        self._requests = _Requests(max(1, workers))
        self._warnings: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._noted: tuple[Sites | None, set[str]] = (None, set())
        self._lock = threading.Lock()
        self._closed = False
        self._serving = self.places = max(1, workers)
        self._processes: dict[int, Process] = {}
        self._threads = [
            threading.Thread(target=self._serve, args=(place,), name=f"worker-{place + 1}", daemon=True)
            for place in range(self.places)
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

    def submit(self, *requests: Request) -> None:
        """Queue requests; raises MachineError as ``require_workers``."""
        with self._lock:
            self._require_workers()
            self._requests.put(requests)

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
        self._requests.close()
        for thread in self._threads:
            thread.join(_SECONDS_TO_END)
        self.memory.close()

    def _serve(self, place: int) -> None:
        """One place's thread: keep a worker alive and pass requests to it."""
        deaths = 0
        while deaths < DEATHS_IN_A_ROW:
            process = self._start(place)
            if process is None:
                break
            cause, answered = self._feed(process, place) if process.ready() else ("while it started", False)
            process.discard()
            if self._closed or not cause:
                break
            deaths = 1 if answered else deaths + 1
            fate = "a new one takes its place" if deaths < DEATHS_IN_A_ROW else "it is not replaced again"
            self._warnings.put(f"worker {place + 1} ended ({process.fate}) {cause}; {fate}{process.log_hint}")
        self._retire()

    def _feed(self, process: "Process", place: int) -> tuple[str, bool]:
        """Serve until the worker is gone: the circumstances, or "" at the end of the pool; and whether it answered."""
        answered = False
        while (request := self._requests.get(place)) is not None:
            if time.monotonic() >= request.expires:
                request.done(Answer(None, "not begun in time"))
                continue
            if not process.send(request, place):
                self._requests.put([request])
                return "while it waited", answered
            answer, cause = _answer_of(process, request, self._note)
            request.done(answer)
            if cause:
                return cause, answered or answer.error != ENDED
            answered = True
        return "", answered

    def _note(self, sites: Sites, note: str) -> None:
        """Tell the operator what a worker said, once in a run however many workers say it."""
        with self._lock:
            if self._noted[0] is not sites:
                self._noted = sites, set()
            if note not in self._noted[1]:
                self._noted[1].add(note)
                self._warnings.put(note)

    def _start(self, place: int) -> "Process | None":
        """A new worker for the place; None when the pool is closed or the machine cannot start one."""
        log = self._logs / f"worker-{place + 1}.log" if self._logs else None
        with self._lock:
            if self._closed:
                return None
            try:
                process = Process(self._handler, self.memory, place, log)
            except OSError as error:
                self._warnings.put(f"worker {place + 1} cannot be started: {error}")
                return None
            self._processes[place] = process
            return process

    def _retire(self) -> None:
        """Give the place up; the last one answers what is still queued."""
        with self._lock:
            self._serving -= 1
            if self._serving or self._closed:
                return
        for request in self._requests.drain():
            request.done(Answer(None, "no worker process is left"))


def _answer_of(process: "Process", request: Request, note: Callable[[Sites, str], None]) -> tuple[Answer, str]:
    """The answer to a request that was sent; and where the worker is of no use after it, under which circumstances."""
    while process.answers_by(request.expires):
        frame = process.receive()
        if frame is None:
            return Answer(None, ENDED), f"while it served {request.about}, whose answer is lost"
        header, body = frame
        for text in header.get("notes", ()):
            note(request.sites, text)
        if header["kind"] == "answer" and request.some is not None:
            request.some(header)
        elif header["kind"] == "failed":
            return Answer(None, f"worker: {header['reason']}", raised=True), ""
        else:
            stuck = header.get("stuck")
            cause = f"by us: no answer for site {stuck} in time" if stuck else ""
            return Answer(body, header=header), cause
    return Answer(None, "no answer in time"), f"by us: no answer for {request.about} in time"
