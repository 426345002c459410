"""From checks to findings and plans, and from a decision to a run: in order, once, and only while it is right."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedretrain import atomic
from fedretrain.errors import ConfigurationError, FedretrainError, MachineError, RunFailed
from fedretrain.job import Job, load_job
from fedretrain.planning import PlanSection
from fedretrain.runfolder import RunFolder
from server import decisions, desired, operations, provision, watching
from server.checking.document import Check
from server.deciding.evidence import Evidence
from server.deciding.plan import Plan
from server.decisions import Voice
from server.federation import Federation, Settings
from server.history import History, history_path
from server.kinds import mark_check
from server.watching import Clock, keep_looking, next_check

from .upkit import make_job
from .watched import a_check

pytestmark = pytest.mark.usefixtures("unflushed")
NOW = datetime(2026, 3, 1, tzinfo=UTC)
ANN = Voice("approved", "ann", "it is time")


class Place:
    """Sites that find what they are told to, and runs that are started and never end."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.started: list[str] = []
        self.dies = False

    def check(self, job: Job, folder: RunFolder) -> Check:  # noqa: ARG002  # the protocol's
        return replace(a_check(1), check=folder.run_id)

    def run(self, folder: RunFolder) -> None:
        if self.dies:
            raise KeyboardInterrupt
        self.started.append(folder.run_id)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "out")


@pytest.fixture
def history(place: Place) -> Iterator[History]:
    with History.open(history_path(place.out)) as opened:
        yield opened


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return load_job(make_job(tmp_path))


def a_plan(day: int = 0, action: str = "incremental", **changes: object) -> Plan:
    """One of that day, for the job's own model."""
    settings = {"incremental": {"mode": "incremental"}, "roll-back": {"release": "9" * 64}}.get(action, {})
    plan = Plan(
        action=action, rule="drift", sentence="Age changed.", threshold="", wanted=None, settings=settings, gain=None,
        gain_basis="prior", cost=None, alternatives=(), would_change=(), not_before=None,
        evidence=Evidence(at=NOW + timedelta(days=day)),
    )  # fmt: skip
    return replace(plan, **changes)  # type: ignore[arg-type]


def kept(history: History, job: Job, plan: Plan) -> str:
    history.add_plan(plan.to_json(), job.model_dump(mode="json"))
    return plan.id


# --- when ---


@pytest.mark.parametrize(
    ("last", "now", "due"),
    [
        (None, 100.0, 100.0),  # the first one: at once
        (100.0, 110.0, 160.0),  # in time: a period after the last
        (100.0, 160.0, 160.0),
        (100.0, 1000.0, 1000.0),  # fifteen were missed: once, at once
        (5000.0, 100.0, 160.0),  # the clock was set back: a period at most
    ],
)
def test_when_a_check_is_due(last: float | None, now: float, due: float) -> None:
    """A period of 60 s after the last one, and at once where that is past."""
    assert next_check(last, 60.0, now) == due


class Asleep(Exception):
    """Ends a test of what would go on for ever."""


def test_a_missed_check_is_made_up_once() -> None:
    """A machine that was off for ten periods looks once, then a period later; a failure costs one look, and is said."""
    now, looked, said = [1000.0], [], []

    def nap(seconds: float) -> None:
        now[0] += seconds
        if len(looked) == 2:
            now[0] += 500.0  # the machine is asleep for long
        if len(looked) > 3:
            raise Asleep

    def look() -> None:
        looked.append(now[0])
        if len(looked) == 1:
            raise RunFailed("too few sites")

    with pytest.raises(Asleep):
        keep_looking(look, timedelta(seconds=60), 400.0, said.append, Clock(lambda: now[0], nap))
    assert looked[:2] == [1000.0, 1060.0]
    assert 1560.0 <= looked[2] <= 1580.0  # as soon as it woke
    assert looked[3] == looked[2] + 60.0
    assert "! too few sites" in said


def test_a_mistake_ends_watching() -> None:
    """What only a person can mend is not tried again and again."""

    def look() -> None:
        raise ConfigurationError("watch.bins")

    with pytest.raises(ConfigurationError):
        keep_looking(look, timedelta(seconds=60), None, str)


def test_one_watcher_at_a_time(tmp_path: Path) -> None:
    """A second one is told, and the first one's end lets the next one in."""
    with (
        watching.alone(tmp_path),
        pytest.raises(MachineError, match="expected no other watcher"),
        watching.alone(tmp_path),
    ):
        pass
    with watching.alone(tmp_path):
        pass


# --- what ---


