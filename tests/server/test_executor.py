"""The server's executor with real ServerApps: where the token goes, whose code runs, and what ends with what."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedretrain.processes import Child, module_command
from server import executor as module
from server.executor import Executor
from server.flowerside import Runtime, Task

from .fleet import Link, eventually, make_bundle, make_federation, running

pytestmark = pytest.mark.slow
SAY = "import os, pathlib, sys, time; out = pathlib.Path(context.run_config['word']); "
SLEEP = "out.write_text(str(os.getpid())); time.sleep(300)"


class Stage:
    """A SuperLink and an executor."""

    def __init__(self, link: Link, folder: Path) -> None:
        self.link, self.control, self.folder = link, link.control(), folder
        command = module_command("server.executor", "--folder", link.federation.folder)
        self.child = Child("executor", command, link.federation.log / "executor.log")

    def run(self, body: str, module: str = "probe_app") -> tuple[int, Path]:
        """Start a run whose app does this, ``out`` being the file that is returned."""
        out = self.folder / "out"
        bundle = make_bundle(self.folder / "bundle", SAY + body, module=module)
        return self.control.start_run(bundle, {"word": str(out)}), out

    def started(self) -> tuple[int, int]:
        """A run whose app sleeps, and the app's process."""
        run_id, out = self.run(SLEEP)
        assert eventually(lambda: out.exists() and bool(out.read_text())), self.log()
        return run_id, int(out.read_text())

    def reaches(self, run_id: int, status: str, within_s: float = 60.0) -> bool:
        return eventually(lambda: self.control.run_status(run_id) == status, within_s)

    def log(self) -> str:
        return "".join(path.read_text() for path in sorted(self.link.federation.log.glob("*.log")))


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    with running(make_federation(tmp_path_factory.mktemp("executor") / "federation")) as started:
        yield started


@pytest.fixture
def stage(link: Link, tmp_path: Path) -> Iterator[Stage]:
    found = Stage(link, tmp_path)
    found.child.start()
    yield found
    found.child.stop()


def test_an_app_runs_with_its_bundles_code_and_its_token_in_no_command_line(stage: Stage) -> None:
    """The installed package of the same name is not mixed in; Flower's home is the federation's; nothing installed."""
    run_id, out = stage.run("out.write_text('|'.join([*sys.orig_argv, __file__]))", module="server.app")
    assert stage.reaches(run_id, "finished:completed"), stage.log()
    *command, file = out.read_text().split("|")
    folder = stage.link.federation.folder
    assert command[1:] == module_command("server.serverapp", "--folder", folder)[1:]
    assert Path(file).is_relative_to(stage.link.federation.flower_home)
    assert not list(folder.rglob("pyvenv.cfg"))


def test_a_killed_app_is_reported_at_once(stage: Stage) -> None:
    """Its run is failed within seconds, not when a minute of heartbeats is missed."""
    run_id, pid = stage.started()
    os.kill(pid, signal.SIGKILL)
    assert stage.reaches(run_id, "finished:failed", 10.0), stage.log()
    assert stage.child.alive


def test_an_executor_that_is_told_to_end_ends_its_apps(stage: Stage) -> None:
    """The run is failed, and can be resumed."""
    run_id, pid = stage.started()
    stage.child.stop()
    assert stage.child.returncode == 0
    assert not _is_alive(pid)
    assert stage.reaches(run_id, "finished:failed", 10.0), stage.log()


def test_the_apps_of_a_killed_executor_die_with_it(stage: Stage) -> None:
    """No orphan goes on with the run while a second one starts."""
    _, pid = stage.started()
    assert stage.child.pid
    os.kill(stage.child.pid, signal.SIGKILL)
    assert eventually(lambda: not _is_alive(pid), 5.0)


def test_an_executor_outlives_its_superlink(tmp_path: Path) -> None:
    """Started before there is one, it waits; when one comes, also another, it takes its tasks."""
    federation = make_federation(tmp_path / "federation")
    command = module_command("server.executor", "--folder", federation.folder)
    child = Child("executor", command, federation.log / "executor.log")
    child.start()
    try:
        for name in ("first", "second"):
            with running(federation) as link:
                stage = Stage(link, tmp_path / name)
                (tmp_path / name).mkdir()
                run_id, _ = stage.run("out.write_text('done')")
                assert stage.reaches(run_id, "finished:completed"), stage.log()
        assert child.alive
        assert len((federation.log / "executor.log").read_text().splitlines()) < 20
    finally:
        child.stop()


def test_old_logs_of_apps_are_removed(tmp_path: Path) -> None:
    """The last twenty stay."""
    for i in range(30):
        path = tmp_path / f"serverapp-{i}.log"
        path.write_text("x")
        os.utime(path, (i, i))
    module._remove_old_logs(tmp_path)
    assert {int(p.stem.partition("-")[2]) for p in tmp_path.iterdir()} == set(range(11, 30))


def test_an_app_that_takes_long_to_start_is_kept_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor sends heartbeats, for the app cannot do so itself until it is up."""
    beats: list[int] = []
    child = Child("app", ["sleep", "60"], tmp_path / "log")
    child.start()
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.1)
    executor = Executor.__new__(Executor)
    app = module.App(Task(1, 2, "token"), child)
    runtime = Runtime.__new__(Runtime)
    runtime.heartbeat = lambda task: not beats.append(task.task_id)  # type: ignore[method-assign]
    try:
        for _ in range(3):
            time.sleep(0.15)
            assert executor._look_after(app, runtime)
    finally:
        child.stop(0)
    assert beats == [1, 1, 1]


def test_an_app_whose_run_was_stopped_is_ended(link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that talks to nobody and ignores signals, as in a long computation; the others go on."""
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.5)
    stage = Stage(link, tmp_path)
    run_id, out = stage.run("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP)
    executor = Executor(link.federation)

    def step() -> list[module.App]:
        executor.step()
        return executor.apps

    try:
        assert eventually(lambda: bool(step()) and out.exists() and bool(out.read_text())), stage.log()
        (app,) = executor.apps
        for _ in range(4):
            time.sleep(0.6)
            assert step() == [app]
        stage.control.stop_run(run_id)
        assert eventually(lambda: not step(), 20.0)
        assert app.child.returncode == -signal.SIGKILL
    finally:
        executor.stop()


def test_the_processes_that_stay_do_not_load_tensorflow() -> None:
    """They wait for days; half a gigabyte each would be wasted."""
    code = "import sys, server.executor, server.flowerside; sys.exit(bool({'tensorflow', 'keras'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
