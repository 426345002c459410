"""Rounds as this project runs them: ``server up`` and ``client up`` as operators start them, over TLS on one machine.

The model, the data and the training are the quickstart's (``simulations.benchmarks.quickstart.task``).
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fedretrain.errors import MachineError
from fedretrain.processes import clean_environment, free_port

from .measured import Costs, Meter, Round
from .quickstart.task import EXAMPLES
from .trees import Tree

_START_S = 180.0
_ROUND_S = 600.0
_REST_S = 45.0  # after so long without work a site asks as seldom as it ever does
_RUN = "benchmark"
_JOB = """\
[model]
path = "base.keras"
[train]
rounds = {rounds}
local_epochs = 1
batch_size = {examples}
optimizer = {{ name = "sgd", learning_rate = 0.01 }}
loss = "sparse_categorical_crossentropy"
metrics = ["accuracy"]
validation_fraction = 0.5
[participation]
min_sites = {sites}
[[holdout]]
name = "same"
path = "holdout.npz"
margin = 1.0
"""
_SITE = """\
[data]
format = "npz"
path = "data.npz"
"""
_CALL = re.compile(r"^(\S+ \S+) DEBUG call (\S+) (\S+) in (\d+) out (\d+) took (\S+)$", re.MULTILINE)

Event = dict[str, Any]


def measure(folder: Path, megabytes: float, sites: int, rounds: int, idle_s: float) -> Costs:
    """Run a federation and measure it; arguments and errors as ``plain.measure``."""
    names = [f"site-{i}" for i in range(sites)]
    work = Work(folder)
    work.write_files(names, megabytes, rounds)
    with work.processes(names) as (server, nodes):
        work.call("server", "retrain", "job.toml", "--run-id", _RUN)
        meter = Meter([server], nodes)
        events, cpu = _follow(work.events, rounds, meter, [server, *nodes])
        work.wait_for_the_end()
        idle = meter.share(idle_s, _REST_S)
    calls = read_calls(work.federation / "state" / "log" / "gateway.log")
    kept = read_rounds(events, calls)
    between = len(kept) - 1
    return Costs(
        rounds=kept[1:],
        first=kept[0],
        server_cpu=(cpu[-1][0] - cpu[0][0]) / between,
        site_cpu=(cpu[-1][1] - cpu[0][1]) / between,
        server_idle=idle[0],
        site_idle=idle[1],
    )


@dataclass(frozen=True)
class Call:
    """One line of the gateway's log: times in seconds since 1970, sizes of bodies in bytes."""

    begin: float
    end: float
    site: str
    name: str
    received: int
    sent: int


def read_calls(log: Path) -> list[Call]:
    """The calls in the gateway's log, in the order in which they ended."""
    found = []
    for stamp, site, name, received, sent, took in _CALL.findall(log.read_text(encoding="utf-8")):
        end = datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()  # the log is in local time
        found.append(Call(end - float(took), end, site, name, int(received), int(sent)))
    return found


def read_rounds(events: Sequence[Event], calls: Sequence[Call]) -> list[Round]:
    """Each round that was finished, from its beginning to that of the next one, or to its end."""
    starts = {event["round"]: _at(event) for event in events if event["event"] == "round-started"}
    finished = {event["round"]: _at(event) for event in events if event["event"] == "round-finished"}
    found = []
    for number, stop in finished.items():
        replies = [event for event in events if event["event"] == "reply" and event["round"] == number]
        start, end = starts[number], starts.get(number + 1, stop)
        within = [call for call in calls if start <= call.end < end]
        found.append(
            Round(
                seconds=end - start,
                training=max(reply["metrics"]["seconds"] for reply in replies),
                down=sum(call.sent for call in within),
                up=sum(call.received for call in within),
                parts=_parts(start, max(replies, key=_at), end, within),
            )
        )
    return found


def _parts(start: float, reply: Event, end: float, calls: Sequence[Call]) -> dict[str, float]:
    """Where the seconds went, for the site that was last; they add up to the whole round."""
    replied, training = _at(reply), float(reply["metrics"]["seconds"])
    mine = [call for call in calls if call.site == reply["site"] and call.end <= replied]
    given = max((call.begin for call in mine if call.name == "push-messages"), default=replied)
    taken = max((c.end for c in mine if c.name == "confirm-message-received" and c.end <= given), default=start)
    before = max((call.begin for call in mine if call.name == "push-messages" and call.begin < taken), default=start)
    asked = min((c.begin for c in mine if c.name == "pull-object" and before <= c.begin < taken), default=taken)
    sent = max((call.end for call in mine if call.name in {"push-messages", "push-object"}), default=given)
    return {
        "until the last site has the request": asked - start,
        "its arrays down": taken - asked,
        "at that site, beside training": given - taken - training,
        "its arrays up": sent - given,
        "until the server has judged the reply": replied - sent,
        "combining, checkpoint": end - replied,
    }


