"""Processes that watch over processes, with real ones."""

import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedretrain import processes
from fedretrain.errors import MachineError
from fedretrain.processes import Child, Supervisor, clean_environment, free_port, how_it_ended, stop_on_signal

SLEEP = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); time.sleep(60)",
]


def eventually(check: Callable[[], bool], within_s: float = 15.0) -> bool:
    deadline = time.monotonic() + within_s
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[list[str]], Child]]:
    """Children that are ended when the test is over."""
    made: list[Child] = []

    def one(argv: list[str]) -> Child:
        made.append(Child(f"child-{len(made)}", argv, tmp_path / f"{len(made)}.log"))
        return made[-1]

    yield one
    for child in made:
        child.stop(0)


def test_a_child_writes_a_log_that_its_owner_alone_can_read(make: Callable[[list[str]], Child]) -> None:
    """Standard output and error go there, and starting twice starts once."""
    child = make([sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"])
    child.start()
    pid = child.pid
    child.start()
    assert child.pid == pid
    assert eventually(lambda: not child.alive)
    assert child.returncode == 3
    assert sorted(child.log.read_text().split()) == ["err", "out"]
    assert child.log.stat().st_mode & 0o777 == 0o600


def test_what_a_child_is_told_over_stdin_is_on_no_command_line(make: Callable[[list[str]], Child]) -> None:
    """That is how a secret reaches it."""
    child = make([sys.executable, "-c", "import sys, time; print(sys.stdin.read(), flush=True); time.sleep(60)"])
    child.start(stdin=b"secret")
    assert eventually(lambda: child.log.read_text().strip() == "secret")
    assert b"secret" not in Path(f"/proc/{child.pid}/cmdline").read_bytes()
    assert b"secret" not in Path(f"/proc/{child.pid}/environ").read_bytes()


def test_stopping_ends_the_stubborn_and_their_children(make: Callable[[list[str]], Child]) -> None:
    """SIGTERM is ignored and there is a grandchild; after the grace both are gone."""
    script = f"import subprocess; p = subprocess.Popen({STUBBORN!r}); print(p.pid, flush=True); p.wait()"
    child = make([sys.executable, "-c", script])
    child.start()
    assert eventually(lambda: "here" in child.log.read_text())
    grandchild = int(child.log.read_text().split()[0])
    child.stop(0.2)
    assert not child.alive
    assert eventually(lambda: not is_alive(grandchild))


def test_a_command_that_is_not_there_is_said_so(make: Callable[[list[str]], Child]) -> None:
    """With the child's name and the command."""
    with pytest.raises(MachineError, match=r"child-0 \(/nowhere/at-all\): No such file"):
        make(["/nowhere/at-all"]).start()


def test_a_log_is_moved_aside_while_the_child_goes_on_writing(make: Callable[[list[str]], Child]) -> None:
    """Two files of the limit at most; the child need not be told."""
    child = make([sys.executable, "-c", "import time\nwhile True: print('x' * 99, flush=True); time.sleep(0.01)"])
    child.start()
    assert eventually(lambda: child.log.exists() and child.log.stat().st_size > 2000)
    child.trim_log(1000)
    assert child.log.with_name("0.log.1").stat().st_size > 2000
    size = child.log.stat().st_size
    assert eventually(lambda: child.log.stat().st_size > size)
    assert child.log.stat().st_size < 10_000


def test_what_ends_is_started_again_with_longer_and_longer_pauses(
    make: Callable[[list[str]], Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.5, 1, 2, ... seconds, ten at most, and short again after a minute of life."""
    now = 0.0
    monkeypatch.setattr(processes.time, "monotonic", lambda: now)
    fate = processes._Fate()
    pauses = []
    for life in (0, 0, 0, 0, 0, 0, 0, 61):
        fate.started(now)
        now += life
        fate.ended(now)
        pauses.append(fate.due - now)
    assert pauses == [0.5, 1, 2, 4, 8, 10, 10, 0.5]


def test_a_supervisor_keeps_its_children_running_and_ends_them(
    make: Callable[[list[str]], Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is killed and is back; one cannot be started and does not hold the other up; all is told in words."""
    monkeypatch.setattr(processes, "FIRST_PAUSE_S", 0.1)
    told: list[tuple[str, str]] = []
    good, bad = make(SLEEP), make(["/nowhere/at-all"])
    stop = threading.Event()
    supervisor = Supervisor([good, bad], on_change=lambda child, words: told.append((child.name, words)))
    kills: list[int] = []

    def interfere() -> None:
        if eventually(lambda: good.alive):
            kills.append(good.pid or 0)
            os.kill(good.pid or 0, signal.SIGKILL)
        eventually(lambda: good.alive and good.pid not in kills)
        stop.set()

    threading.Thread(target=interfere).start()
    supervisor.watch(stop, poll_s=0.05)
    assert not good.alive
    assert good.pid not in kills
    assert [w for n, w in told if n == good.name] == ["started", "was killed by SIGKILL", "started", "stopped"]
    assert any("No such file" in w for n, w in told if n == bad.name)


def test_a_child_can_be_restarted_on_purpose(make: Callable[[list[str]], Child]) -> None:
    """At once, without a pause."""
    child = make(SLEEP)
    supervisor = Supervisor([child])
    supervisor.step()
    first = child.pid
    supervisor.restart(child.name)
    assert child.alive
    assert child.pid != first


def test_nothing_survives_the_sigkill_of_its_supervisor(tmp_path: Path) -> None:
    """A child that calls die_with_parent first is gone with it, and so is what that child started the same way."""
    body = """
        import sys, time, threading
        from pathlib import Path
        from fedretrain.processes import Child, Supervisor, die_with_parent
        die_with_parent()
        depth, folder = int(sys.argv[1]), Path(sys.argv[2])
        (folder / f"pid-{depth}").write_text(str(__import__("os").getpid()))
        if depth:
            argv = [sys.executable, sys.argv[0], str(depth - 1), str(folder)]
            Supervisor([Child("next", argv, folder / f"{depth}.log")]).watch(threading.Event())
        time.sleep(60)
    """
    script = tmp_path / "nest.py"
    script.write_text(textwrap.dedent(body))
    top = Child("top", [sys.executable, str(script), "2", str(tmp_path)], tmp_path / "top.log")
    top.start()
    try:
        paths = [tmp_path / f"pid-{depth}" for depth in (2, 1, 0)]
        assert eventually(lambda: all(p.exists() and p.read_text() for p in paths)), (tmp_path / "top.log").read_text()
        pids = [int(p.read_text()) for p in paths]
        os.kill(pids[0], signal.SIGKILL)
        assert eventually(lambda: not any(map(is_alive, pids)), 5.0)
    finally:
        top.stop(0)


def test_a_process_whose_parent_is_gone_already_ends(tmp_path: Path) -> None:
    """The parent died between starting it and its call of die_with_parent."""
    script = "from fedretrain.processes import die_with_parent; die_with_parent(); print('alive')"
    child = Child("late", ["/usr/bin/env", f"{processes.PARENT}=1", sys.executable, "-c", script], tmp_path / "log")
    child.start()
    assert eventually(lambda: not child.alive)
    assert child.returncode == 1
    assert child.log.read_text() == ""


def test_signals_set_the_event_and_are_remembered() -> None:
    """Ctrl-C and SIGTERM; afterwards the handlers are what they were."""
    stop, before = threading.Event(), signal.getsignal(signal.SIGTERM)
    with stop_on_signal(stop) as received:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)
        assert received == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


def test_flower_asks_nobody_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Telemetry, update check and installation of dependencies are off in every child; ours are on top."""
    monkeypatch.setenv(processes.PARENT, "7")
    env = clean_environment(FLWR_HOME="/somewhere", FLWR_TELEMETRY_ENABLED="0")
    assert env["FLWR_TELEMETRY_ENABLED"] == "0"
    assert env["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert env["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert env["FLWR_HOME"] == "/somewhere"
    assert processes.PARENT not in env


def test_ends_in_words() -> None:
    """An exit code, a signal by its name, a signal without one."""
    assert how_it_ended(2) == "ended with exit code 2"
    assert how_it_ended(-9) == "was killed by SIGKILL"
    assert how_it_ended(-99) == "was killed by signal 99"
    assert free_port() > 0