def test_a_look_is_written_down(place: Place, history: History, job: Job) -> None:
    """Check, findings and plan are in the history, in this order, with the job they were made for."""
    seen = watching.look(place, job, history)
    assert [check.check for check in history.checks()] == [seen.check.check]
    assert history.findings() == [seen.findings]
    [plan] = history.plans()
    assert plan.id == seen.plan.id
    assert plan.job == job.model_dump(mode="json")
    assert RunFolder(place.out / "runs" / seen.check.check).load_job() == job


def test_a_check_whose_watcher_died_is_not_lost(place: Place, history: History, job: Job) -> None:
    """The next look writes it down, before its own; one that has not ended is left alone."""
    ended, other = watching.new_check(job, place.out), watching.new_check(job, place.out)
    for folder in (ended, other):
        atomic.write_json(folder.root / "check.json", replace(a_check(0), check=folder.run_id).to_json())
    atomic.write_json(ended.result, {"outcome": "checked"})
    seen = watching.look(place, job, history)
    assert [check.check for check in history.checks()] == [ended.run_id, seen.check.check]


# --- whether ---


def test_an_approved_plan_is_run_once(place: Place, history: History, job: Job) -> None:
    """By a job that is the plan's, in a folder of its own; who decided and why is kept; a second time is refused."""
    plan = kept(history, job, a_plan())
    decision = decisions.carry_out(place, history, plan[:6], ANN)
    assert (decision.decision, decision.who, decision.why) == ("approved", "ann", "it is time")
    assert place.started == [decision.run] == [f"plan-{plan[:12]}"]
    assert RunFolder(place.out / "runs" / place.started[0]).load_job().train.mode == "incremental"
    with pytest.raises(ConfigurationError, match="approved by ann"):
        decisions.carry_out(place, history, plan, ANN)
    with pytest.raises(ConfigurationError, match="approved by ann"):
        decisions.reject(history, plan, "bob", "no")
    assert len(place.started) == 1


def test_whoever_dies_after_the_decision_leaves_one_run(place: Place, history: History, job: Job) -> None:
    """The run is there to be resumed, and approving again starts no other."""
    plan, place.dies = kept(history, job, a_plan()), True
    with pytest.raises(KeyboardInterrupt):
        decisions.carry_out(place, history, plan, ANN)
    place.dies = False
    with pytest.raises(ConfigurationError, match=f"its run is plan-{plan[:12]}"):
        decisions.carry_out(place, history, plan, ANN)
    assert [path.parent.name for path in place.out.glob("runs/*/job.json")] == [f"plan-{plan[:12]}"]


@pytest.mark.parametrize(
    ("plan", "refusal"),
    [
        (a_plan(not_before=datetime(2999, 1, 1, tzinfo=UTC)), "expected to be approved from 2999-01-01 00:00 UTC on"),
        (
            a_plan(evidence=Evidence(at=NOW, release="7" * 64)),
            "the release in use, none, got one for 77",
        ),
        (a_plan(settings={"mode": "fulll"}), "plan .*: incremental: train.mode"),
    ],
)
def test_a_plan_that_is_not_right_is_refused(
    place: Place, history: History, job: Job, plan: Plan, refusal: str
) -> None:
    """And stays undecided."""
    identity = kept(history, job, plan)
    with pytest.raises(ConfigurationError, match=refusal):
        decisions.carry_out(place, history, identity, ANN)
    assert history.plans()[0].decision is None
    assert place.started == []


def test_only_the_latest_plan_is_carried_out(place: Place, history: History, job: Job) -> None:
    """An older one can be rejected, with a reason."""
    old, new = kept(history, job, a_plan(1)), kept(history, job, a_plan(2))
    with pytest.raises(ConfigurationError, match=f"plan {old[:12]}: expected the latest one, {new[:12]}"):
        decisions.carry_out(place, history, old, ANN)
    with pytest.raises(ConfigurationError, match="--why: expected a reason"):
        decisions.reject(history, old, "bob", " ")
    assert decisions.reject(history, old, "bob", "too early").why == "too early"
    with pytest.raises(ConfigurationError, match="beginning of one id, 4 digits or more, got 'abc'"):
        decisions.find(history, "abc")


@pytest.mark.parametrize("action", ["nothing", "watch"])
def test_a_plan_that_does_nothing_is_not_approved(place: Place, history: History, job: Job, action: str) -> None:
    """It is undecided after that, and can be rejected."""
    identity = kept(history, job, a_plan(action=action))
    with pytest.raises(ConfigurationError, match="there is nothing to approve"):
        decisions.carry_out(place, history, identity, ANN)
    assert place.started == []
    assert decisions.reject(history, identity, "bob", "look closer").run is None


