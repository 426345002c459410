"""The engine ``flower``: the same job on Flower's own simulation runtime, through ``flwr run``.

Invariants:

- The app that runs is the staged one (``fedretrain.bundle``), on a SuperLink of its own (``simulations.superlink``).
- What happens stands in the run's folder, written by the app; this module reads it there and keeps nothing itself.
- However it ends, no process is left when ``run_flower`` returns.
- A run that does not begin is given up: after ``_BEGIN_S``, or once its process ended or was started a second time.

SuperLink starts a process with the ServerApp in it, and that starts Ray with one actor per worker; each actor keeps its
trainer warm (``client.app``). Where ``RAY_ADDRESS`` names a Ray cluster that runs already, the actors are there, as
many as it has cores (docs/cluster.md), and the cluster stays when the run is over.
"""

import contextlib
import json
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedretrain import errors
from fedretrain.bundle import stage_app
from fedretrain.errors import ConfigurationError, FedretrainError, MachineError, RunFailed
from fedretrain.runfolder import RunFolder

from .superlink import SuperLink

LOG = "flower.log"
ADDRESS = "RAY_ADDRESS"
_POLL_S = 0.2
_REACH_S = 10.0
_QUIET_S = 15.0  # without an event for so long, Flower is asked whether the run still goes on; then after twice as long
_QUIET_MOST_S = 60.0  # asking takes a process and seconds of a core
_BEGIN_S = 900.0  # for a run to begin; less than SuperLink's lease, so that nothing is started twice until then
_TELL_S = 60.0  # without a beginning for so long, the user is told
_LOOK_S = 1.0

OnEvent = Callable[[dict[str, Any]], None]


def run_flower(
    folder: RunFolder, sites: int, workers: int, on_event: OnEvent | None = None, timeout: float | None = None
) -> dict[str, Any]:
    """Run a job on Flower's simulation runtime and return its result, as it stands in the run's folder.

    Args:
        folder: The run's folder, with the job in it. Flower's log goes there too, as ``flower.log``.
        sites: How many site files the job has; each is one of Flower's nodes.
        workers: How many Ray actors serve them; on a Ray cluster it has to say itself how many.
        on_event: Takes each event as it appears in the run's log.
        timeout: Seconds after which the run is given up, to be resumed; None waits as long as it takes.

    Raises:
        ConfigurationError: Flower's simulation runtime is not installed, or ``RAY_ADDRESS`` is no address of a cluster.
        MachineError: A process could not be started, no cluster answers, the run ended without a word, or it took too
            long.
        FedretrainError: What stopped the run on the server's side, as it stands in ``failure.json``.
    """
    if find_spec("ray") is None:
        raise ConfigurationError("--engine flower: expected Ray, found none; install fedretrain[simulation]")
    if address := os.environ.get(ADDRESS):
        _check_cluster(address)
    with tempfile.TemporaryDirectory(prefix="fedretrain-", ignore_cleanup_errors=True) as home:
        watch = _Watch(folder, on_event, timeout)
        return run_app(stage_app(Path(home)), watch, sites, workers)


def run_app(app: Path, watch: "_Watch", sites: int, workers: int) -> dict[str, Any]:
    """``run_flower`` for the Flower app in the folder ``app``; Flower keeps its own files beside that folder."""
    folder = watch.folder
    folder.failure.unlink(missing_ok=True)  # an earlier start's
    federation = {"num-supernodes": sites, "client-resources-num-cpus": 1}
    if not os.environ.get(ADDRESS):  # a cluster that runs has its cores already, and Ray refuses to be told others
        federation["init-args-num-cpus"] = max(1, min(workers, sites))
    with SuperLink(app.parent, folder.root / LOG) as link:
        run = link.run(app, {"run": str(folder.root)}, federation)
        _follow(link, run, watch)
    return _result(folder)


def _check_cluster(address: str) -> None:
    """Raise ConfigurationError where ``address`` is no HOST:PORT, MachineError where nobody answers there."""
    found = re.fullmatch(r"([^\s:/]+):([0-9]{1,5})", address)
    if found is None:
        raise ConfigurationError(
            f"{ADDRESS}: expected HOST:PORT of the cluster's head, as `ray start --head` prints it, got {address!r}; "
            "unset it to run on this machine alone"
        )
    try:
        socket.create_connection((found[1], int(found[2])), _REACH_S).close()
    except (OSError, OverflowError) as error:
        raise MachineError(
            f"{ADDRESS}: no Ray cluster answers at {address}: {error}; start its head there, or unset {ADDRESS} to run "
            "on this machine alone"
        ) from None


