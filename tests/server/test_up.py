"""`server up` with real processes: what it starts stays up, what is wanted happens, and nothing outlives it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedretrain import cli
from fedretrain.runfolder import RunFolder
from server import desired, operations, uplock
from server.federation_file import Settings
from server.keyfile import VARIABLE
from server.provision import init
from server.up import main
from tests.server.upkit import Up, kill, make_federation, make_job, running, starts, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc"),
]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One server for all tests here that do not end it; SIGTERM ends it with 0."""
    with running(make_federation(tmp_path_factory.mktemp("up"))) as server:
        yield server
        assert server.end() == 0
        assert not server.below()


def start_run(up: Up, tmp_path: Path, name: str) -> RunFolder:
    """A run that is at work."""
    run = operations.retrain(up.federation, make_job(tmp_path), name)
    wait_for((run.root / "pid").exists)
    return run


def app_of(run: RunFolder) -> int:
    """Process id of the run's ServerApp."""
    return int(wait_for(lambda: (run.root / "pid").exists() and (run.root / "pid").read_text()))


def finish(up: Up, run: RunFolder) -> None:
    """Let the app end with a result."""
    (run.root / "go").touch()
    wait_for(run.result.exists)
    wait_for(lambda: starts(run.root)[-1]["ended"])


def state(up: Up, run: RunFolder) -> str:
    return str(operations.run(up.federation, run)["state"])


def test_members_may_connect_and_everything_is_told(up: Up, capsys: pytest.CaptureFixture[str]) -> None:
    """The roster's member is registered with SuperLink; status names the processes; a second `up` says who is first."""
    wait_for(lambda: "hospital-a may connect" in up.said)
    folder = str(up.federation.folder)
    assert cli.run(["server", "status", "--folder", folder]) == 0
    said = capsys.readouterr().out
    assert all(f"{name}: process {up.child(name)}" in said for name in ("superlink", "executor", "gateway"))
    assert cli.run(["server", "up", "--folder", folder]) == 1
    assert f"running already (process {up.process.pid})" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ServerApp", "executor", "superlink", "gateway"])
def test_a_killed_process_is_started_again_and_the_run_goes_on(up: Up, tmp_path: Path, name: str) -> None:
    """SIGKILL of any process below `up`: it is back, and the run comes to its end, started at most twice."""
    run = start_run(up, tmp_path, f"killed-{name}")
    before = app_of(run)
    victim = before if name == "ServerApp" else up.child(name)
    kill(victim)
    wait_for(lambda: victim not in up.below())
    if name in {"ServerApp", "executor"}:
        wait_for(lambda: (run.root / "pid").exists() and app_of(run) != before)
        assert len(starts(run.root)) == 2
    else:
        wait_for(lambda: up.child(name))
        assert app_of(run) == before
    finish(up, run)
    assert state(up, run) == "rejected"


def test_a_run_is_stopped_and_gone_on_with(up: Up, tmp_path: Path) -> None:
    """`stop` ends the run's process and leaves it stopped; `resume` starts it again."""
    run = start_run(up, tmp_path, "stopped")
    app = app_of(run)
    operations.stop(run)
    wait_for(lambda: state(up, run) == "stopped" and app not in up.below())
    (run.root / "pid").unlink()
    operations.resume(run)
    assert app_of(run) != app
    finish(up, run)


def test_a_failure_for_a_person_stays(up: Up, tmp_path: Path) -> None:
    """Too few sites end the run with the reason and exit code 4, and nothing starts it again but its operator."""
    run = start_run(up, tmp_path, "failed")
    (run.root / "go").write_text("RunFailed")
    wait_for(lambda: state(up, run) == "failed")
    value = operations.run(up.federation, run)
    assert (value["reason"], value["exit_code"]) == ("as told", 4)
    assert len(starts(run.root)) == 1
    operations.resume(run)
    app_of(run)
    finish(up, run)


def test_two_runs_do_not_mix(up: Up, tmp_path: Path) -> None:
    """Two runs at once have a process, a folder and an end of their own."""
    one, two = start_run(up, tmp_path, "one"), start_run(up, tmp_path, "two")
    assert app_of(one) != app_of(two)
    finish(up, two)
    assert (state(up, one), state(up, two)) == ("running", "rejected")
    finish(up, one)


def test_nothing_outlives_a_killed_supervisor_and_the_next_start_goes_on(tmp_path: Path) -> None:
    """SIGKILL of `up` leaves no process; the next one resumes the run; Ctrl-C ends it with 130."""
    federation = make_federation(tmp_path)
    with running(federation) as first:
        run = start_run(first, tmp_path, "long")
        assert len(first.below()) == 4
        first.end(signal.SIGKILL)
        wait_for(lambda: not first.below(), 10)
        assert operations.run(federation, run)["state"] == "waiting"
        (run.root / "pid").unlink()
    with running(federation) as second:
        app_of(run)
        finish(second, run)
        assert len(starts(run.root)) == 2
        assert second.end(signal.SIGINT) == 130
        assert not second.below()
    assert uplock.running(federation.up_lock) is None


def test_a_gateway_that_cannot_listen_ends_it_with_the_reason(tmp_path: Path) -> None:
    """Where the port is taken, `up` gives up after a few tries, names port and file, and leaves nothing behind."""
    import socket

    federation = make_federation(tmp_path)
    with socket.create_server((federation.settings.host, federation.settings.port)):
        up = Up(federation)
        assert up.process.wait(60) == 1
    assert f"cannot listen on 127.0.0.1:{federation.settings.port}" in up.said.splitlines()[-1]
    assert not up.below()


@pytest.mark.parametrize("how", ["option", "environment"])
def test_its_processes_find_the_passphrase_wherever_they_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A relative path is made absolute before anything is started; SuperLink, for one, works in another folder."""
    seen = []
    monkeypatch.setattr("server.up.flower_home", lambda _home: None)
    monkeypatch.setattr("server.up.Up.run", lambda *_: seen.append(os.environ[VARIABLE]))
    (tmp_path / "secret").write_bytes(b"correct horse")
    (tmp_path / "secret").chmod(0o600)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "secret")
    init(tmp_path / "fed", Settings(name="clinics", address="127.0.0.1:1", listen="127.0.0.1:1"))
    if how == "option":
        monkeypatch.setenv(VARIABLE, "")
    assert main(tmp_path / "fed", Path("secret") if how == "option" else None) == 0
    assert seen == [str(tmp_path / "secret")]


def test_wishes_survive_without_a_server(tmp_path: Path) -> None:
    """Without `up` a run waits, and says so."""
    federation = make_federation(tmp_path)
    run = operations.retrain(federation, make_job(tmp_path), "early")
    assert operations.run(federation, run)["state"] == "waiting"
    lines, value = operations.asked(federation, run, "asked for")
    assert "server up" in lines[-1]
    assert value["server_up"] is False
    assert desired.read_starts(run) == ()
    assert not list(run.state.iterdir())
