"""A federation with `server up` as a process, and an app in its bundle that needs no model, no sites and no TensorFlow.

The app holds the run's lock, writes its process id to ``pid`` and the run's start to the events, and ends when the run
is stopped or a file ``go`` lies in the run's folder: with a result, or, where ``go`` names an error, with that failure.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedretrain.digest import sha256
from fedretrain.processes import clean_environment, free_port
from server.federation import Federation
from server.federation_file import Settings
from server.provision import init, make_kits

APP = """
import json, os, time
from pathlib import Path
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from fedretrain.runfolder import RunFolder

app = ServerApp()
client = ClientApp()


@app.main()
def main(grid, context):
    run = Path(str(context.run_config["run"]))
    if context.run_config["task"] != "run":
        return
    folder = RunFolder.open(run)
    folder.failure.unlink(missing_ok=True)
    with folder.lock():
        done = len(list(folder.state.iterdir()))
        folder.append_event({"event": "run-started", "rounds": 9, "completed": done, "sites": []})
        (run / "pid").write_text(str(os.getpid()))
        while not (run / "go").exists():
            time.sleep(0.2)
            try:
                grid.get_node_ids()  # as a real one does; raises once the run was stopped
            except OSError:
                pass
        how = (run / "go").read_text()
        (run / "go").unlink()
        (run / "pid").unlink()
        if how:
            folder.failure.write_text(json.dumps({"error": how, "exit_code": 4, "message": "as told"}))
            raise RuntimeError("as told")
        folder.result.write_text(json.dumps({"outcome": "rejected", "release": None}))
"""
PROJECT = """
[project]
name = "standin"
version = "1.0.0"
description = ""
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "test"
[tool.flwr.app.components]
serverapp = "standin:app"
clientapp = "standin:client"
[tool.flwr.app.config]
run = ""
federation = ""
task = "run"
"""
JOB = """
model = { path = "model.keras" }
participation = { min_sites = 1 }
holdout = [{ name = "old", path = "old.npz" }]
"""


def make_federation(folder: Path) -> Federation:
    """A federation on free ports with one member, whose bundle is the stand-in."""
    from flwr.cli.build import build_fab_from_disk

    port = free_port()
    settings = Settings(name="clinics", address=f"127.0.0.1:{port}", listen=f"127.0.0.1:{port}")
    federation = init(folder / "fed", settings)
    make_kits(federation, ["hospital-a"], folder / "kits")
    app = folder / "standin"
    app.mkdir()
    (app / "standin.py").write_text(APP)
    (app / "pyproject.toml").write_text(PROJECT)
    bundle = build_fab_from_disk(app)
    digest = sha256(bundle)
    federation.bundle_file().unlink()
    (federation.bundle / f"standin.{digest[:8]}.fab").write_bytes(bundle)
    (federation.bundle / "sha256").write_text(digest)
    return federation


def make_job(folder: Path) -> Path:
    """A job whose files exist; nobody opens them."""
    for name in ("model.keras", "old.npz"):
        (folder / name).write_bytes(b"x")
    path = folder / "job.toml"
    path.write_text(JOB)
    return path


def wait_for(what: Callable[[], Any], limit_s: float = 60.0) -> Any:
    """What the call returns as soon as it is true; fails after ``limit_s`` seconds."""
    end = time.monotonic() + limit_s
    while not (found := what()):
        assert time.monotonic() < end, f"not so within {limit_s:g} s"
        time.sleep(0.05)
    return found


class Up:
    """`server up` as a process of its own."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        command = [sys.executable, "-P", "-m", "fedretrain.cli", "server", "up", "--folder", str(federation.folder)]
        self._log = federation.folder.parent / f"up-{time.monotonic_ns()}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=clean_environment(), start_new_session=True
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    def wait_until_ready(self) -> None:
        wait_for(lambda: "ready:" in self.said or self.process.poll() is not None)
        assert self.process.poll() is None, self.said

    def below(self) -> list[int]:
        """Ids of all processes that work on the federation, but `up` itself."""
        return [pid for pid in processes(str(self.federation.folder)) if pid != self.process.pid]

    def child(self, name: str) -> int:
        """The process id of superlink, executor or gateway; 0 where there is none."""
        return next((pid for pid in self.below() if f"server.{name}\0" in command_line(pid)), 0)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def running(federation: Federation) -> Iterator[Up]:
    """`server up`, ready; killed at the end if it still runs."""
    up = Up(federation)
    try:
        up.wait_until_ready()
        yield up
    finally:
        up.process.kill()
        up.process.wait()


def processes(text: str) -> list[int]:
    """Ids of living processes with ``text`` on the command line, this one left out."""
    found = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in found if pid != os.getpid() and text in command_line(pid)]


def command_line(pid: int) -> str:
    """A process' arguments, each ended by a NUL; empty for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def kill(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)


def starts(root: Path) -> list[dict[str, Any]]:
    """What `up` noted about a run's starts."""
    try:
        return list(json.loads((root / "starts.json").read_text())["starts"])
    except OSError:
        return []
