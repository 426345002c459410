"""The engine ``flower``: a SuperLink of our own that runs the app, reports what it writes, and leaves nobody behind."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedretrain.errors import ConfigurationError, MachineError, RunFailed
from fedretrain.runfolder import RunFolder
from simulations import flower
from simulations.flower import _follow, _result, _Watch, run_app, run_flower
from simulations.superlink import SuperLink
from simulations.supervisor import below

from .test_engine import eventually, gone

SETTINGS = """
[project]
name = "stand-in"
version = "0.1.0"
description = ""
license = "Apache-2.0"
dependencies = ["flwr>=1.41"]
[tool.flwr.app]
publisher = "fedretrain"
[tool.flwr.app.components]
serverapp = "standin.server:app"
clientapp = "standin.site:app"
[tool.flwr.app.config]
run = ""
"""
SERVER = """
import json, os, time
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    root = Path(context.run_config["run"])

    def say(event):
        with (root / "events.jsonl").open("a") as file:
            file.write(json.dumps(event) + "\\n")

    say({"event": "run-started", "cwd": os.getcwd(), "files": os.listdir(), "flower": os.environ["FLWR_HOME"]})
    while len(nodes := list(grid.get_node_ids())) < 3:
        time.sleep(0.1)
    waiting = set(grid.push_messages([Message(RecordDict(), n, "train") for n in nodes]))
    pids, partitions = set(), set()
    while waiting:
        for reply in grid.pull_messages(list(waiting)):
            waiting.discard(reply.metadata.reply_to_message_id)
            pids.add(reply.content["told"]["pid"])
            partitions.add(reply.content["told"]["partition"])
        time.sleep(0.05)
    say({"event": "trained"})
    time.sleep(2)  # long enough to be seen at work
    (root / "result.json").write_text(json.dumps({"pids": sorted(pids), "partitions": sorted(partitions)}))
    say({"event": "released"})
"""
SITE = """
import os, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    time.sleep(0.5)
    told = ConfigRecord({"pid": os.getpid(), "partition": context.node_config["partition-id"]})
    return Message(RecordDict({"told": told}), reply_to=message)
"""


def stand_in(home: Path) -> Path:
    """An app without TensorFlow that writes into a run's folder as ours does."""
    package = home / "stand-in" / "standin"
    package.mkdir(parents=True)
    (package.parent / "pyproject.toml").write_text(SETTINGS)
    for name, text in {"__init__": "", "server": SERVER, "site": SITE}.items():
        (package / f"{name}.py").write_text(text)
    return package.parent


def run_folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "a run with 'quotes'")
    folder.root.mkdir()
    return folder


@pytest.mark.slow
def test_an_app_runs_and_leaves_nobody_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each site is a node, as many actors as workers serve them, events are passed on, SuperLink's folder is empty."""
    monkeypatch.setattr(flower, "_QUIET_S", 5.0)  # so that Flower is asked while the run goes on
    folder = run_folder(tmp_path)
    events: list[dict[str, Any]] = []
    pids: set[int] = set()

    def on_event(event: dict[str, Any]) -> None:
        events.append(event)
        pids.update(below(os.getpid()))

    app = stand_in(tmp_path / "home")
    result = run_app(app, _Watch(folder, on_event, timeout=400), sites=3, workers=2)
    assert result["partitions"] == [0, 1, 2]
    assert len(result["pids"]) == 2
    assert [e["event"] for e in events] == ["run-started", "trained", "released"]
    assert events[0]["files"] == []
    assert Path(events[0]["flower"]).is_relative_to(tmp_path)
    assert pids > set(result["pids"])
    assert all(gone(p) for p in pids)


@dataclass
class Link:
    """A SuperLink in a chosen state."""

    alive: bool = True
    over: bool = False

    def finished(self, _run: str) -> bool:
        return self.over

    def tail(self) -> str:
        return "; see the log"


