"""The server's executor: starts a process for each ServerApp the SuperLink has. ``python -m server.executor``.

Invariants:

- A token goes to the app's process over stdin; Flower's own executor puts it on the command line, for all to see.
- An app whose task the SuperLink has given up, or that was stopped, is ended; by itself it would notice only when it
  talks to the sites again.
- An app that dies is reported at once, so that its run can be started again without waiting for a lost heartbeat.
- Nothing the SuperLink does ends the executor: while there is none it waits, and finds the next one by its port file.
- The apps end with the executor, however it ends.

What an app prints is in FOLDER/state/log/serverapp-RUN.log, RUN being Flower's id of the run; the last ``LOGS`` stay.
"""

import argparse
import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedretrain import atomic
from fedretrain.errors import FedretrainError, MachineError
from fedretrain.processes import (
    Child,
    clean_environment,
    die_with_parent,
    flower_home,
    how_it_ended,
    module_command,
    stop_on_signal,
)

from .federation import Federation
from .superlink import superlink_address

if TYPE_CHECKING:
    from .flowerside import Runtime, Task

BUSY_S = 0.2  # between two questions for tasks, for BUSY_FOR_S after a task or the start
IDLE_S = 1.0
BUSY_FOR_S = 60.0
AWAY_S = 1.0  # between two tries while the SuperLink is away
HEARTBEAT_S = 10.0
REFUSALS = 2  # heartbeats refused in a row after which an app is ended: one may cross the report of its own end
REPORT_FOR_S = 90.0  # afterwards the SuperLink has given the task up by itself
STOP_S = 4.0
LOGS = 20

_log = logging.getLogger("executor")


@dataclass
class App:
    """A ServerApp's process; times are seconds of ``time.monotonic``, ``refused`` counts heartbeats in a row."""

    task: "Task"
    child: Child
    heartbeat: float = 0.0
    refused: int = 0
    ended: float | None = None


class Executor:
    """Takes tasks and looks after their processes; ``step`` again and again, then ``stop``."""

    def __init__(self, federation: Federation) -> None:
        self.apps: list[App] = []
        self._federation = federation
        self._runtime: Runtime | None = None
        self._away = False
        self._busy_until = time.monotonic() + BUSY_FOR_S

    def step(self) -> float:
        """Look after what runs and take what waits; returns the seconds until the next step."""
        try:
            runtime = self._connected()
            self.apps = [app for app in self.apps if self._look_after(app, runtime)]
            task = runtime.acquire()
        except MachineError as error:
            return self._wait_for_superlink(error)
        if self._away:
            self._away = False
            _log.info("the SuperLink answers again")
        if task is not None:
            self._launch(task)
        return BUSY_S if self.apps or time.monotonic() < self._busy_until else IDLE_S

    def stop(self) -> None:
        """End all apps; each says so to the SuperLink if that is there."""
        for app in self.apps:
            app.child.ask_to_stop()
        deadline = time.monotonic() + STOP_S
        for app in self.apps:
            app.child.stop(max(0.0, deadline - time.monotonic()))

    def _connected(self) -> "Runtime":
        if self._runtime is None:
            from .flowerside import Runtime

            f = self._federation
            with atomic.disk_errors(f.secret, "read what the SuperLink's clients need"):
                ca, secret = f.ca.read_bytes(), f.secret.read_bytes()
            self._runtime = Runtime(superlink_address(f), ca, secret)
        return self._runtime

    def _wait_for_superlink(self, error: MachineError) -> float:
        if self._runtime is not None:
            self._runtime.close()
            self._runtime = None
        if not self._away:
            self._away = True
            _log.warning("%s", error)
        return AWAY_S

    def _launch(self, task: "Task") -> None:
        log = self._federation.log / f"serverapp-{task.run_id}.log"
        _remove_old_logs(self._federation.log)
        command = module_command("server.serverapp", "--folder", self._federation.folder)
        child = Child(f"ServerApp of run {task.run_id}", command, log, clean_environment())
        now = time.monotonic()
        self._busy_until = now + BUSY_FOR_S
        app = App(task, child, heartbeat=now)
        self.apps.append(app)
        try:
            child.start(stdin=f"{task.token}\n".encode())
        except MachineError as error:
            _log.error("%s", error)
            return
        _log.info("run %d: ServerApp started, process %d", task.run_id, child.pid)

    def _look_after(self, app: App, runtime: "Runtime") -> bool:
        """Keep an app's task alive, or report its end; whether there is more to do for it. Raises MachineError."""
        now = time.monotonic()
        if app.child.alive:
            app.child.trim_log()
            if now - app.heartbeat > HEARTBEAT_S:
                app.heartbeat = now
                self._beat(app, runtime)
            return True
        if app.ended is None:
            app.ended = now
            _log.info("run %d: ServerApp %s", app.task.run_id, how_it_ended(app.child.returncode))
        if app.child.returncode != 0 and now - app.ended < REPORT_FOR_S:
            runtime.failed(app.task, f"ServerApp {how_it_ended(app.child.returncode)}")
        return False

    def _beat(self, app: App, runtime: "Runtime") -> None:
        """Send a heartbeat, which an app that is still starting cannot do; end an app that is not wanted any more."""
        app.refused = 0 if runtime.heartbeat(app.task) else app.refused + 1
        if app.refused == REFUSALS:
            _log.info("run %d: the SuperLink does not want its ServerApp any more", app.task.run_id)
            app.child.ask_to_stop()
        elif app.refused > REFUSALS:
            app.child.stop(0)


def _remove_old_logs(folder: Path) -> None:
    with suppress(OSError):
        found = sorted(folder.glob("serverapp-*.log"), key=lambda path: path.stat().st_mtime)
        for path in found[: -LOGS + 1]:
            path.unlink()
            path.with_name(path.name + ".1").unlink(missing_ok=True)


def main() -> None:
    """Run until a signal comes."""
    die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(prog="server.executor", description="Start the ServerApps of a federation.")
    parser.add_argument("--folder", type=Path, default=Path("federation"))
    try:
        federation = Federation.open(parser.parse_args().folder)
        atomic.make_folder(federation.log, mode=0o700)
    except FedretrainError as error:
        raise SystemExit(str(error)) from None
    flower_home(federation.flower_home)
    executor, stop = Executor(federation), threading.Event()
    with stop_on_signal(stop):
        try:
            while not stop.is_set():
                stop.wait(executor.step())
        finally:
            executor.stop()


if __name__ == "__main__":
    main()
