"""The engine ``flower``: a SuperLink of our own that runs the app, reports what it writes, and leaves nobody behind."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedretrain.allowlist import CALLED_FROM
from fedretrain.bundle import stage_app
from fedretrain.errors import ConfigurationError, MachineError, RunFailed
from fedretrain.runfolder import RunFolder
from simulations import flower
from simulations.flower import _BEGIN_S, _follow, _result, _Watch, run_flower
from simulations.superlink import LEASE_S, SuperLink
from simulations.supervisor import below

from .test_engine import eventually, gone


@dataclass
class Link:
    """A SuperLink in a chosen state."""

    alive: bool = True
    over: bool = False
    taken: bool = False
    living: list[set[bytes]] = field(default_factory=list)  # at each look; the last one stays
    log: Path = Path("flower.log")

    def launches(self) -> set[bytes]:
        return (self.living.pop(0) if len(self.living) > 1 else self.living[0]) if self.living else set()

    def finished(self, _run: str) -> bool:
        return self.over

    def take_log(self, _run: str) -> None:
        self.taken = True

    def tail(self) -> str:
        return "; see the log" * self.taken


@pytest.mark.parametrize("link", [Link(alive=False), Link(over=True)])
def test_a_run_that_ends_without_a_word_is_the_machines_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: Link
) -> None:
    """SuperLink is gone, or holds the run for finished, and there is no result: the log is completed and named."""
    monkeypatch.setattr(flower, "_QUIET_S", 0.0)
    with pytest.raises(MachineError, match="ended the run without a result; see the log"):
        _follow(link, "1", _Watch(RunFolder(tmp_path)))  # type: ignore[arg-type]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_POLL_S", "_LOOK_S", "_TELL_S"):
        monkeypatch.setattr(flower, name, 0.0)


@pytest.mark.usefixtures("impatient")
def test_a_process_that_ends_before_the_run_begins_is_noticed(tmp_path: Path) -> None:
    """Flower itself would wait until the process's lease is over."""
    link = Link(living=[set(), {b"a"}, set(), {b"a"}, set()])
    with pytest.raises(MachineError, match="process ended before the run began; see the log"):
        _follow(link, "1", _Watch(RunFolder(tmp_path)))  # type: ignore[arg-type]


@pytest.mark.usefixtures("impatient")
def test_a_process_that_is_started_twice_is_noticed(tmp_path: Path) -> None:
    """The first one is refused from then on, and there would be more and more of them."""
    link = Link(living=[{b"a"}, {b"a", b"b"}])
    with pytest.raises(MachineError, match=r"started the run's process again, .* less busy; see flower\.log$"):
        _follow(link, "1", _Watch(RunFolder(tmp_path)))  # type: ignore[arg-type]


@pytest.mark.usefixtures("impatient")
def test_a_run_that_does_not_begin_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user is told once that it takes long, and where the log is; then how it ended, and what to do."""
    monkeypatch.setattr(flower, "_BEGIN_S", 0.2)
    events: list[dict[str, Any]] = []
    with pytest.raises(MachineError, match=r"not begun the run within .* can be resumed .*; see flower\.log$"):
        _follow(Link(living=[{b"a"}]), "1", _Watch(RunFolder(tmp_path), events.append))  # type: ignore[arg-type]
    assert [(e["event"], "see flower.log" in e["text"]) for e in events] == [("warning", True)]


@pytest.mark.usefixtures("impatient")
def test_a_run_that_has_begun_may_be_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the beginning is limited; how long a round takes is the caller's affair."""
    monkeypatch.setattr(flower, "_BEGIN_S", 0.1)
    watch = _Watch(RunFolder(tmp_path), timeout=0.4)
    watch.folder.events.write_text('{"event": "run-started"}\n')
    with pytest.raises(MachineError, match="no result in time"):
        _follow(Link(living=[{b"a"}]), "1", watch)  # type: ignore[arg-type]


def test_a_run_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    """The time limit is the caller's; what there is can be resumed."""
    with pytest.raises(MachineError, match="no result in time; it can be resumed"):
        _follow(Link(), "1", _Watch(RunFolder(tmp_path), timeout=0.1))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLWR_HOME", "/nowhere")  # a researcher's own, which is not to be used
        link = SuperLink(tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("logs") / "log")
    with link:
        yield link


@pytest.mark.slow
def test_superlink_works_in_an_empty_folder(link: SuperLink) -> None:
    """Flower imports the app from where it works, so no checkout may lie there, and its home is its own."""
    pids = below(link.pid)
    assert len(pids) >= 2
    for pid in pids:
        assert os.listdir(f"/proc/{pid}/cwd") == []  # noqa: PTH208  # a link of the kernel's
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert f"FLWR_HOME={link._home}".encode() in environment
        assert f"{CALLED_FROM}={Path.cwd()}".encode() in environment  # where the user's modules are


