"""Who decides about a plan, and what follows: it is approved and carried out, or rejected with a reason.

Invariants:

- A plan is decided once. It is carried out only while it is the latest one, is due, the release it was made for is in
  use, and no other run is under way.
- The run's folder is made first, then the decision is written down, then the run is started: whoever dies in between
  leaves a run that can be resumed by hand, and never two.
"""

import getpass
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedretrain.errors import ConfigurationError
from fedretrain.job import Job
from fedretrain.planning import PlanSection
from fedretrain.runfolder import RunFolder

from .history import Decision, History, PlanRecord, Word, decided
from .options import to_type
from .watching import Place, settle

if TYPE_CHECKING:
    from .deciding.plan import Plan

SHORTEST: Final = 4
"""Digits of a plan's id by which it may be named."""
SHORT: Final = 12
"""Digits of a plan's id that a person sees."""
_IDLE: Final = {"nothing": "do nothing", "watch": "go on watching"}


@dataclass(frozen=True)
class Voice:
    """What is said about a plan, by whom, and why."""

    word: Word
    who: str
    why: str = ""


def person(by: str | None) -> str:
    """Who decides: the name that was given, or that of the user of this machine; raises ConfigurationError."""
    if by is not None and not (by.strip() and by.isprintable()):
        raise ConfigurationError(f"--by: expected a name, got {by!r}")
    try:
        return by or getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in a container
        return f"user {os.getuid()}"


def find(history: History, identity: str | None = None) -> PlanRecord:
    """A plan by the beginning of its id, or the latest one; raises ConfigurationError where there is none."""
    plans = history.plans(1 if identity is None else None)
    if not plans:
        raise ConfigurationError(
            f"{history.path}: expected a plan, got none; {to_type('watch JOB.toml', history.out)} makes one"
        )
    if identity is None:
        return plans[-1]
    found = [kept for kept in plans if kept.id.startswith(identity)] if len(identity) >= SHORTEST else []
    if len(found) != 1:
        known = ", ".join(kept.id[:SHORT] for kept in plans[-5:])
        raise ConfigurationError(
            f"plan: expected the beginning of one id, {SHORTEST} digits or more, got {identity!r}; the last are {known}"
        )
    return found[0]


def carry_out(place: Place, history: History, identity: str, voice: Voice) -> Decision:
    """Decide for a plan and have it done.

    Args:
        place: Where its run goes on.
        history: Has the plan.
        identity: The plan's id, or its beginning.
        voice: "approved", or "auto".

    Raises:
        ConfigurationError: It is decided, is not the latest one, asks for nothing, is not due, was made for another
            release, or a run is under way.
        FedretrainError: As ``Place.run``.
    """
    from .deciding import carry_out as act
    from .deciding.plan import Plan

    kept = find(history, identity)
    plan = Plan.from_json(kept.plan)
    if kept.job is None:
        raise ConfigurationError(
            f"plan {kept.id[:SHORT]}: expected one that was kept with its job; {_another(place.out)}"
        )
    job = Job.model_validate_json(json.dumps(kept.job))
    model = act.in_use(place.out, job)
    _check_current(history, kept, plan, model.release, place.out)
    folder = None
    if plan.action != "roll-back":
        folder = RunFolder.create(place.out, f"plan-{plan.id[:SHORT]}", act.job_of(plan, job, model))
    history.decide(kept.id, voice.word, voice.who, voice.why, None if folder is None else folder.run_id)
    if plan.action == "roll-back":
        act.roll_back(plan, place.out, job)
    if folder is not None:
        place.run(folder)
    settle(history, place.out)
    return _decision(history, kept.id)


def by_itself(place: Place, history: History, plan: "Plan", policy: PlanSection) -> tuple[Decision | None, str]:
    """Carry a plan out without a person, where the job's limits allow it: the decision, or why it waits for one.

    A plan that cannot be carried out, or not yet, waits; whoever watches goes on watching.

    Args:
        place: Where its run goes on.
        history: Has the plan.
        plan: The latest.
        policy: The job's [plan].

    Raises:
        FedretrainError: As ``Place.run``; it is decided then.
    """
    from .deciding.carry_out import needs_a_person

    if waits := needs_a_person(plan, policy, datetime.now(UTC)):
        return None, waits
    try:
        return carry_out(place, history, plan.id, Voice("auto", person(None), "within the limits of plan.auto")), ""
    except ConfigurationError as error:
        if find(history, plan.id).decision is not None:
            raise
        return None, str(error)


def reject(history: History, identity: str, who: str, why: str) -> Decision:
    """Decide against a plan; raises ConfigurationError where it is decided, or no reason is given."""
    if not why.strip():
        raise ConfigurationError("--why: expected a reason, got none; whoever reads the plan later will ask for it")
    kept = find(history, identity)
    history.decide(kept.id, "rejected", who, why)
    return _decision(history, kept.id)


def _check_current(history: History, kept: PlanRecord, plan: "Plan", release: str | None, out: Path) -> None:
    """Raise ConfigurationError where a plan may not be carried out, or not any more."""
    short, another = kept.id[:SHORT], _another(out)
    if kept.decision is not None:
        d = kept.decision
        raise ConfigurationError(decided(short, out, d.decision, d.who, d.at, d.run))
    if (latest := find(history).id) != kept.id:
        raise ConfigurationError(
            f"plan {short}: expected the latest one, {latest[:SHORT]}; see: {to_type('plan', out)}"
        )
    if release != plan.evidence.release:
        has, of = ((one or "none")[:16] for one in (release, plan.evidence.release))
        raise ConfigurationError(
            f"plan {short}: expected one for the release in use, {has}, got one for {of}; {another}"
        )
    if not plan.acts:
        raise ConfigurationError(
            f"plan {short}: there is nothing to approve, as it is to {_IDLE[plan.action]}; reject it, or {another}"
        )
    if plan.not_before is not None and not plan.due(datetime.now(UTC)):
        at = f"{plan.not_before:%Y-%m-%d %H:%M} UTC"
        raise ConfigurationError(f"plan {short}: expected to be approved from {at} on; approve it then, or {another}")
    if (going_on := next(under_way(out), None)) is not None:
        raise ConfigurationError(
            f"plan {short}: expected no other run that is under way, got {going_on}; wait for its end, then {another}"
        )


def _another(out: Path) -> str:
    return f"make another: {to_type('plan JOB.toml', out)}"


def under_way(out: Path) -> Iterator[str]:
    """Ids of a federation's runs that are asked for and have not ended; checks are none of them."""
    from . import operations
    from .federation import Federation, is_federation

    if is_federation(out):
        rows = operations.runs(Federation.open(out))
        yield from (str(row["run_id"]) for row in rows if row["state"] not in operations.ENDED and not row["check"])


def _decision(history: History, identity: str) -> Decision:
    found = find(history, identity).decision
    if found is None:
        raise ConfigurationError(f"{history.path}: expected a decision about plan {identity[:SHORT]}, got none")
    return found