def test_a_run_that_ended_is_scored_once(place: Place, history: History, job: Job) -> None:
    """By its result; the score is kept with the plan."""
    plan = kept(history, job, a_plan())
    run = decisions.carry_out(place, history, plan, ANN).run
    result = {
        "run_id": run, "outcome": "rejected", "release": None, "gate": {"holdouts": []}, "rounds": [],
        "bytes": {"total": 1000}, "seconds": {"total": 2.5},
    }  # fmt: skip
    atomic.write_json(place.out / "runs" / str(run) / "result.json", result)
    watching.settle(history, place.out)
    watching.settle(history, place.out)
    score = history.plans()[0].score
    assert score is not None
    assert (score["outcome"], score["costs"]["bytes"]["actual"]) == ("rejected", 1000.0)


# --- in a federation ---


@pytest.fixture
def federation(place: Place) -> Federation:
    made = provision.init(place.out, Settings(name="clinics", address="127.0.0.1:1", listen="127.0.0.1:1"))
    provision.make_kits(made, ["hospital-a"], place.out / "kits")
    return made


def test_checks_are_runs_that_are_told_apart(federation: Federation, job: Job) -> None:
    """One that goes on is listed; one that ended is listed on demand, is finished, and stands in no plan's way."""
    folder = watching.new_check(job, federation.folder)
    desired.ask(folder, "run")
    assert [(row["run_id"], row["check"], row["state"]) for row in operations.runs(federation)] == [
        (folder.run_id, True, "waiting")
    ]
    assert list(decisions.under_way(federation.folder)) == []
    atomic.write_json(folder.result, {"outcome": "checked"})
    assert operations.runs(federation) == []
    [row] = operations.runs(federation, checks=True)
    assert (row["state"], row["exit_code"]) == ("checked", 0)
    with pytest.raises(ConfigurationError, match="is finished"):
        operations.stop(folder)


def test_no_second_run_beside_one(federation: Federation, place: Place, history: History, job: Job) -> None:
    """A plan waits while a run is under way, and says for which; also one that needs no person."""
    desired.ask(RunFolder.create(federation.folder, "by-hand", job), "run")
    plan = kept(history, job, a_plan())
    with pytest.raises(ConfigurationError, match="expected no other run that is under way, got by-hand"):
        decisions.carry_out(place, history, plan, ANN)
    decision, waits = decisions.by_itself(place, history, a_plan(), PlanSection())
    assert decision is None
    assert "got by-hand" in waits
    desired.ask(RunFolder(federation.runs / "by-hand"), "stop")
    decision, _ = decisions.by_itself(place, history, a_plan(), PlanSection())
    assert decision is not None
    assert decision.decision == "auto"


def test_what_may_run_without_a_person(place: Place, history: History, job: Job) -> None:
    """Only what [plan.auto] names; what may not waits, undecided."""
    kept(history, job, a_plan())
    policy = PlanSection.model_validate({"auto": {"actions": ["replay"]}})
    decision, waits = decisions.by_itself(place, history, a_plan(), policy)
    assert (decision, waits) == (None, "incremental is none of plan.auto.actions (replay)")
    assert history.plans()[0].decision is None


def test_a_check_is_started_as_one(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ServerApp checks where the folder is a check's, and trains where it is not; what stops it is written down."""
    from server import app

    done: list[str] = []
    monkeypatch.setattr(app, "check", lambda *_, **__: done.append("check"))
    monkeypatch.setattr(app, "execute", lambda *_, **__: done.append("execute"))
    one, two = RunFolder.create(tmp_path, "one", job), RunFolder.create(tmp_path, "two", job)
    mark_check(one)
    for folder in (one, two):
        app._run(folder, None, None)  # type: ignore[arg-type]
    assert done == ["check", "execute"]

    def too_few(*_: object, **__: object) -> None:
        raise RunFailed("no site answered")

    monkeypatch.setattr(app, "check", too_few)
    with pytest.raises(FedretrainError):
        app._run(one, None, None)  # type: ignore[arg-type]
    assert json.loads(one.failure.read_bytes())["exit_code"] == 4


def test_a_person_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's, or the one that was given; a user without a name is a number."""
    assert decisions.person("Ann of the ward") == "Ann of the ward"
    with pytest.raises(ConfigurationError, match="--by"):
        decisions.person("\n")
    monkeypatch.setattr(decisions.getpass, "getuser", lambda: (_ for _ in ()).throw(KeyError("uid")))
    assert decisions.person(None) == f"user {os.getuid()}"
