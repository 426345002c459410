"""What was seen and what was decided, check after check: one SQLite file, ``state/history.db`` beside the runs.

Invariants:

- What ``add_...`` and ``decide`` wrote is on the disk when they return, whole, and survives any death of the process
  (write-ahead log, one transaction each); readers see all of it or nothing.
- A check is kept once, by its id, and a plan is decided once: the first decision stands.
- The file is readable by its owner alone. It holds counts as sites gave them, never an example.

Layout, version 1 (``PRAGMA user_version``); times are text in UTC, ISO 8601, bodies canonical JSON::

    checks     id, at, body (``server.checking.document``), findings (``server.drift.findings``)
    plans      id, at, body (``server.deciding.plan``), job (it was made for: ``fedretrain.job``)
    decisions  plan, decision ("approved" | "rejected" | "auto"), who, why, at, run (id, or null: nothing is run)
    scores     plan, body (``server.deciding.score``)

``n`` counts the rows of a table: they are told in the order in which they were added. A later version adds to the
layout by a step in ``_STEPS``; a file of a later version than this software knows is left alone.

One folder has one registry, and so one line of models that is watched: the history is of that.
"""

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from fedretrain import atomic
from fedretrain.digest import canonical_json
from fedretrain.errors import ConfigurationError, MachineError

from .options import to_type

if TYPE_CHECKING:
    from .checking.document import Check
    from .drift.findings import Findings

FILE: Final = "history.db"
PATIENCE_S: Final = 20.0
"""How long a writer waits for another process that is writing."""

Word = Literal["approved", "rejected", "auto"]

_STEPS: Final = (
    """
    CREATE TABLE checks (n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, at TEXT NOT NULL, body TEXT NOT NULL,
                         findings TEXT NOT NULL);
    CREATE TABLE plans (n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, at TEXT NOT NULL, body TEXT NOT NULL,
                        job TEXT);
    CREATE TABLE decisions (plan TEXT PRIMARY KEY REFERENCES plans (id), decision TEXT NOT NULL, who TEXT NOT NULL,
                            why TEXT NOT NULL, at TEXT NOT NULL, run TEXT);
    CREATE TABLE scores (plan TEXT PRIMARY KEY REFERENCES plans (id), body TEXT NOT NULL);
    """,
)
"""What leads from one version of the layout to the next."""
_PLANS: Final = (
    "SELECT plans.id, plans.at, plans.body, plans.job, decision, who, why, decisions.at, run, scores.body"
    " FROM plans LEFT JOIN decisions ON decisions.plan = plans.id LEFT JOIN scores ON scores.plan = plans.id"
    " ORDER BY plans.n DESC LIMIT ?"
)


@dataclass(frozen=True)
class Decision:
    """Who decided about a plan, when and why; ``run`` is the id of what carries it out, if anything does."""

    decision: Word
    who: str
    why: str
    at: str
    run: str | None


@dataclass(frozen=True)
class PlanRecord:
    """A plan and what became of it.

    Attributes:
        id: The plan's.
        at: When it was kept.
        plan: As ``Plan.to_json`` made it.
        job: The job it was made for, as JSON; None where that was not kept.
        decision: None while nobody has decided.
        score: As ``Score.to_json`` made it; None before the run has ended.
    """

    id: str
    at: str
    plan: dict[str, Any]
    job: dict[str, Any] | None
    decision: Decision | None
    score: dict[str, Any] | None


def history_path(out: Path) -> Path:
    """Where the history of a federation's folder, or of a simulation's output, lies."""
    return out / "state" / FILE