@pytest.mark.slow
def test_a_clusters_actors_find_the_users_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have Flower's path: where the command was called comes last, behind all that is installed."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.chdir(tmp_path)
    link = SuperLink(tmp_path, tmp_path / "log")
    try:
        environment = eventually(Path(f"/proc/{link.pid}/environ").read_bytes)  # empty while the process begins
    finally:
        link.end()
    [path] = [e for e in environment.split(b"\0") if e.startswith(b"PYTHONPATH=")]
    assert os.fsdecode(path).split(os.pathsep)[-2:] == [sys.path[-1], str(tmp_path)]


@pytest.mark.slow
def test_flowers_refusal_is_said(link: SuperLink, tmp_path: Path) -> None:
    """What ``flwr run`` answers when it does not take the app is in the error."""
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    with pytest.raises(MachineError, match=r"^flwr run: Invalid Flower App .*\n.*version"):
        link.run(tmp_path, {}, {})


@pytest.mark.slow
def test_flower_says_whether_a_run_is_over(link: SuperLink, tmp_path: Path) -> None:
    """A run that has just been started is not finished; one that was stopped is, although it has no result."""
    run = link.run(stage_app(tmp_path), {"run": str(tmp_path / "it's here")}, {"num-supernodes": 2})
    assert not link.finished(run)
    link._call("stop", run, "simulation")
    assert link.finished(run)


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


@pytest.fixture
def slow_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process of a run takes seconds before it does anything, as on a busy machine."""
    late = "import sys, time\nif any(a.endswith('flwr-simulation') for a in sys.orig_argv): time.sleep(6)\n"
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "sitecustomize.py").write_text(late)
    monkeypatch.syspath_prepend(str(tmp_path / "late"))


def launch(link: SuperLink, tmp_path: Path) -> str:
    return link.run(stage_app(tmp_path / "app"), {"run": str(tmp_path)}, {"num-supernodes": 2})


@pytest.mark.slow
@pytest.mark.usefixtures("slow_start")
def test_a_slow_start_is_one_process(tmp_path: Path) -> None:
    """It is started once, however long its imports take, and Flower goes on with it."""
    launches: set[bytes] = set()
    with SuperLink(tmp_path, tmp_path / "log") as link:

        def status() -> str:
            [run] = link._call("ls", "simulation")["runs"]
            launches.update(link.launches())
            return str(run["status"])

        launch(link, tmp_path)
        eventually(lambda: status() == "starting")
        eventually(lambda: status() not in {"pending", "starting"}, 60)
    assert len(launches) == 1
    assert LEASE_S > _BEGIN_S  # so that it is so until the run is given up


@pytest.mark.slow
@pytest.mark.usefixtures("slow_start")
def test_a_run_whose_processes_are_refused_is_given_up_without_a_rest(tmp_path: Path) -> None:
    """Flower starts a process again when its lease is over: what the lease is for. All of them are ended."""
    with SuperLink(tmp_path, tmp_path / "log", lease_s=1) as link:
        run = launch(link, tmp_path)
        with pytest.raises(MachineError, match="started the run's process again"):
            _follow(link, run, _Watch(RunFolder(tmp_path), timeout=60))
        pids = below(link.pid)
        assert len(link.launches()) > 1
    assert all(gone(p) for p in pids)


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
    ("name", "code", "kind"),
    [
        ("RunFailed", 4, RunFailed),
        ("DataMismatch", 2, ConfigurationError),
        ("ValueError", 1, MachineError),
        ("annotations", 1, MachineError),
    ],
)
def test_a_failure_keeps_its_kind(tmp_path: Path, name: str, code: int, kind: type[Exception]) -> None:
    """What the server's side raised is raised here, so that the exit code is the same with either engine."""
    folder = RunFolder(tmp_path)
    folder.failure.write_text(json.dumps({"error": name, "exit_code": code, "message": "too few sites"}))
    with pytest.raises(kind, match="too few sites") as raised:
        _result(folder)
    assert type(raised.value) is kind


@pytest.mark.parametrize(
    ("address", "kind", "said"),
    [
        ("auto", ConfigurationError, "expected HOST:PORT of the cluster's head, .* got 'auto'"),
        ("127.0.0.1:9", MachineError, "no Ray cluster answers at 127.0.0.1:9"),
        ("127.0.0.1:99999", MachineError, "no Ray cluster answers at 127.0.0.1:99999"),
    ],
)
def test_a_cluster_that_is_not_there_is_said_at_once(
    address: str, kind: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is started; Ray would look for it for a minute."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(kind, match=f"^RAY_ADDRESS: {said}"):
        run_flower(RunFolder(tmp_path), 2, 1)
