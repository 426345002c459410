"""What decides at the end of a step: nobody, a calendar, or the planner.

A policy sees what the product sees: the job, the model in use, and answers of the sites. It is told nothing about the
scenario, and does not see what accuracy is measured on.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from fedretrain.job import Job

if TYPE_CHECKING:
    from server.deciding.plan import Plan

POLICIES = ("never", "schedule", "planner")
EVERY = 2
"""Steps from one retraining of the schedule to the next."""


@dataclass(frozen=True)
class Moment:
    """The end of a step.

    Attributes:
        step: From 0 on.
        at: When it ended.
        job: From the model in use; ``train.since`` is when that was released.
    """

    step: int
    at: datetime
    job: Job


@dataclass(frozen=True)
class Decision:
    """What is to be done.

    Attributes:
        action: In one word (``Record.action``).
        why: In one line.
        job: What is to be run; None for nothing.
        roll_back: Id of a release that is to be in use again; None for none.
        plan: That it carries out, where there is one.
        document: The plan's, as a path below the output folder.
        nbytes: What it cost to decide, of arrays as they travelled.
        seconds: Likewise.
    """

    action: str = "nothing"
    why: str = ""
    job: Job | None = None
    roll_back: str | None = None
    plan: "Plan | None" = None
    document: str = ""
    nbytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Carried:
    """What came of a job that was run, or of going back to a release.

    Attributes:
        run: Its id; empty where nothing was run.
        result: As ``server.run.execute`` gave it; None where the run was given up, or there was none.
        refused: Why it was given up, in one line.
    """

    run: str
    result: dict[str, Any] | None
    refused: str = ""


class Policy(Protocol):
    """One for each world: it may remember."""

    def decide(self, moment: Moment) -> Decision:
        """What is to be done at the end of a step."""

    def learn(self, decision: Decision, carried: Carried) -> None:
        """What came of it."""


class Never:
    """The model in use stays as it is."""

    def decide(self, moment: Moment) -> Decision:  # noqa: ARG002  # whatever it is
        """Nothing."""
        return Decision(why="nobody retrains")

    def learn(self, decision: Decision, carried: Carried) -> None:
        """Nothing to be learnt."""


class Schedule:
    """Retrains every so many steps on what is there, whether or not it is worth it.

    Args:
        every: Steps from one retraining to the next; the first is at the end of step ``every`` - 1.
    """

    def __init__(self, every: int = EVERY) -> None:
        self._every = every

    def decide(self, moment: Moment) -> Decision:
        """The job as it is, when it is time."""
        left = -(moment.step + 1) % self._every
        if left:
            return Decision(why=f"due in {left} steps")
        return Decision(moment.job.train.mode, f"due every {self._every} steps", moment.job)

    def learn(self, decision: Decision, carried: Carried) -> None:
        """The calendar goes on, whatever came of it."""
