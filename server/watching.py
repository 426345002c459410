"""Watching a model: a check at the sites, what it comes to, and the plan that follows; once, or again and again.

Invariants:

- Everything that was found is in the history before anything is decided by it, and a plan before anybody decides about
  it. A check whose watcher died before it could write it down is written down by the next one (``pick_up``).
- Where the sites are does not matter here: a ``Place`` has them asked, and starts runs.
- One watcher at a time works on a folder; a check that was missed is made up once, however many were missed.
"""

import fcntl
import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from fedretrain import atomic
from fedretrain.checks import WatchSection
from fedretrain.errors import ConfigurationError, MachineError, RunFailed
from fedretrain.job import Job
from fedretrain.planning import PlanSection
from fedretrain.runfolder import RunFolder

from .history import History
from .kinds import is_check, mark_check

if TYPE_CHECKING:
    from .checking.document import Check
    from .deciding.plan import Plan
    from .drift.findings import Findings

NAP_S: Final = 20.0
"""A machine that was asleep notices within so many seconds of waking that a check is due."""


class Place(Protocol):
    """Where a job's sites are, and how they are reached."""

    @property
    def out(self) -> Path:
        """The folder of runs, registry and history."""

    def check(self, job: Job, folder: RunFolder) -> "Check":
        """Have the sites asked, to the end; raises FedretrainError."""

    def run(self, folder: RunFolder) -> None:
        """Start a run, or bring it to its end; raises FedretrainError."""


@dataclass(frozen=True)
class Seen:
    """What one look came to."""

    check: "Check"
    findings: "Findings"
    plan: "Plan"


def look(place: Place, job: Job, history: History) -> Seen:
    """One check, what it comes to, and the plan that follows; all is written down.

    Args:
        place: Where the sites are.
        job: As loaded; what is watched is the release in use.
        history: Takes everything.

    Raises:
        FedretrainError: As ``Place.check``.
    """
    pick_up(history, place.out)
    check = place.check(job, new_check(job, place.out))
    findings = record(history, check, job)
    return Seen(check, findings, plan_for(history, job, place.out))


def new_check(job: Job, out: Path) -> RunFolder:
    """The folder of another check."""
    folder = RunFolder.create(out, f"check-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}", job)
    mark_check(folder)
    return folder


def record(history: History, check: "Check", job: Job) -> "Findings":
    """Find what a check says, against the checks before it, and write both down."""
    from .drift.analyse import analyse

    earlier = [one for one in history.checks() if one.check != check.check]
    findings = analyse(check, earlier, job.watch or WatchSection())
    history.add_check(check, findings)
    return findings


def pick_up(history: History, out: Path) -> list[str]:
    """Write down finished checks whose watcher did not live to do it, the oldest first; their ids."""
    found = []
    for path in sorted(out.glob("runs/check-*/check.json")):
        folder = RunFolder(path.parent)
        if is_check(folder) and folder.result.exists() and not history.has_check(folder.run_id):
            record(history, read_check(folder), folder.load_job())
            found.append(folder.run_id)
    return found


def read_check(folder: RunFolder) -> "Check":
    """What a finished check found; raises MachineError, or ConfigurationError where the file is damaged."""
    from .checking.document import Check

    path = folder.root / "check.json"
    with atomic.disk_errors(path, "read"):
        content = path.read_bytes()
    try:
        return Check.from_json(json.loads(content))
    except ValueError:
        raise ConfigurationError(f"{path}: expected JSON as fedretrain wrote it, got a damaged file") from None


def plan_for(history: History, job: Job, out: Path) -> "Plan":
    """What to do now, by everything that is known; it is written down.

    Args:
        history: With a check at least.
        job: As loaded.
        out: The folder of runs and registry.
    """
    from .deciding.gather import costs_of, evidence_of, runs_of
    from .deciding.planner import decide

    settle(history, out)
    evidence = evidence_of(history, job, runs_of(out, history.plans()), datetime.now(UTC))
    plan = decide(evidence, job.plan or PlanSection(), costs_of(evidence.past))
    history.add_plan(plan.to_json(), job.model_dump(mode="json"))
    return plan


def settle(history: History, out: Path) -> None:
    """Score the plans that were carried out to an end since; the scores are kept."""
    from .deciding.plan import Plan
    from .deciding.score import score

    for kept in history.plans():
        if kept.decision is None or kept.decision.decision == "rejected" or kept.score is not None:
            continue
        plan, run = Plan.from_json(kept.plan), kept.decision.run
        result = None if run is None else RunFolder(out / "runs" / run).result
        if plan.action == "roll-back":
            history.add_score(kept.id, score(plan, None).to_json())
        elif result is not None and result.exists():
            with atomic.disk_errors(result, "read"):
                told = score(plan, json.loads(result.read_bytes()))
            history.add_score(kept.id, told.to_json())


# --- again and again ---


@dataclass(frozen=True)
class Clock:
    """The time, and waiting for it."""

    now: Callable[[], float] = time.time
    nap: Callable[[float], None] = time.sleep


def next_check(last: float | None, every: float, now: float) -> float:
    """When the next check is due, in Unix seconds: one period after the last; at once, and once, where that is past.

    Args:
        last: When the last one was made or tried; None where there was none.
        every: The period in seconds.
        now: A clock that was set back delays nothing by more than a period.
    """
    return now if last is None else min(max(now, last + every), now + every)


def keep_looking(
    once: Callable[[], None],
    every: timedelta,
    last: float | None,
    say: Callable[[str], None],
    clock: Clock | None = None,
) -> None:
    """Look whenever it is due, until interrupted; too few sites, or a machine's trouble, is said and costs that look.

    Args:
        once: Makes a check.
        every: The period.
        last: When the last check was made, Unix seconds; None where there was none.
        say: Takes lines for the operator.
        clock: Default: this machine's.
    """
    clock = clock or Clock()
    while True:
        due = next_check(last, every.total_seconds(), clock.now())
        if due > clock.now():
            say(f"next check at {datetime.fromtimestamp(due, UTC):%Y-%m-%d %H:%M:%S} UTC; Ctrl-C ends watching")
        while (left := due - clock.now()) > 0:
            clock.nap(min(left, NAP_S))
        last = clock.now()
        try:
            once()
        except (RunFailed, MachineError) as error:
            say(f"! {error}")


def last_check(history: History) -> float | None:
    """When the last check that is written down was asked, Unix seconds."""
    found = history.checks(1)
    return datetime.fromisoformat(found[-1].at).timestamp() if found else None


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """The only watcher of a folder; raises MachineError where another one works on it."""
    path = out / "state" / "watch.lock"
    atomic.make_folder(path.parent, mode=0o700)
    with atomic.disk_errors(path, "open"):
        file = path.open("ab")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MachineError(
                f"{out}: expected no other watcher, got another 'fedretrain server watch'; use that one, or end it"
            ) from None
        yield