@pytest.mark.parametrize("link", [Link(alive=False), Link(over=True)])
def test_a_run_that_ends_without_a_word_is_the_machines_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: Link
) -> None:
    """SuperLink is gone, or holds the run for finished, and there is no result: the error says where to look."""
    monkeypatch.setattr(flower, "_QUIET_S", 0.0)
    with pytest.raises(MachineError, match="ended the run without a result; see the log"):
        _follow(link, "1", _Watch(RunFolder(tmp_path)))  # type: ignore[arg-type]


def test_a_run_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    """The time limit is the caller's; what there is can be resumed."""
    with pytest.raises(MachineError, match="no result in time; it can be resumed"):
        _follow(Link(), "1", _Watch(RunFolder(tmp_path), timeout=0.1))  # type: ignore[arg-type]


@pytest.mark.slow
def test_flowers_refusal_is_said(tmp_path: Path) -> None:
    """What ``flwr run`` answers when it does not take the app is in the error."""
    app = stand_in(tmp_path / "home")
    (app / "pyproject.toml").write_text(SETTINGS.replace("publisher", "nobody"))
    with SuperLink(tmp_path / "home", tmp_path / "log") as link:
        with pytest.raises(MachineError, match="publisher"):
            link.run(app, {}, {})
        pids = below(link.pid)
    assert pids
    assert all(gone(p) for p in pids)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_superlink_ends_with_its_parent(tmp_path: Path, sent: signal.Signals) -> None:
    """SIGKILL or Ctrl-C of the command: SuperLink and what it started are gone within seconds."""
    code = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from simulations.superlink import SuperLink

        home = Path({str(tmp_path)!r})
        with SuperLink(home, home / "log"):
            print("up", flush=True)
            time.sleep(60)
    """)
    command = [sys.executable, "-c", code]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], **options) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        pids = below(parent.pid)
        assert len(pids) >= 2
        parent.send_signal(sent)
        parent.wait(20)
    eventually(lambda: all(gone(p) for p in pids), 10)


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lacks Flower's simulation runtime is told what to install."""
    monkeypatch.setattr(flower, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"install fedretrain\[simulation\]"):
        run_flower(RunFolder(tmp_path), 2, 1)


def test_events_are_passed_on_once_and_from_here_on(tmp_path: Path) -> None:
    """An earlier start's events stay where they are; a line is passed on when it is whole; a torn one is skipped."""
    folder, events = RunFolder(tmp_path), []
    folder.events.write_text('{"event": "old"}\n')
    watch = _Watch(folder, events.append)
    for piece in ('{"event": "a"}\n{"eve', 'nt": "b"}\n{"torn": \n', '{"event": "c"}\n'):
        with folder.events.open("a") as file:
            file.write(piece)
        assert not watch.ended()
    assert [e["event"] for e in events] == ["a", "b", "c"]


def test_the_last_events_are_passed_on_before_the_end(tmp_path: Path) -> None:
    """Whoever sees the end has seen what came before it."""
    folder, events = RunFolder(tmp_path), []
    watch = _Watch(folder, events.append)
    folder.events.write_text('{"event": "released"}\n')
    folder.result.write_text("{}")
    assert watch.ended()
    assert events == [{"event": "released"}]


def test_quiet_is_asked_about_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without events Flower is asked once per quiet time, which grows; not at every look."""
    clock = [0.0]
    monkeypatch.setattr(flower, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    watch = _Watch(RunFolder(tmp_path))
    asked = []
    for clock[0] in range(200):
        if watch.worried():
            asked.append(clock[0])
    assert asked == [16, 47, 108, 169]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("RunFailed", RunFailed),
        ("DataMismatch", ConfigurationError),
        ("RejectedUpdate", MachineError),
        ("x", MachineError),
    ],
)
def test_a_failure_keeps_its_kind(tmp_path: Path, name: str, kind: type[Exception]) -> None:
    """What the server's side raised is raised here, so that the exit code is the same with either engine."""
    folder = RunFolder(tmp_path)
    folder.failure.write_text(json.dumps({"error": name, "message": "too few sites"}))
    with pytest.raises(kind, match="too few sites"):
        _result(folder)
