"""From a plan to a job, or a step back; and what may run without a person."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fedretrain.errors import ConfigurationError
from fedretrain.planning import PlanSection
from server.deciding.carry_out import InUse, in_use, job_of, needs_a_person, of_model, roll_back
from server.deciding.evidence import Evidence
from server.deciding.plan import Cost, Range
from tests.drafts import draft
from tests.signing import open_registry

from .kept import DAY, NOW, job, plan, write_model

pytestmark = pytest.mark.usefixtures("unflushed")
SINCE = "2026-02-01T00:00:00Z"


@pytest.fixture
def model(tmp_path: Path) -> InUse:
    path = tmp_path / "in-use.keras"
    write_model(path, ("InputLayer", "x"), ("Conv2D", "conv[1]"), ("Flatten", "flat"), ("Dense", "y"))
    return InUse("r" * 64, path, {"y": ("0", "1")})


def made(settings: dict[str, Any], action: str, model: InUse, of: Any, **evidence: Any) -> Any:
    known = Evidence(NOW, release="r" * 64, **{"old_examples": 100, **evidence})
    return job_of(plan(action, settings, evidence=known), of, model)


def test_a_plan_changes_the_way_to_retrain_and_nothing_else(tmp_path: Path, model: InUse) -> None:
    """What is new is dated, the model is the one in use, and the rest, holdouts and all, is the job's."""
    watched = job(tmp_path / "m.keras", watch={"bins": 5}, plan={"volume": 9}, train={"local_epochs": 3})

    found = made({"mode": "incremental", "since": SINCE}, "incremental", model, watched)

    assert (found.train.mode, found.train.since.isoformat()) == ("incremental", "2026-02-01T00:00:00+00:00")
    assert (found.model.path, found.train.local_epochs, found.train.rounds) == (model.path, 3, 4)
    assert (found.watch, found.plan, found.holdout) == (None, None, watched.holdout)


@pytest.mark.parametrize(("said", "meant"), [("2026-01-15", "2026-02-01"), ("2026-02-15", "2026-02-15")])
def test_what_is_new_is_what_the_check_took_for_new(tmp_path: Path, model: InUse, said: str, meant: str) -> None:
    """The later of the release and the job's own date."""
    dated = job(tmp_path / "m.keras", train={"mode": "incremental", "since": said})

    found = made({"mode": "incremental", "since": SINCE}, "incremental", model, dated)

    assert found.train.since.isoformat() == f"{meant}T00:00:00+00:00"


def test_without_older_examples_nothing_is_dated(tmp_path: Path, model: InUse) -> None:
    """Sites whose data have no times would have to decline otherwise."""
    settings = {"mode": "incremental", "since": SINCE, "half_life_days": 30}

    found = made(settings, "incremental", model, job(tmp_path / "m.keras"), old_examples=0)

    assert found.train.since is None
    assert "objectives" not in found.strategy.settings


def test_a_replay_has_the_plans_share_and_the_jobs_other_settings(tmp_path: Path, model: InUse) -> None:
    """Stages, which a replay cannot have, are left out, and their rounds stay."""
    replays = job(tmp_path / "m.keras", train={"mode": "replay", "replay": {"share": 0.5, "examples": 77}})
    staged = job(tmp_path / "m.keras", train={"rounds": 4, "stages": [{"rounds": 4}]})
    settings = {"mode": "replay", "since": SINCE, "replay_share": 0.3}

    assert made(settings, "replay", model, replays).train.replay.model_dump() == {
        "share": 0.3,
        "examples": 77,
        "sample": "reservoir",
    }
    found = made(settings, "replay", model, staged)
    assert (found.train.stages, found.train.rounds, found.train.replay.share) == ((), 4, 0.3)


def test_recency_takes_the_place_of_the_jobs_own(tmp_path: Path, model: InUse) -> None:
    """Other objectives stay."""
    objectives = [{"name": "recency", "half_life_days": 7}, {"name": "proximal", "mu": 0.1}]
    watched = job(tmp_path / "m.keras", strategy={"name": "fedavg", "objectives": objectives})

    found = made({"mode": "replay", "since": SINCE, "half_life_days": 30}, "replay", model, watched)

    assert found.strategy.settings["objectives"] == [objectives[1], {"name": "recency", "half_life_days": 30}]


def test_labels_are_added_behind_those_of_the_model_in_use(tmp_path: Path, model: InUse) -> None:
    """By name; one that it knows is not added twice, and the job's own names give way."""
    watched = job(tmp_path / "m.keras", contract={"labels": ["0", "1"]})

    found = made({"mode": "extend", "labels": ["8", "1"]}, "extend", model, watched)

    assert (found.extend.labels, found.extend.old, found.contract.labels) == (("0", "1", "8"), ("0", "1"), None)


def test_labels_without_names_are_called_by_their_positions(tmp_path: Path, model: InUse) -> None:
    """As many as the head has units; of several outputs with labels it is not clear which one is meant."""
    unnamed = InUse(model.release, model.path, {})
    several = InUse(model.release, model.path, {"y": ("a",), "z": ("b",)})

    found = made({"mode": "extend", "labels": ["new"]}, "extend", unnamed, job(tmp_path / "m.keras"))

    assert found.extend.labels == (*map(str, range(10)), "new")
    with pytest.raises(ConfigurationError, match=r"expected a model with one output that has labels, got y, z"):
        made({"mode": "extend", "labels": ["8"]}, "extend", several, job(tmp_path / "m.keras"))


