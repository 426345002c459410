"""What happened before: past retrainings with what they brought and cost, and which release is in use.

Invariants: nothing is measured, asked or written; what is found follows from the runs' results and event logs, the
verified registry, and the plans that runs were made for.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedretrain.planning import RETRAININGS, UNITS, Unit
from fedretrain.runfolder import RunFolder, read_kept

from .evidence import Past
from .plan import Cost, Plan, Range
from .score import measured, spent

if TYPE_CHECKING:
    from server.audit import Listed
    from server.checking.document import Check
    from server.history import PlanRecord

ONE_RUN: Final = (0.5, 2.0)
"""Between which multiples of a single run's cost another one's is believed to be."""

Clock = Callable[[str, datetime], datetime]
"""Run and time on this machine to the time that counts: a world that is simulated has a time of its own."""


@dataclass(frozen=True)
class Runs:
    """What runs and the registry say.

    Attributes:
        past: Retrainings that ended, oldest first; those that failed are among them.
        release: Id of the release in use; None before the first.
        released_at: When it was released; None for one that was brought in as it is, which learned nothing then.
        previous_release: Id of the release before it; None where there is none.
        sites: That it was trained at; None where it was brought in as it is.
        previous_is_first: Whether the release before was brought in as it is.
    """

    past: tuple[Past, ...] = ()
    release: str | None = None
    released_at: datetime | None = None
    previous_release: str | None = None
    sites: frozenset[str] | None = None
    previous_is_first: bool = False

    def is_of(self, check: "Check") -> bool:
        """Whether a check looked at the model in use."""
        return check.release == self.release or (self.sites is None and check.release is None)

    def is_of_previous(self, check: "Check") -> bool:
        """Whether a check looked at the release before."""
        if self.previous_release is None:
            return False
        return check.release == self.previous_release or (self.previous_is_first and check.release is None)


def runs_of(out: Path, plans: "Sequence[PlanRecord]" = (), clock: Clock = lambda _, at: at) -> Runs:
    """What runs and the registry of an output folder say.

    Args:
        out: The folder that holds ``runs`` and ``registry``.
        plans: Of its history: they say why a run was made.
        clock: Of a simulated world.

    Raises:
        UntrustedRelease: The registry does not verify.
        ConfigurationError: A result is none.
        MachineError: The disk.
    """
    from server.reader import RegistryReader

    past = past_of(out, plans, clock)
    registry = RegistryReader.open(out, lambda: datetime.now(UTC))
    if not registry.exists:
        return Runs(past)
    rows = registry.releases()
    by_id = {row.id: row for row in rows}
    in_use = next((row for row in rows if row.incumbent), None)
    if in_use is None:
        return Runs(past)
    before = by_id.get(str(in_use.lineage.get("parent")))
    return Runs(
        past=past,
        release=in_use.id,
        released_at=None if _is_first(in_use) else clock(in_use.run, datetime.fromisoformat(in_use.published)),
        previous_release=None if before is None else before.id,
        sites=None if _is_first(in_use) else frozenset(in_use.lineage.get("sites", ())),
        previous_is_first=before is not None and _is_first(before),
    )


def _is_first(row: "Listed") -> bool:
    return bool(row.lineage.get("imported"))


def past_of(out: Path, plans: "Iterable[PlanRecord]" = (), clock: Clock = lambda _, at: at) -> tuple[Past, ...]:
    """The retrainings in an output folder, oldest first; raises as ``runs_of``."""
    by_run = {p.decision.run: p for p in plans if p.decision is not None and p.decision.run is not None}
    found = []
    results = {path.parent.name: read_kept(path) for path in sorted((out / "runs").glob("*/result.json"))}
    segments = {part["run_id"] for result in results.values() for part in result.get("segments", ())}
    for run, result in results.items():
        if result.get("outcome") in {"released", "rejected"} and run not in segments:
            found.append((run, _past(RunFolder(out / "runs" / run), result, by_run.get(run), clock)))
    for job in sorted((out / "runs").glob("*/job.json")):
        folder = RunFolder(job.parent)
        if folder.run_id not in results and (failed := _failed(folder, by_run.get(folder.run_id), clock)):
            found.append((folder.run_id, failed))
    return tuple(past for _, past in sorted(found, key=lambda pair: (pair[1].at, pair[0])))


def _past(folder: RunFolder, result: Mapping[str, Any], planned: "PlanRecord | None", clock: Clock) -> Past:
    """A run that came to a verdict."""
    mode = _mode(folder)
    plan = None if planned is None else Plan.from_json(planned.plan)
    mode = str(plan.settings.get("mode", mode)) if plan else mode
    before = plan.evidence.metric if plan else None
    brought, taken = measured(result, mode, before.value if before else None), spent(result)
    released = result["release"] is not None
    return Past(
        at=clock(folder.run_id, datetime.fromtimestamp(folder.result.stat().st_mtime, UTC)),
        action=plan.action if plan else _as_action(mode),
        gain=brought.gain if released else 0.0,
        forgetting=brought.forgetting,
        seconds=taken["seconds"] or 0.0,
        bytes=int(taken["bytes"] or 0),
        site_seconds=taken["site_seconds"] or 0.0,
        kwh=taken["kwh"],
        released=released,
        new_examples=plan.evidence.new_examples if plan else _trained_on(result, mode),
        curve=brought.curve,
        predicted=plan.gain.expected if plan and plan.gain else None,
    )


def _mode(folder: RunFolder) -> str:
    return str(read_kept(folder.job)["train"].get("mode", "continue"))


def _as_action(mode: str) -> str:
    """What a plan calls a mode: going on with all data is a full retraining too (``plan.full_mode``)."""
    return "full" if mode == "continue" else mode


def _trained_on(result: Mapping[str, Any], mode: str) -> int | None:
    """Examples of a run's first round, where the mode trains on new ones alone."""
    if mode != "incremental" or not result["rounds"]:
        return None
    return sum(int(reply["examples"]) for reply in result["rounds"][0]["admitted"])


