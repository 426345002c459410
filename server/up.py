"""``fedretrain server up``: SuperLink, executor and gateway as children, and the federation's wishes brought to them.

Invariants: one `up` per federation; a child that ends is started again; when `up` ends, however it ends, so do the
children and all below them, and nothing it leaves stands in the way of the next start. What it says goes to standard
output, one line each with its time; what the children say is in ``state/log``.

The children are started from the main thread, which lives as long as they are to (``fedretrain.processes``); the wishes
(``server.reconcile``) are looked after by a thread of their own, so that a slow answer delays no restart.
"""

import http.client
import json
import os
import signal
import ssl
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from fedretrain import atomic
from fedretrain.errors import FedretrainError, MachineError
from fedretrain.processes import Child, Supervisor, flower_home, module_command, stop_on_signal

from . import uplock
from .desired import utc
from .federation import Federation
from .keyfile import VARIABLE
from .reconcile import Reconciler
from .room import Room

if TYPE_CHECKING:
    from .flowerside import Control

POLL_S: Final = 0.2
RECONCILE_S: Final = 0.5
WARN_EVERY_S: Final = 86400.0
ROOM_EVERY_S: Final = 2.0
START_S: Final = 120.0  # for all of them to answer, on a slow machine under load
ENDS: Final = 3  # of one child before all of them answered: then it is not going to work
PROCESSES: Final = ("superlink", "executor", "gateway")


def main(folder: Path, passphrase_file: Path | None = None) -> int:
    """Run until SIGINT (returns 130) or SIGTERM (returns 0).

    Raises:
        ConfigurationError: There is no federation in the folder, or its keys cannot be used.
        MachineError: Another `up` works on the folder, or a child cannot be started.
    """
    if named := passphrase_file or os.environ.get(VARIABLE):
        os.environ[VARIABLE] = str(Path(named).resolve())  # for processes that work in other folders too
    federation = Federation.open(folder)
    federation.coordinator()  # what its ServerApps will need; better found now
    for made in (federation.state, federation.log, federation.runs):
        atomic.make_folder(made, mode=0o700)
    flower_home(federation.flower_home)
    stop = threading.Event()
    with uplock.hold(federation.up_lock) as held, stop_on_signal(stop) as received:
        Up(federation, held).run(stop)
        interrupted = signal.SIGINT in received
    return 128 + signal.SIGINT if interrupted else 0


class Up:
    """The supervisor of one federation's processes.

    Args:
        federation: Whose.
        held: The lock, where it tells how things are.
    """

    def __init__(self, federation: Federation, held: uplock.Held) -> None:
        self._federation = federation
        self._held = held
        self._since = utc()
        self._words = dict.fromkeys(PROCESSES, "not started")
        self._ends = dict.fromkeys(PROCESSES, 0)
        self._problems: list[str] = []
        self._warn_due = self._room_due = 0.0
        self._room = Room(federation)
        self._broken: Exception | None = None
        self._loopback = _changed(federation)
        children = [
            Child(name, module_command(f"server.{name}", "--folder", federation.folder), federation.log / f"{name}.log")
            for name in PROCESSES
        ]
        self._children = {child.name: child for child in children}
        self._supervisor = Supervisor(children, self._on_change)

    def run(self, stop: threading.Event) -> None:
        """Start everything and look after it until ``stop`` is set; then end everything."""
        address = self._federation.settings.address
        reconciler = threading.Thread(target=self._reconcile, args=(stop,), name="reconcile", daemon=True)
        _say(f"federation {self._federation.settings.name}, {self._federation.folder}, process {os.getpid()}")
        try:
            self._wait_until_ready(stop)
            reconciler.start()
            if not stop.is_set():
                _say(f"ready: sites connect to {address}")
            while not stop.is_set():
                self._step()
                stop.wait(POLL_S)
        finally:
            stop.set()
            self._supervisor.stop()
        _say("ended")
        if self._broken is not None:
            raise self._broken

    def _wait_until_ready(self, stop: threading.Event) -> None:
        deadline = time.monotonic() + START_S
        while not stop.is_set() and not _gateway_answers(self._federation):
            self._step()
            failing = next((name for name, count in self._ends.items() if count >= ENDS), None)
            if failing or time.monotonic() > deadline:
                name = failing or next(iter(PROCESSES))
                log = self._children[name].log
                raise MachineError(f"{name} does not start: {_last_line(log) or 'it says nothing'}; see {log}")
            stop.wait(POLL_S)

    def _step(self) -> None:
        self._supervisor.step()
        if (loopback := _changed(self._federation)) != self._loopback:
            self._loopback = loopback
            _say("the SuperLink's certificate was renewed")
            self._supervisor.restart("superlink")
        if time.monotonic() >= self._warn_due:
            self._warn_due = time.monotonic() + WARN_EVERY_S
            self._warn()
        if time.monotonic() >= self._room_due:
            self._room_due = time.monotonic() + ROOM_EVERY_S
            if news := self._room.look():
                for line in news:
                    _say(line)
                self._tell()

    def _warn(self) -> None:
        """Say what expires soon."""
        from .renewal import warnings

        try:
            self._problems = warnings(self._federation)
        except FedretrainError as error:
            self._problems = [str(error)]
        for problem in self._problems:
            _say(f"! {problem}")
        self._tell()

    def _on_change(self, child: Child, words: str) -> None:
        if words not in {"started", "stopped"}:
            self._ends[child.name] += 1
            last = _last_line(child.log) if child.returncode and child.returncode > 0 else ""
            words += f": {last}" if last else ""
        self._words[child.name] = words if words != "started" else f"process {child.pid} since {utc()[:19]}Z"
        _say(f"{child.name} {words}")
        self._tell()

    def _tell(self) -> None:
        problems = [*self._problems, *self._room.problems.values()]
        try:
            self._held.tell(since=self._since, problems=problems, processes=self._words)
        except MachineError as error:
            _say(str(error))

    def _reconcile(self, stop: threading.Event) -> None:
        """Bring wishes to the SuperLink until ``stop`` is set; what goes wrong here for good ends `up`."""
        reconciler = Reconciler(self._federation, self._connect, self._pids, _say)
        try:
            while not stop.wait(RECONCILE_S):
                reconciler.step()
        except Exception as error:  # noqa: BLE001 - raised again by the main thread
            self._broken = error
            stop.set()

    def _connect(self) -> "Control":
        from .flowerside import Control
        from .superlink import superlink_address

        with atomic.disk_errors(self._federation.ca, "read"):
            ca = self._federation.ca.read_bytes()
        return Control(superlink_address(self._federation), ca)

    def _pids(self) -> dict[str, int | None]:
        return {name: child.pid for name, child in self._children.items()}


def _gateway_answers(federation: Federation) -> bool:
    """Whether the gateway is there and says that the SuperLink behind it answers too."""
    try:
        place = json.loads(federation.gateway.read_bytes())
        context = ssl.create_default_context(cafile=str(federation.ca))
        context.check_hostname = False  # the certificate names what sites call it, not this machine's own address
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(place["host"], place["host"])  # noqa: S104  # not to listen on
        connection = http.client.HTTPSConnection(host, place["port"], timeout=2, context=context)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == http.client.OK
        finally:
            connection.close()
    except (OSError, ValueError, KeyError, http.client.HTTPException):
        return False


def _changed(federation: Federation) -> int:
    """Another number once the SuperLink's certificate was replaced."""
    try:
        return federation.loopback_certificate.stat().st_mtime_ns
    except OSError:
        return 0


def _last_line(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _say(text: str) -> None:
    typer.echo(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}  {text}")