def test_on_a_frozen_base_the_head_alone_is_trained(tmp_path: Path, model: InUse) -> None:
    """Every layer before the last dense one is frozen, by its name and no pattern, beside what the job freezes."""
    watched = job(tmp_path / "m.keras", train={"mode": "incremental"})

    found = made({"mode": "transfer"}, "transfer", model, watched)

    assert (found.train.mode, found.model.freeze) == ("continue", ("conv[[]1]", "flat"))


def test_a_job_of_that_mode_has_its_own_head(tmp_path: Path, model: InUse) -> None:
    """Which layers stay is then the job's affair."""
    head = {"head": [{"name": "Dense", "units": 3, "activation": "softmax"}]}
    watched = job(tmp_path / "m.keras", train={"mode": "transfer"}, transfer=head)

    found = made({"mode": "transfer"}, "transfer", model, watched)

    assert (found.train.mode, found.model.freeze, found.transfer) == ("transfer", (), watched.transfer)


def test_a_plan_of_another_release_is_refused(tmp_path: Path, model: InUse) -> None:
    """What was found about a model is no reason to retrain another."""
    other = InUse("q" * 64, model.path, model.labels)

    with pytest.raises(ConfigurationError, match=r"release rrrrrrrrrrrrrrrr, in use, got release qqqqqqqqqqqqqqqq"):
        made({"mode": "incremental"}, "incremental", other, job(tmp_path / "m.keras"))


def test_a_plan_that_does_not_retrain_is_no_job(tmp_path: Path, model: InUse) -> None:
    """Nor is what the job does not allow."""
    with pytest.raises(ConfigurationError, match="expected one that retrains, got 'watch'"):
        made({}, "watch", model, job(tmp_path / "m.keras"))
    with pytest.raises(ConfigurationError, match=r"replay: train.replay.share: Input should be less than 1"):
        made({"mode": "replay", "replay_share": 1.5}, "replay", model, job(tmp_path / "m.keras"))


def test_the_model_in_use_is_the_registrys(tmp_path: Path) -> None:
    """With the labels of its release, where the job names others; before the first release it is the job's."""
    watched = job(tmp_path / "m.keras", contract={"labels": ["a", "b"]})
    before = in_use(tmp_path, watched)
    release = open_registry(tmp_path).publish(draft())

    after = in_use(tmp_path, watched)

    assert (before.release, of_model(watched, before)) == (None, watched)
    assert (after.release, after.labels) == (release.id, {"y": ("no", "yes")})
    changed = of_model(watched, after)
    assert (changed.model.path, changed.contract.labels) == (release.folder / "model.keras", None)


def test_a_roll_back_is_the_registrys(tmp_path: Path) -> None:
    """The release before is in use again; the same plan a second time is refused."""
    first = open_registry(tmp_path, NOW - DAY).publish(draft("run-1", 1))
    second = open_registry(tmp_path).publish(draft("run-2", 2))
    back = plan("roll-back", {"release": first.id}, evidence=Evidence(NOW, release=second.id))
    watched = job(tmp_path / "m.keras")

    assert roll_back(back, tmp_path, watched).id == first.id
    assert in_use(tmp_path, watched).release == first.id
    with pytest.raises(ConfigurationError, match="expected the model it was made for"):
        roll_back(back, tmp_path, watched)


def auto(**limits: Any) -> PlanSection:
    return PlanSection.model_validate_json(json.dumps({"auto": limits}))


def test_what_may_run_without_a_person_is_within_every_limit() -> None:
    """A cost counts by its upper end, 20 s; where it has a limit and is not known, a person has to look."""
    late = plan(not_before=NOW + timedelta(hours=1))

    assert needs_a_person(plan(), auto(seconds=20), NOW) == ""
    assert "may take 20 seconds, more than plan.auto.seconds, 19" in needs_a_person(plan(), auto(seconds=19), NOW)
    assert "its cost is not known" in needs_a_person(plan(), auto(kwh=1), NOW)
    assert "its cost is not known" in needs_a_person(plan(cost=Cost()), auto(seconds=20), NOW)
    assert "none of plan.auto.actions (full)" in needs_a_person(plan(), auto(actions=["full"]), NOW)
    assert "nothing to carry out" in needs_a_person(plan("watch", {}), auto(), NOW)
    assert needs_a_person(late, auto(), NOW) == "not before 2026-03-01 13:00 UTC"
    assert needs_a_person(late, auto(), NOW + timedelta(hours=1)) == ""


def test_a_roll_back_by_itself_has_to_be_named() -> None:
    """Limits of cost are not about it."""
    back = plan("roll-back", {"release": "r"}, cost=None, gain=Range(0, 0, 0))

    assert "none of plan.auto.actions" in needs_a_person(back, auto(), NOW)
    assert needs_a_person(back, auto(actions=["roll-back"], seconds=1), NOW) == ""
