"""The history of checks and decisions: kept once, decided once, and there after any death."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from fedretrain.errors import ConfigurationError, MachineError
from server import history as module
from server.history import History, history_path

from .watched import a_check, some_findings

ROOT = Path(__file__).parents[2]
WRITER = """
import sys
from pathlib import Path
from server.history import History
with History.open(Path(sys.argv[1])) as history:
    for number in range(100_000):
        history.add_plan({"id": f"{number:08d}", "text": "x" * 20_000})
        history.decide(f"{number:08d}", "approved", "ann", "because", f"run-{number}")
        print(number, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a history is made."""
    return history_path(tmp_path)


def test_what_is_kept_comes_back_in_order(path: Path) -> None:
    """Checks with their findings, the oldest first; a limit leaves the last ones; each is kept once."""
    with History.open(path) as history:
        assert [history.add_check(a_check(n), some_findings(n)) for n in (2, 1, 3)] == [True] * 3
        assert not history.add_check(a_check(1, at="2030-01-01T00:00:00+00:00"), some_findings(1))
    with History.open(path) as history:
        assert history.checks() == [a_check(2), a_check(1), a_check(3)]
        assert history.findings(2) == [some_findings(1), some_findings(3)]
        assert history.has_check("check-3")
        assert not history.has_check("check-4")


def test_a_plan_is_decided_once(path: Path) -> None:
    """The first decision stands, whoever comes second is told who decided, and what runs."""
    with History.open(path) as history:
        assert history.add_plan({"id": "aaaa"}, {"a": "job"})
        assert not history.add_plan({"id": "aaaa", "other": 1})
        history.decide("aaaa", "approved", "ann", "it is time", "plan-aaaa")
        with pytest.raises(ConfigurationError, match=r"plan aaaa: .* got one that was approved by ann .*plan-aaaa"):
            history.decide("aaaa", "rejected", "bob", "no")
        with pytest.raises(ConfigurationError, match="expected a plan that is kept, got 'bbbb'"):
            history.decide("bbbb", "rejected", "bob", "no")
        history.add_score("aaaa", {"gain": 0.5})
        [kept] = history.plans()
    assert kept.plan == {"id": "aaaa"}
    assert kept.job == {"a": "job"}
    assert kept.decision is not None
    assert (kept.decision.decision, kept.decision.who, kept.decision.why, kept.decision.run) == (
        "approved", "ann", "it is time", "plan-aaaa",
    )  # fmt: skip
    assert kept.score == {"gain": 0.5}


def test_it_is_for_its_owner_alone(path: Path) -> None:
    """The file, and those that SQLite puts beside it while it is open, are 0600 whatever the umask."""
    before = os.umask(0)
    try:
        with History.open(path) as history:
            history.add_plan({"id": "aaaa"})
            modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert set(modes) == {"history.db", "history.db-wal", "history.db-shm"}
    assert set(modes.values()) == {0o600}


def test_it_survives_a_kill(path: Path) -> None:
    """What a writer said it wrote is there after SIGKILL, whole; of what was under way there is all or nothing."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, env=environment, text=True)
    assert writer.stdout is not None
    try:
        while int(writer.stdout.readline()) < 30:
            pass
    finally:
        os.kill(writer.pid, signal.SIGKILL)
    said = [30, *map(int, writer.stdout.read().split())]
    writer.wait()
    writer.stdout.close()
    with History.open(path) as history:
        plans = history.plans()
        assert history.add_plan({"id": "after"})
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert [kept.id for kept in plans] == [f"{number:08d}" for number in range(len(plans))]
    assert len(plans) >= said[-1] + 1
    assert all(kept.decision and kept.decision.run == f"run-{int(kept.id)}" for kept in plans[: said[-1] + 1])


def test_two_processes_write_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One waits for the other; who waits in vain is told why, and nothing of theirs is written."""
    monkeypatch.setattr(module, "PATIENCE_S", 0.1)
    with History.open(path) as history, History.open(path) as other:
        other._connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(MachineError, match=r"history\.db: database is locked; .* wait for the process"):
            history.add_plan({"id": "aaaa"})
        other._connection.execute("ROLLBACK")
        assert history.plans() == []


def test_other_files_are_refused(path: Path) -> None:
    """A file that is no history, and one of a later version, are left as they are, with what to do."""
    path.parent.mkdir()
    path.write_bytes(b"not a database at all, but long enough to be taken for one" * 40)
    with pytest.raises(ConfigurationError, match=r"history\.db: expected the history of checks, got .*restore it"):
        History.open(path)
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConfigurationError, match="expected layout 1 or an earlier one, got 99; install"):
        History.open(path)
