"""A SuperLink of our own, in simulation mode, for one run: started, given an app to run, and ended with all below it.

Invariants:

- It listens on loopback, on a port that was free, and works in an empty folder with a Flower home of its own, so
  neither a checkout in the way nor the user's connections change what runs.
- Telemetry, update check and the installation of dependencies are off.
- When the context manager is left, it and every process below it are gone; so they are when this process is killed.

``simulations.supervisor`` stands between this process and SuperLink: Flower's processes start sessions of their own,
and the one with the ServerApp goes on when those above it are gone.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import sysconfig
import time
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from fedretrain.allowlist import CALLED_FROM
from fedretrain.errors import MachineError

from .process import environment
from .supervisor import below

LEASE_S = 3600.0  # how long the process of a run may take to start before Flower starts another one
_RUNNER = "flwr-simulation"
_CONNECTION = "simulation"
_START_S = 300.0  # also on a busy machine: Flower's imports take seconds on a quiet one
_CALL_S = 300.0
_LOG_S = 30.0  # of a run that Flower does not hold for finished, the log has no end
_END_S = 30.0  # more than the supervisor's patience
_POLL_S = 0.1
_SHORT = 32  # characters; Ray adds about 70, and a socket's path may have 107
_SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # says a future default, and silences the warning about it
}


class SuperLink:
    """One SuperLink process.

    Args:
        home: An empty folder for Flower's home, its working folder and its connections.
        log: File for what it and everything below it print; written afresh.
        lease_s: Seconds that the process of a run may take to start, before Flower starts another one.

    Raises:
        MachineError: It does not start.
    """

    def __init__(self, home: Path, log: Path, lease_s: float = LEASE_S) -> None:
        self._home, self._log = home / "flwr", log
        self._work = home / "work"  # empty: Flower imports from where it works
        for made in (self._home, self._work):
            made.mkdir()
        scripts = Path(sysconfig.get_path("scripts"))
        self._flwr = str(scripts / "flwr")
        self._environment = {
            **environment(),
            **_SETTINGS,
            CALLED_FROM: str(Path.cwd()),  # modules of the user's may lie there
            "FLWR_HOME": str(self._home),  # after what is inherited: a researcher may have one set
            "PATH": os.pathsep.join([str(scripts), os.environ.get("PATH", os.defpath)]),
        }
        if os.environ.get("RAY_ADDRESS"):  # a cluster's actors are given Flower's path, and nothing else from here
            self._environment["PYTHONPATH"] += os.pathsep + str(Path.cwd())  # behind all that is installed
        if len(str(home)) <= _SHORT and not os.environ.get("RAY_ADDRESS"):
            self._environment["RAY_TMPDIR"] = str(home)  # Ray's logs and sockets go with the rest
        self._port = _free_port()
        connection = f'[superlink.{_CONNECTION}]\naddress = "127.0.0.1:{self._port}"\ninsecure = true\n'
        (self._home / "config.toml").write_text(connection)
        self._popen = self._launch(lease_s)

    def __enter__(self) -> "SuperLink":
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        """Process id of its supervisor, below which everything else is."""
        return self._popen.pid

    @property
    def log(self) -> Path:
        """What it and everything below it print."""
        return self._log

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._popen.poll() is None

    def run(self, app: Path, configuration: dict[str, str], federation: dict[str, Any]) -> str:
        """``flwr run``: the id of the run that was started; raises MachineError where Flower refuses."""
        settings = self._home / "run.toml"  # a file, so that no path needs quoting
        settings.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in configuration.items()))
        pairs = " ".join(f"{k}={json.dumps(v)}" for k, v in federation.items())
        options = ["--run-config", str(settings), "--federation-config", pairs]
        answer = self._call("run", str(app), _CONNECTION, *options)
        return str(answer["run-id"])

    def launches(self) -> set[bytes]:
        """The processes of runs that live, each by its command line; empty where there is no /proc.

        The token of its launch stands there, so two launches differ, and a process and its fork do not.
        """
        found = set()
        for pid in below(self.pid):
            with contextlib.suppress(OSError):  # gone meanwhile
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                if any(Path(os.fsdecode(word)).name == _RUNNER for word in line.split(b"\0")[:2]):  # after Python
                    found.add(line)
        return found

    def finished(self, run_id: str) -> bool:
        """``flwr ls``: whether Flower holds the run for finished, however it ended."""
        [run] = self._call("ls", _CONNECTION, "--run-id", run_id)["runs"]
        return str(run["status"]).startswith("finished")

    def take_log(self, run_id: str) -> None:
        """``flwr log``: add what the processes of a run printed to the log; Flower keeps it apart, and for a while."""
        call = [self._flwr, "log", run_id, _CONNECTION, "--show"]
        with contextlib.suppress(OSError):
            try:
                printed = self._output(call, _LOG_S)
            except subprocess.TimeoutExpired as expired:
                printed = expired.output or b""
            with self._log.open("ab") as log:
                log.write(printed)

    def tail(self, lines: int = 5) -> str:
        """The end of the log and where it lies, as the end of an error message."""
        with contextlib.suppress(OSError):
            last = self._log.read_text(errors="replace").splitlines()[-lines:]
            return f"; see {self._log}, which ends:\n" + "\n".join(last)
        return f"; {self._log} cannot be read"

    def end(self) -> None:
        """End it and everything below it."""
        if self._popen.stdin is not None:
            self._popen.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(_END_S)
        self._popen.kill()
        self._popen.wait()

    def _launch(self, lease_s: float) -> subprocess.Popen[bytes]:
        options = ["--insecure", "--simulation", "--isolation", "subprocess", "--host", "127.0.0.1"]
        module = [sys.executable, "-P", "-m"]
        supervised = [*module, "simulations.supervisor", *module, "simulations.launcher", str(lease_s)]
        try:
            with self._log.open("wb") as log:
                return subprocess.Popen(
                    [*supervised, *options, "--port", str(self._port)],
                    stdin=subprocess.PIPE,  # its end is the end of everything below
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self._work,
                    env=self._environment,
                    process_group=0,  # a terminal's Ctrl-C reaches us alone
                )
        except OSError as error:
            raise MachineError(f"SuperLink cannot be started: {error}") from error

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _START_S
        while self.alive and time.monotonic() < deadline:
            with contextlib.suppress(OSError, HTTPException):
                connection = HTTPConnection("127.0.0.1", self._port, timeout=_POLL_S * 10)  # knows no proxy
                connection.request("GET", "/health")
                if connection.getresponse().status == HTTPStatus.OK:
                    return
            time.sleep(_POLL_S)
        raise MachineError(f"SuperLink does not answer on 127.0.0.1:{self._port}{self.tail()}")

    def _call(self, *arguments: str) -> Any:
        """One call of ``flwr`` and its JSON answer."""
        call = [self._flwr, *arguments, "--format", "json"]
        try:
            answer = json.loads(self._output(call))
        except (OSError, subprocess.TimeoutExpired, ValueError) as error:
            raise MachineError(f"flwr {arguments[0]}: {error}{self.tail()}") from error
        if not answer.get("success"):
            raise MachineError(f"flwr {arguments[0]}: {str(answer.get('error-message', answer)).strip()}")
        return answer

    def _output(self, call: list[str], limit_s: float = _CALL_S) -> bytes:
        done = subprocess.run(
            call, cwd=self._work, env=self._environment, capture_output=True, timeout=limit_s, check=False
        )
        return done.stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
