"""The planner as a policy: watch, gather, decide, and what the auto limits let run by itself; all of it kept.

Invariants: what decides is the product's own (``server.checking``, ``server.drift``, ``server.deciding``), on what the
sites answered; only the clock is the world's. Checks, plans, decisions and scores stand in the output folder's history,
and each plan as a document in its folder ``plans``.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedretrain import atomic
from fedretrain.checks import WatchSection
from fedretrain.errors import ConfigurationError, RunFailed
from fedretrain.planning import PlanSection
from fedretrain.runfolder import RunFolder
from server.checking.run import check, mark_check
from server.deciding.carry_out import in_use, job_of, needs_a_person
from server.deciding.document import markdown
from server.deciding.gather import costs_of, evidence_of, runs_of
from server.deciding.planner import decide
from server.deciding.score import score
from server.drift.analyse import analyse
from server.history import History, history_path

from .policies import Carried, Decision, Moment
from .product import Product
from .streams import RUN

if TYPE_CHECKING:
    from server.checking.document import Check
    from server.deciding.plan import Plan

PLANS = "plans"
"""Folder of the plans as documents, below the output folder."""
WHO = "simulated world"


def tables(new_labels: Sequence[str]) -> dict[str, Any]:
    """What a job of a world says about watching and planning: which labels may come, what is too bad, and its pace.

    Nine of ten right is the least that is wanted. With a check a month the cool-down is nearly a month, so that it
    matters once a retraining was in vain, which doubles it. Costs are compared by bytes: seconds differ from one
    machine to the next, and plans should not. All else is the default.
    """
    plan = {"metric_below": 0.9, "cool_down": "25d", "compare_by": "bytes"}
    return {"watch": {"labels": list(new_labels)}, "plan": plan}


class Planner:
    """See the module docstring; a context manager that holds the history open.

    Args:
        product: Whose sites are watched.
    """

    def __init__(self, product: Product) -> None:
        self._product = product
        self._history = History.open(history_path(product.out))

    def __enter__(self) -> "Planner":
        return self

    def __exit__(self, *_: object) -> None:
        self._history.close()

    def decide(self, moment: Moment) -> Decision:
        """Watch, and decide by what was found; a check that no site answers decides nothing."""
        try:
            checked = self._watch(moment)
        except (ConfigurationError, RunFailed) as error:
            return Decision("watch", f"no check: {error}")
        plan = self._plan(moment)
        document = self._write(plan, moment.step)
        decision = Decision(
            plan.action, plan.sentence, document=document, nbytes=checked.bytes, seconds=checked.seconds
        )
        if not plan.acts:
            return decision
        held = needs_a_person(plan, _policy(moment), moment.at)
        if held:
            return dataclasses.replace(decision, why=f"{plan.sentence}; {held}")
        if plan.action == "roll-back":
            return dataclasses.replace(decision, plan=plan, roll_back=str(plan.settings["release"]))
        job = job_of(plan, moment.job, in_use(self._product.out, moment.job))
        return dataclasses.replace(decision, plan=plan, job=job)

    def learn(self, decision: Decision, carried: Carried) -> None:
        """Write down that the plan was carried out, and what it was worth."""
        if decision.plan is None:
            return
        run = carried.run or None
        self._history.decide(decision.plan.id, "auto", WHO, "within the job's auto limits", run)
        self._history.add_score(decision.plan.id, score(decision.plan, carried.result).to_json())

    def _watch(self, moment: Moment) -> "Check":
        folder = RunFolder.create(self._product.out, f"check-{moment.step:03d}", moment.job)
        mark_check(folder)
        with self._product.grid(moment.job, folder) as grid:
            found = check(moment.job, grid, folder, since=moment.job.train.since)  # releases are signed in our time
        found = dataclasses.replace(found, at=moment.at.isoformat())
        earlier = self._history.checks()
        self._history.add_check(found, analyse(found, earlier, moment.job.watch or WatchSection()))
        return found

    def _plan(self, moment: Moment) -> "Plan":
        stream = self._product.world.stream
        runs = runs_of(self._product.out, self._history.plans(), lambda run, _: stream.when(run))
        evidence = evidence_of(self._history, moment.job, runs, moment.at)
        plan = decide(evidence, _policy(moment), costs_of(evidence.past))
        self._history.add_plan(plan.to_json(), moment.job.model_dump(mode="json"))
        return plan

    def _write(self, plan: "Plan", step: int) -> str:
        name = f"{PLANS}/{RUN}{step:03d}.md"
        atomic.make_folder(self._product.out / PLANS)
        atomic.write_bytes(self._product.out / name, markdown(plan).encode())
        return name


def _policy(moment: Moment) -> PlanSection:
    return moment.job.plan or PlanSection()