def _follow(link: SuperLink, run: str, watch: "_Watch") -> None:
    """Return when the app has said how the run ended; raises MachineError where it is not going to."""
    root = watch.folder.root
    start = _Start(link, watch)
    while not watch.ended():
        over = not link.alive or (watch.worried() and link.finished(run))
        if over or start.died():
            if watch.ended():
                return
            link.take_log(run)
            what = "Flower ended the run without a result" if over else "the run's process ended before the run began"
            raise MachineError(f"{root}: {what}{link.tail()}")
        if fault := start.fault():
            raise MachineError(f"{root}: {fault}; it can be resumed when this machine is less busy; see {link.log}")
        if watch.overdue():
            raise MachineError(f"{root}: no result in time; it can be resumed{link.tail()}")
        time.sleep(_POLL_S)


class _Start:
    """Whether the process of a run gets going; asked again and again until the app has said something."""

    def __init__(self, link: SuperLink, watch: "_Watch") -> None:
        self._link, self._watch = link, watch
        self._began = self._looked = time.monotonic()
        self._launches: set[bytes] = set()
        self._gone = 0  # looks in a row
        self._told = False

    def died(self) -> bool:
        """Whether the process was there, is gone, and nothing began."""
        if self._watch.begun or time.monotonic() < self._looked + _LOOK_S:
            return False
        self._looked = time.monotonic()
        living = self._link.launches()
        self._launches |= living
        self._gone = self._gone + 1 if self._launches and not living else 0
        return self._gone > 1

    def fault(self) -> str | None:
        """What keeps the run from beginning, None where it may still begin."""
        seconds = time.monotonic() - self._began
        if self._watch.begun:
            return None
        if len(self._launches) > 1:
            return "Flower started the run's process again, and refuses the first one, which took too long to start"
        if seconds > _BEGIN_S:
            return f"Flower has not begun the run within {seconds / 60:.0f} min"
        if seconds > _TELL_S and not self._told:
            self._told = True
            self._watch.tell(
                f"Flower's simulation runtime is not up after {seconds:.0f} s, which a busy machine explains; it has "
                f"{_BEGIN_S / 60:.0f} min; see {self._link.log}"
            )
        return None


def _result(folder: RunFolder) -> dict[str, Any]:
    """The result; raises what ``failure.json`` holds where there is none."""
    if folder.result.exists():
        result: dict[str, Any] = json.loads(folder.result.read_bytes())
        return result
    failure = json.loads(folder.failure.read_bytes())
    kind = getattr(errors, str(failure.get("error")), None)
    if kind is None or kind.__init__ is not FedretrainError.__init__:  # ours to raise, and made from its text alone
        by_code = {ConfigurationError.exit_code: ConfigurationError, RunFailed.exit_code: RunFailed}
        kind = by_code.get(failure.get("exit_code"), MachineError)
    raise kind(str(failure.get("message", failure)))


class _Watch:
    """Passes on what an app writes into the run's folder from here on, and knows how long nothing came."""

    def __init__(self, folder: RunFolder, on_event: OnEvent | None = None, timeout: float | None = None) -> None:
        self.folder = folder
        self.begun = False  # whether the app has said anything
        self._on_event = on_event
        self._seen = folder.events.stat().st_size if folder.events.exists() else 0
        self._last, self._patience = time.monotonic(), _QUIET_S
        self._end = self._last + (timeout if timeout is not None else float("inf"))

    def ended(self) -> bool:
        """Pass on what is there; whether the app has said how the run ended."""
        ended = self.folder.result.exists() or self.folder.failure.exists()
        self.begun |= ended
        for event in self._events():
            self.begun = True
            self._last, self._patience = time.monotonic(), _QUIET_S
            if self._on_event is not None:
                self._on_event(event)
        return ended

    def tell(self, text: str) -> None:
        """Pass on a warning that is not the app's."""
        if self._on_event is not None:
            self._on_event({"event": "warning", "text": text})

    def worried(self) -> bool:
        """Whether it was quiet for long; once, then the quiet time counts anew, and has to be longer."""
        worried = time.monotonic() > self._last + self._patience
        if worried:
            self._last, self._patience = time.monotonic(), min(2 * self._patience, _QUIET_MOST_S)
        return worried

    def overdue(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self._end

    def _events(self) -> Iterator[dict[str, Any]]:
        """Events that have not been read yet; a torn line, left by a start that was killed, is none."""
        if not self.folder.events.exists():
            return
        with self.folder.events.open("rb") as file:
            file.seek(self._seen)
            whole = file.read().rpartition(b"\n")[0]
        self._seen += len(whole) + 1 if whole else 0
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):
                yield json.loads(line)
