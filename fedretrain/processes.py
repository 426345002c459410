"""Processes that start processes: none outlives the one that started it, and none stays down.

Invariants:

- A process that calls ``die_with_parent`` first is gone when its parent is, also after SIGKILL of the parent.
- A supervised child that ends is started again, after a pause that doubles from ``FIRST_PAUSE_S`` to ``LAST_PAUSE_S``
  and is short again once it has lived for ``STEADY_S``.
- Stopping a child ends everything in its process group: SIGTERM, then SIGKILL.
- What a child prints lies in one file of at most ``LOG_BYTES``, with one file of that size before it (``.1``).

Linux ties a child to the *thread* that started it: ``Child.start``, ``Supervisor.step`` and ``Supervisor.watch`` are
called from a thread that lives as long as the children are to live, best the main one.

Use::

    stop = threading.Event()
    children = [Child("gateway", module_command("server.gateway", "--folder", folder), log=folder / "gateway.log")]
    with stop_on_signal(stop):
        Supervisor(children).watch(stop)
"""

import ctypes
import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from . import atomic
from .errors import MachineError

PARENT = "FEDRETRAIN_PARENT"  # process id of whoever started a Child, for the child alone
QUIET_FLOWER = {  # it asks nobody anything and installs nothing
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
FIRST_PAUSE_S = 0.5
LAST_PAUSE_S = 10.0
STEADY_S = 60.0
GRACE_S = 8.0
LOG_BYTES = 10_000_000
_PR_SET_PDEATHSIG = 1
_M_MMAP_THRESHOLD, _LARGE_BLOCK = -3, 256 * 1024  # malloc.h; bytes
_LITTER = 32 * 2**20
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def die_with_parent() -> None:
    """Have this process killed when the one that started it ends; call it first thing in a process of ours."""
    parent = int(os.environ.pop(PARENT, "") or os.getppid())
    if not _ask_the_kernel():
        threading.Thread(target=_watch_parent, args=(parent,), name="die-with-parent", daemon=True).start()
    if os.getppid() != parent:  # it ended before the kernel knew
        os._exit(1)


def return_memory() -> None:
    """Have what is freed go back to the system at once, for a process that passes large blocks on.

    glibc keeps freed blocks of up to 32 MiB for later, in an arena per thread: with many threads, hundreds of MiB.
    Where computing allocates large blocks all the time, they are better kept.
    """
    if sys.platform.startswith("linux") and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


class Litter:
    """What large messages leave behind in a process that passes them on: HTTP libraries keep bodies in cycles.

    Python looks for cycles after so many objects, not bytes, and a model is few objects.
    """

    def __init__(self) -> None:
        self._lock, self._bytes = threading.Lock(), 0

    def left(self, count: int) -> None:
        """So many bytes passed; after every 32 MiB what they left is cleared away."""
        with self._lock:
            self._bytes += count
            if self._bytes < _LITTER:
                return
            self._bytes = 0
        gc.collect()


def _ask_the_kernel() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    return bool(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment(**extra: str) -> dict[str, str]:
    """This process' environment for a child, with ``QUIET_FLOWER`` and ``extra`` on top."""
    kept = {name: value for name, value in os.environ.items() if name != PARENT}
    return kept | QUIET_FLOWER | {"PYTHONUNBUFFERED": "1"} | extra


def flower_home(folder: Path, **extra: str) -> None:
    """Have Flower in this process keep its things in ``folder``, with ``QUIET_FLOWER`` and ``extra`` on top.

    To be called before anything of Flower is imported, which reads its environment once.
    """
    os.environ.update(QUIET_FLOWER, FLWR_HOME=str(folder), **extra)


def module_command(module: str, *arguments: str | Path) -> list[str]:
    """Command line that runs an installed module, whatever lies in the working directory."""
    return [sys.executable, "-P", "-m", module, *map(str, arguments)]


class Child:
    """One child process in a process group of its own, its output appended to a file.

    Args:
        name: What operators call it.
        argv: The command line; never holds a secret.
        log: The file for its output, made with mode 0600; its folder exists.
        env: Its environment, by default ``clean_environment()``.
    """

    def __init__(self, name: str, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.argv = list(argv)
        self.log = log
        self.env = env
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, stdin: bytes | None = None) -> None:
        """Start it; does nothing where it runs already.

        Args:
            stdin: What it is to read, a secret for example; at most 64 KiB.

        Raises:
            MachineError: The log cannot be written, or the command cannot be run.
        """
        if self.alive:
            return
        env = {**(clean_environment() if self.env is None else self.env), PARENT: str(os.getpid())}
        with atomic.disk_errors(self.log, "append to the log"):
            log = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            source = subprocess.DEVNULL if stdin is None else subprocess.PIPE
            self._process = subprocess.Popen(
                self.argv, stdin=source, stdout=log, stderr=log, env=env, start_new_session=True
            )
        except OSError as error:
            raise MachineError(f"cannot start {self.name} ({self.argv[0]}): {error.strerror or error}") from error
        finally:
            os.close(log)
        if self._process.stdin is not None:
            with suppress(BrokenPipeError), self._process.stdin as pipe:  # it may have died already
                pipe.write(stdin or b"")

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Process id of the last start."""
        return None if self._process is None else self._process.pid

    @property
    def returncode(self) -> int | None:
        """How it ended, negative for a signal; None while it runs or before its first start."""
        return None if self._process is None else self._process.poll()

    def stop(self, grace_s: float = GRACE_S) -> None:
        """End it and what it started: SIGTERM, after ``grace_s`` seconds SIGKILL."""
        self.ask_to_stop()
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
            self._signal(signal.SIGKILL)
            self._process.wait()

    def ask_to_stop(self) -> None:
        """Send SIGTERM to it and what it started, and do not wait."""
        self._signal(signal.SIGTERM)

    def trim_log(self, limit: int = LOG_BYTES) -> None:
        """Move a log of more than ``limit`` bytes aside; lines written meanwhile may be lost."""
        with suppress(OSError):  # a full disk must not end the supervision
            if self.log.stat().st_size > limit:
                shutil.copy2(self.log, self.log.with_name(self.log.name + ".1"))
                os.truncate(self.log, 0)

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


class Supervisor:
    """Keeps children running until it is told to stop.

    Args:
        children: In the order in which they are started; stopped the other way round.
        on_change: Called with a child and a few words for an operator ("started", "ended with exit code 1") whenever
            a child starts or ends; it must not raise.
    """

    def __init__(self, children: Sequence[Child], on_change: Callable[[Child, str], None] | None = None) -> None:
        self.children = tuple(children)
        self._on_change = on_change or _say_nothing
        self._fates = {child.name: _Fate() for child in children}

    def step(self) -> None:
        """Note which children ended, start those whose pause is over, trim logs; returns at once."""
        now = time.monotonic()
        for child in self.children:
            fate = self._fates[child.name]
            if child.alive:
                child.trim_log()
                continue
            if fate.running:
                fate.ended(now)
                self._on_change(child, how_it_ended(child.returncode))
            if now >= fate.due:
                self._start(child, fate)

    def watch(self, stop: threading.Event, poll_s: float = 0.2) -> None:
        """``step`` until ``stop`` is set, then end all children; they are ended too when an exception escapes."""
        try:
            while not stop.is_set():
                self.step()
                stop.wait(poll_s)
        finally:
            self.stop()

    def restart(self, name: str) -> None:
        """End the named child and start it again at once."""
        child = next(c for c in self.children if c.name == name)
        child.stop()
        self._start(child, self._fates[name])

    def stop(self, grace_s: float = GRACE_S) -> None:
        """End all children one after the other, the last started first, within about ``grace_s`` seconds in all."""
        deadline = time.monotonic() + grace_s
        for child in reversed(self.children):
            child.stop(max(0.5, deadline - time.monotonic()))
            if self._fates[child.name].running:
                self._fates[child.name].running = False
                self._on_change(child, "stopped")

    def _start(self, child: Child, fate: "_Fate") -> None:
        now = time.monotonic()
        try:
            child.start()
        except MachineError as error:
            fate.ended(now)
            self._on_change(child, str(error))
            return
        fate.started(now)
        self._on_change(child, "started")


def _say_nothing(_child: Child, _words: str) -> None:
    pass


class _Fate:
    """When a child started, and when it may start again; seconds of ``time.monotonic``."""

    def __init__(self) -> None:
        self.running = False
        self.due = 0.0
        self._since = 0.0
        self._pause = FIRST_PAUSE_S

    def started(self, now: float) -> None:
        self.running, self._since = True, now

    def ended(self, now: float) -> None:
        if self.running and now - self._since >= STEADY_S:
            self._pause = FIRST_PAUSE_S
        self.running, self.due = False, now + self._pause
        self._pause = min(2 * self._pause, LAST_PAUSE_S)


def how_it_ended(returncode: int | None) -> str:
    """A return code in words: "ended with exit code 1", "was killed by SIGKILL"."""
    if returncode is None or returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"


@contextmanager
def stop_on_signal(stop: threading.Event) -> Iterator[list[int]]:
    """Within the block SIGINT and SIGTERM set ``stop`` instead of ending this process; main thread only.

    Yields:
        The numbers of the signals that came, in order.
    """
    received: list[int] = []

    def handle(number: int, _frame: object) -> None:
        received.append(number)
        # not set here: the main thread may hold the event's lock at this very moment
        threading.Thread(target=stop.set, daemon=True).start()

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
