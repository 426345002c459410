"""Rounds as plain Flower runs them: SuperLink, SuperNodes, the quickstart's Keras app, and Flower's own settings."""

import contextlib
import json
import os
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedretrain.errors import MachineError
from fedretrain.processes import clean_environment, free_port

from .measured import Costs, Meter, Round
from .trees import Tree

_CONNECTION = "benchmark"
_START_S = 120.0
_ROUND_S = 600.0
_PROJECT = """\
[project]
name = "quickstart"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "benchmark"
[tool.flwr.app.components]
serverapp = "quickstart.server_app:app"
clientapp = "quickstart.client_app:app"
[tool.flwr.app.config]
megabytes = {megabytes}
rounds = {rounds}
out = {out}
"""


def measure(folder: Path, megabytes: float, sites: int, rounds: int, idle_s: float) -> Costs:
    """Run the quickstart and measure it.

    Args:
        folder: An empty folder.
        megabytes: MiB of the model.
        sites: How many SuperNodes.
        rounds: How many rounds; the first one is apart.
        idle_s: For how long it is watched while nothing is asked of it; 0: not at all.

    Raises:
        MachineError: A process does not start, or the run does not come to its end.
    """
    out = folder / "rounds.jsonl"
    app = _write_app(folder, megabytes, rounds, out)
    with _processes(folder, sites) as (flower, server, nodes):
        flower.run(app)
        meter = Meter([server], nodes)
        stamps, cpu = _follow(out, rounds, meter, [server, *nodes])
        flower.wait_until_finished()
        traffic = flower.traffic()
        idle = meter.share(idle_s)
    down, up = (counted / rounds for counted in traffic)
    kept = [Round(after["at"] - before["at"], after["seconds"], down, up) for before, after in pairwise(stamps)]
    between = len(kept) - 1
    return Costs(
        rounds=kept[1:],
        first=kept[0],
        server_cpu=(cpu[-1][0] - cpu[1][0]) / between,
        site_cpu=(cpu[-1][1] - cpu[1][1]) / between,
        server_idle=idle[0],
        site_idle=idle[1],
    )


def _write_app(folder: Path, megabytes: float, rounds: int, out: Path) -> Path:
    app = folder / "app"
    shutil.copytree(Path(__file__).parent / "quickstart", app / "quickstart", ignore=shutil.ignore_patterns("*.pyc"))
    text = _PROJECT.format(megabytes=float(megabytes), rounds=rounds, out=json.dumps(str(out)))
    (app / "pyproject.toml").write_text(text, encoding="utf-8")
    return app


@contextlib.contextmanager
def _processes(folder: Path, sites: int) -> Iterator[tuple["_Flower", Tree, list[Tree]]]:
    flower = _Flower(folder)
    started: list[Tree] = []
    try:
        options = ["--insecure", "--host", "127.0.0.1"]
        link = [flower.command("flower-superlink"), *options, "--port", str(flower.port)]
        started.append(Tree(link, folder, "superlink", flower.environment))
        flower.wait_until_it_answers()
        for site in range(sites):
            node = [flower.command("flower-supernode"), "--insecure", "--superlink", f"127.0.0.1:{flower.port}"]
            node += ["--port", str(free_port()), "--node-config", f"partition-id={site}"]
            started.append(Tree(node, folder, f"supernode-{site}", flower.environment))
        yield flower, started[0], started[1:]
    finally:
        for tree in reversed(started):
            tree.end()


class _Flower:
    """The ``flwr`` command, with a home of its own."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._scripts = Path(sysconfig.get_path("scripts"))
        self._folder = folder
        self._run = ""
        home = folder / "flwr"
        home.mkdir()
        settings = f'[superlink.{_CONNECTION}]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        (home / "config.toml").write_text(settings, encoding="utf-8")
        path = os.pathsep.join([str(self._scripts), os.environ.get("PATH", os.defpath)])
        self.environment = clean_environment(FLWR_HOME=str(home), PATH=path, TF_CPP_MIN_LOG_LEVEL="3")

    def command(self, name: str) -> str:
        """The full path of one of Flower's commands."""
        return str(self._scripts / name)

    def wait_until_it_answers(self) -> None:
        """Wait for SuperLink."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            with contextlib.suppress(MachineError):
                self._call("ls", _CONNECTION)
                return
            time.sleep(0.5)
        raise MachineError(f"SuperLink does not answer; see {self._folder}/superlink.log")

    def run(self, app: Path) -> None:
        """Start a run of the app."""
        self._run = str(self._call("run", str(app), _CONNECTION)["run-id"])

    def wait_until_finished(self) -> None:
        """Wait until Flower holds the run for finished."""
        deadline = time.monotonic() + _START_S
        while not str(self._described()["status"]).startswith("finished"):
            if time.monotonic() > deadline:
                raise MachineError(f"the run does not end; see {self._folder}/superlink.log")
            time.sleep(1)

    def traffic(self) -> tuple[int, int]:
        """Bytes of the run to and from the sites, as SuperLink counts them."""
        found = self._described()["network-traffic"]
        return int(found["outbound-bytes"]), int(found["inbound-bytes"])

    def _described(self) -> dict[str, Any]:
        [found] = self._call("ls", _CONNECTION, "--run-id", self._run)["runs"]
        return dict(found)

    def _call(self, *arguments: str) -> Any:
        call = [self.command("flwr"), *arguments, "--format", "json"]
        try:
            done = subprocess.run(
                call, cwd=self._folder, env=self.environment, capture_output=True, timeout=_START_S, check=False
            )
            answer = json.loads(done.stdout)
        except (OSError, subprocess.TimeoutExpired, ValueError) as error:
            raise MachineError(f"flwr {arguments[0]}: {error}") from error
        if not answer.get("success"):
            raise MachineError(f"flwr {arguments[0]}: {answer.get('error-message', answer)}")
        return answer


def _follow(
    out: Path, rounds: int, meter: Meter, trees: list[Tree]
) -> tuple[list[dict[str, Any]], list[tuple[float, float]]]:
    """The lines of the server's file, and the meter as each of them appeared."""
    stamps: list[dict[str, Any]] = []
    cpu: list[tuple[float, float]] = []
    deadline = time.monotonic() + _ROUND_S
    while len(stamps) <= rounds:
        if time.monotonic() > deadline or not all(tree.alive for tree in trees):
            raise MachineError(f"the run came to round {len(stamps) - 1} of {rounds}; see {out.parent}/*.log")
        lines = out.read_text(encoding="utf-8").splitlines() if out.is_file() else []
        for line in lines[len(stamps) :]:
            stamps.append(json.loads(line))
            cpu.append(meter.read())
            deadline = time.monotonic() + _ROUND_S
        time.sleep(0.2)
    return stamps, cpu