class History:
    """One file; several processes may have it open.

    Use::

        with History.open(history_path(folder)) as history:
            history.add_check(check, analyse(check, history.checks(), settings))

    Args:
        connection: To a file whose layout is up to date.
        path: Its path, for messages.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self.path = path

    @property
    def out(self) -> Path:
        """The folder whose history it is, see ``history_path``."""
        return self.path.parent.parent

    @classmethod
    def open(cls, path: Path) -> "History":
        """The history in ``path``, made with its folder where there is none.

        Raises:
            ConfigurationError: The file is no history, is damaged, or was written by a later version of this software.
            MachineError: The disk.
        """
        atomic.make_folder(path.parent, mode=0o700)
        with atomic.disk_errors(path, "open"):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite's other files take this one's mode
        with _explained(path):
            connection = sqlite3.connect(path, timeout=PATIENCE_S, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA foreign_keys = ON")
                _bring_up_to_date(connection, path)
            except BaseException:
                connection.close()
                raise
        return cls(connection, path)

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def __enter__(self) -> "History":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- checks ---

    def add_check(self, check: "Check", findings: "Findings") -> bool:
        """Keep a check with what was found; False where it is there already, and then nothing changes."""
        row = (check.check, check.at, _text(check.to_json()), _text(findings.to_json()))
        with self._transaction() as connection:
            query = "INSERT OR IGNORE INTO checks (id, at, body, findings) VALUES (?, ?, ?, ?)"
            return connection.execute(query, row).rowcount == 1

    def has_check(self, check: str) -> bool:
        """Whether the check with this id is kept."""
        return bool(self._rows("SELECT 1 FROM checks WHERE id = ?", check))

    def checks(self, limit: int | None = None) -> "list[Check]":
        """The checks, oldest first; with ``limit`` the last ones only."""
        from .checking.document import Check

        return [Check.from_json(value) for value in self._bodies("checks", "body", limit)]

    def findings(self, limit: int | None = None) -> "list[Findings]":
        """What was found in each of ``checks``."""
        from .drift.findings import Findings

        return [Findings.from_json(value) for value in self._bodies("checks", "findings", limit)]

    # --- plans ---

    def add_plan(self, plan: Mapping[str, Any], job: Mapping[str, Any] | None = None) -> bool:
        """Keep a plan; False where it is there already.

        Args:
            plan: As ``Plan.to_json`` made it, with its "id".
            job: As JSON, so that the plan can be carried out without the job's file.
        """
        row = (str(plan["id"]), _utc(), _text(plan), None if job is None else _text(job))
        with self._transaction() as connection:
            query = "INSERT OR IGNORE INTO plans (id, at, body, job) VALUES (?, ?, ?, ?)"
            return connection.execute(query, row).rowcount == 1

    def plans(self, limit: int | None = None) -> list[PlanRecord]:
        """The plans, oldest first; with ``limit`` the last ones only."""
        rows = self._rows(_PLANS, _all(limit))
        return [_record(row) for row in reversed(rows)]

    def decide(self, plan_id: str, decision: Word, who: str, why: str, run: str | None = None) -> None:
        """Write down who decided about a plan.

        Args:
            plan_id: Of a plan that is kept.
            decision: What was decided; "auto": within the limits that were set beforehand.
            who: A person, or what decided in their place.
            why: In their words; may be empty.
            run: Id of the run that carries the plan out.

        Raises:
            ConfigurationError: There is no such plan, or it is decided.
            MachineError: The disk.
        """
        with self._transaction() as connection:
            if not connection.execute("SELECT 1 FROM plans WHERE id = ?", (plan_id,)).fetchone():
                raise ConfigurationError(f"{self.path}: expected a plan that is kept, got {plan_id!r}")
            found = connection.execute(
                "SELECT decision, who, at, run FROM decisions WHERE plan = ?", (plan_id,)
            ).fetchone()
            if found:
                raise ConfigurationError(decided(plan_id, self.out, *found))
            row = (plan_id, decision, who, why, _utc(), run)
            connection.execute("INSERT INTO decisions VALUES (?, ?, ?, ?, ?, ?)", row)

    def add_score(self, plan_id: str, score: Mapping[str, Any]) -> bool:
        """Keep what a plan turned out to be worth; False where that is kept already."""
        with self._transaction() as connection:
            if not connection.execute("SELECT 1 FROM plans WHERE id = ?", (plan_id,)).fetchone():
                raise ConfigurationError(f"{self.path}: expected a plan that is kept, got {plan_id!r}")
            row = (plan_id, _text(score))
            return connection.execute("INSERT OR IGNORE INTO scores VALUES (?, ?)", row).rowcount == 1

    # --- SQLite ---

    def _bodies(self, table: str, column: str, limit: int | None) -> list[dict[str, Any]]:
        rows = self._rows(f"SELECT {column} FROM {table} ORDER BY n DESC LIMIT ?", _all(limit))  # noqa: S608  # ours
        return [json.loads(body) for (body,) in reversed(rows)]

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with _explained(self.path):
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All that the block writes, or nothing."""
        with _explained(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def decided(  # noqa: PLR0913, PLR0917  # what a person wants to know
    plan_id: str, out: Path, decision: str, who: str, at: str, run: str | None
) -> str:
    """Why a plan cannot be decided about again, and where to look."""
    what = {"auto": "approved within its limits"}.get(decision, decision)
    more = f"; its run is {run}: {to_type(f'status {run}', out)}" if run else ""
    return f"plan {plan_id}: expected one that is not decided, got one that was {what} by {who} at {at}{more}"


def _bring_up_to_date(connection: sqlite3.Connection, path: Path) -> None:
    """Every step that is left, all or nothing; another process may be at it too."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        [version] = connection.execute("PRAGMA user_version").fetchone()
        _check_version(version, path)
        for step in _STEPS[version:]:
            for statement in filter(str.strip, step.split(";")):
                connection.execute(statement)
        if version < len(_STEPS):
            connection.execute(f"PRAGMA user_version = {len(_STEPS)}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _check_version(version: int, path: Path) -> None:
    if version > len(_STEPS):
        raise ConfigurationError(
            f"{path}: expected layout {len(_STEPS)} or an earlier one, got {version}; install the version of "
            "fedretrain that wrote it, or a later one"
        )


def _all(limit: int | None) -> int:
    """A limit as SQLite takes it."""
    return -1 if limit is None else limit


def _record(row: tuple[Any, ...]) -> PlanRecord:
    identity, at, body, job, decision, who, why, when, run, score = row
    return PlanRecord(
        identity,
        at,
        json.loads(body),
        None if job is None else json.loads(job),
        None if decision is None else Decision(decision, who, why, when, run),
        None if score is None else json.loads(score),
    )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise MachineError(
            f"{path}: {error}; free some space there, or wait for the process that holds it, and start again"
        ) from error
    except sqlite3.DatabaseError as error:
        raise ConfigurationError(
            f"{path}: expected the history of checks, got {error}; restore it from a backup, or move it away to begin "
            "another"
        ) from error


def _text(value: Mapping[str, Any]) -> str:
    return canonical_json(dict(value)).decode()


def _utc() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