class Work:
    """One folder with a federation, its sites and a job."""

    run = _RUN

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.federation = folder / "federation"
        self.events = self.federation / "runs" / _RUN / "events.jsonl"
        self._address = f"127.0.0.1:{free_port()}"
        self._command = str(Path(sysconfig.get_path("scripts")) / "fedretrain")
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
        level = {"FEDRETRAIN_LOG_LEVEL": "DEBUG"}  # the gateway's log says where the time went
        self._environment = clean_environment(PATH=path, TF_CPP_MIN_LOG_LEVEL="3", **level)

    def call(self, *arguments: str) -> None:
        """One command of ours; raises MachineError with its last line where it fails."""
        done = subprocess.run(
            [self._command, *arguments], cwd=self.folder, env=self._environment, capture_output=True, check=False
        )
        if done.returncode:
            raise MachineError(f"fedretrain {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()}")

    def write_files(self, names: Sequence[str], megabytes: float, rounds: int, make: str = __name__) -> None:
        """Federation, homes, data, model and job; ``make`` is a module that makes model and data when asked to."""
        command = [sys.executable, "-P", "-m", make, "make", str(self.folder), str(megabytes), *names]
        subprocess.run(command, env=self._environment, check=True, stderr=subprocess.DEVNULL)
        job = _JOB.format(rounds=rounds, examples=EXAMPLES, sites=len(names))
        (self.folder / "job.toml").write_text(job, encoding="utf-8")
        self.call("server", "init", "--name", "benchmark", "--address", self._address, "--listen", self._address)
        self.call("server", "kits", *names)
        for name in names:
            self.call("client", "join", f"kits/{name}.kit", "--home", name)
            (self.folder / name / "site.toml").write_text(_SITE, encoding="utf-8")

    @contextlib.contextmanager
    def processes(self, names: Sequence[str]) -> Iterator[tuple[Tree, list[Tree]]]:
        """The server and its sites, running."""
        started: list[Tree] = []
        try:
            started.append(Tree([self._command, "server", "up"], self.folder, "server", self._environment))
            for name in names:
                up = [self._command, "client", "up", "--home", name]
                started.append(Tree(up, self.folder, name, self._environment))
            yield started[0], started[1:]
        finally:
            for tree in reversed(started):
                tree.end()

    def wait_for_the_end(self) -> None:
        """Wait until the run has a result, and the release is at the sites."""
        deadline = time.monotonic() + _START_S
        while not (self.events.parent / "result.json").is_file():
            if time.monotonic() > deadline:
                raise MachineError(f"the run does not end; see {self.events}")
            time.sleep(0.5)


def _follow(file: Path, rounds: int, meter: Meter, trees: list[Tree]) -> tuple[list[Event], list[tuple[float, float]]]:
    """The run's events up to the end of its last round, and the meter at the end of each round."""
    events: list[Event] = []
    cpu: list[tuple[float, float]] = []
    deadline = time.monotonic() + _ROUND_S
    while len(cpu) < rounds:
        if time.monotonic() > deadline or not all(tree.alive for tree in trees):
            raise MachineError(
                f"the run came to the end of round {len(cpu)} of {rounds}; see {file} and the logs there"
            )
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
        for line in lines[len(events) :]:
            if not line.endswith("\n"):
                break
            events.append(json.loads(line))
            if events[-1]["event"] in {"failed", "round-abandoned"}:
                raise MachineError(f"the run failed: {events[-1]['reason']}; see {file}")
            if events[-1]["event"] == "round-finished":
                cpu.append(meter.read())
                deadline = time.monotonic() + _ROUND_S
        time.sleep(0.2)
    return events, cpu


def _at(event: Event) -> float:
    return datetime.fromisoformat(event["at"]).timestamp()


def _make(folder: Path, megabytes: float, names: Sequence[str]) -> None:
    """The base model, the holdout and each site's data; in a process of its own, because of what Keras takes."""
    import numpy as np

    from .quickstart.task import load_data, load_model

    load_model(megabytes).save(folder / "base.keras")
    for seed, place in enumerate([folder / "holdout.npz", *(folder / name / "data.npz" for name in names)]):
        place.parent.mkdir(mode=0o700, exist_ok=True)
        x, y = load_data(seed, 2 * EXAMPLES)
        np.savez(place, allow_pickle=False, x=x, y=y)


if __name__ == "__main__":
    _make(Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])
