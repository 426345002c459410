"""The supervisor leaves nobody behind, whoever dies first."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulations.supervisor import below

from .test_engine import eventually, gone

# A command whose child starts a session of its own and refuses SIGTERM.
CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
COMMAND = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}], start_new_session=True)"


@pytest.fixture
def supervisor() -> Iterator["subprocess.Popen[str]"]:
    call = [sys.executable, "-m", "simulations.supervisor", sys.executable, "-c", COMMAND]
    pipe = subprocess.PIPE
    with subprocess.Popen(call, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
        process.kill()


@pytest.mark.slow
def test_the_end_of_the_input_ends_everybody(supervisor: "subprocess.Popen[str]") -> None:
    """As when the process that started the supervisor is killed: also a grandchild that has gone its own way."""
    pids = below(supervisor.pid)
    assert len(pids) == 2
    assert supervisor.stdin is not None
    supervisor.stdin.close()
    supervisor.wait(15)
    assert all(gone(p) for p in pids)


@pytest.mark.slow
def test_the_end_of_the_command_ends_what_it_started(supervisor: "subprocess.Popen[str]") -> None:
    """The command is killed and its child lives: the supervisor ends that too, and tells how the command ended."""
    command, child = below(supervisor.pid)
    os.kill(command, signal.SIGKILL)
    assert supervisor.wait(15) == 256 - signal.SIGKILL
    assert gone(child)


@pytest.mark.slow
def test_asked_to_stop_the_supervisor_tidies_up(supervisor: "subprocess.Popen[str]") -> None:
    """SIGTERM of the supervisor is no way to lose its children."""
    pids = below(supervisor.pid)
    assert len(pids) == 2
    supervisor.terminate()
    supervisor.wait(15)
    assert eventually(lambda: all(gone(p) for p in pids), 5)