def _failed(folder: RunFolder, planned: "PlanRecord | None", clock: Clock) -> Past | None:
    """A run that ended without a verdict, as a retraining in vain; None where it goes on or is no retraining."""
    from server.kinds import is_check, is_trial

    if is_check(folder) or is_trial(folder):
        return None
    events = list(folder.read_events())
    if not events or events[-1]["event"] != "failed":
        return None
    rounds = [event for event in events if event["event"] == "round-finished"]
    return Past(
        at=clock(folder.run_id, datetime.fromisoformat(events[-1]["at"])),
        action=str(planned.plan["action"]) if planned else _as_action(_mode(folder)),
        gain=0.0,
        forgetting=None,
        seconds=float(sum(event["seconds"] for event in rounds)),
        bytes=int(sum(event[f"bytes_{kind}"] for event in rounds for kind in ("base", "down", "up"))),
        site_seconds=0.0,
        kwh=None,
        released=False,
        new_examples=None,
    )


def costs_of(past: Sequence[Past]) -> dict[str, Cost]:
    """What retrainings took, by action: the median, and the least and the greatest of them.

    Of one run alone the range is from half of it to twice as much. Actions that never ran are not in it, nor are runs
    that failed.
    """
    ended = [run for run in past if run.seconds and (run.released or run.curve or run.site_seconds)]
    found = {}
    for action in RETRAININGS:
        runs = [run for run in ended if run.action == action]
        if runs:
            found[str(action)] = Cost(**{unit: _range(runs, unit) for unit in UNITS}, runs=len(runs))
    return found


def _range(runs: Sequence[Past], unit: Unit) -> Range | None:
    values = [float(value) for run in runs if (value := getattr(run, unit)) is not None]
    if not values:
        return None
    middle = float(statistics.median(values))
    if len(values) == 1:
        return Range(middle * ONE_RUN[0], middle, middle * ONE_RUN[1])
    return Range(min(values), middle, max(values))
