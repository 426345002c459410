"""Worlds that go on: what changes in them and when, the order of a step, and what policies come to, by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedretrain import cli
from fedretrain.errors import ConfigurationError
from server.history import History, history_path
from simulations import cli_policies
from simulations.benchmarks.environment import Environment
from simulations.comparing.summary import told
from simulations.loop import plots, summary
from simulations.loop.conditions import ABOUT, EXCHANGED, changed, conditions
from simulations.loop.outcome import Course, Record
from simulations.loop.policies import Carried, Decision, Moment, Never, Schedule
from simulations.loop.run import run
from simulations.loop.streams import HISTORY, START, STEP, Step, Stream, shifted
from simulations.loop.worlds import Comparison

SITES = ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("scenario", ABOUT)
def test_a_world_begins_as_the_model_in_use_knows_it_and_then_changes(scenario: str) -> None:
    """Before the change conditions are those of training; after it they differ, in every scenario but one."""
    before = conditions(scenario, -1, 12, SITES)
    assert changed(12) == 3
    if scenario != "seasonal":
        assert all(conditions(scenario, step, 12, SITES) == before for step in (-3, 0, 2))
    assert (conditions(scenario, 3, 12, SITES) != before) == (scenario != "none")
    assert sum(conditions(scenario, 5, 12, SITES).share.values()) == pytest.approx(1)


def test_conditions_by_hand() -> None:
    """Cameras one site after the other; a year's light; two of ten examples new; a third of them at the new site."""
    assert [*conditions("covariate", 4, 12, SITES).strength.values()] == [1, 1, 0, 0, 0]
    assert conditions("seasonal", 6, 24, SITES).strength["a"] == pytest.approx(1)
    assert conditions("seasonal", 12, 24, SITES).strength["a"] == pytest.approx(0)
    often = conditions("new-classes", 3, 12, SITES).frequency
    assert sum(often[8:]) / sum(often) == pytest.approx(0.2)
    joined = conditions("new-site", 3, 12, SITES)
    assert joined.share["e"] == pytest.approx(1 / 3)
    assert joined.strength["e"] == 1
    assert conditions("new-site", 2, 12, SITES).share["e"] == 0


def test_the_same_world_has_the_same_bits_whatever_is_asked_first() -> None:
    """A step does not depend on those before it; another seed is another world."""
    one, again, other = (Stream("covariate", seed, 6) for seed in (1, 1, 2))
    one.base(), one.history(), one.step(0)
    for left, right in ((one.step(4), again.step(4)),):
        assert all(np.array_equal(left.sites[name].part.x, right.sites[name].part.x) for name in one.names)
        assert np.array_equal(left.current.x, right.current.x)
    assert not np.array_equal(other.step(4).current.x, one.step(4).current.x)


def test_no_image_is_measured_on_that_somebody_trains_on() -> None:
    """Pools of images are apart, and all of them are used."""
    pools = [set(pool.tolist()) for pool in Stream("none", 0, 4)._pools.values()]
    assert sum(map(len, pools)) == len(set().union(*pools)) == 1797


def test_what_sites_read_is_of_its_time_and_in_order() -> None:
    """History lies before the start, a step within its month, a site that joins has none of it before."""
    stream = Stream("new-site", 0, 8)
    history, first = stream.history(), stream.step(0)
    assert stream.names[-1] not in history
    assert stream.names[-1] not in first.sites
    assert stream.names[-1] in stream.step(2).sites
    for data in history.values():
        assert (START - HISTORY * STEP).timestamp() <= data.time.min()
        assert data.time.max() < START.timestamp()
        assert (np.diff(data.time) >= 0).all()
    times = first.sites[stream.names[0]].time
    assert START.timestamp() <= times.min()
    assert times.max() < stream.ends(0).timestamp()


def test_names_are_exchanged_where_they_are_and_the_old_holdout_has_neither() -> None:
    """What stays right is all but the two digits; the inputs are the same pictures as where nothing changes."""
    concept, none = (Stream(name, 0, 8).step(3) for name in ("concept", "none"))
    assert np.array_equal(concept.current.x, none.current.x)
    one, other = EXCHANGED
    assert np.array_equal(concept.current.y == one, none.current.y == other)
    assert not np.isin(concept.old.y, EXCHANGED).any()
    assert np.isin(none.old.y, EXCHANGED).any()


def test_an_image_moves_by_a_part_of_a_pixel() -> None:
    """Ink in the middle keeps its sum, and its middle is at most 0.4 pixels from where it was."""
    image = np.zeros((1, 8, 8), np.float32)
    image[0, 3, 4] = 1
    moved = shifted(image, np.random.default_rng(0))
    rows, columns = np.indices((8, 8))
    assert moved.sum() == pytest.approx(1)
    at = [(moved[0] * rows).sum(), (moved[0] * columns).sum()]
    assert at != [3, 4]
    assert np.abs(np.array(at) - [3, 4]).max() <= 0.4


@pytest.mark.parametrize(("scenario", "steps", "said"), [("rain", 6, "--scenario"), ("none", 3, "--steps")])
def test_impossible_worlds_are_refused(scenario: str, steps: int, said: str) -> None:
    """With the option and what was expected."""
    with pytest.raises(ConfigurationError, match=f"{said}: expected"):
        Stream(scenario, 0, steps)


class FakeWorld:
    """A stream that nothing is written of."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def go_on(self, step: int) -> Step:
        return self.stream.step(step)


class FakeProduct:
    """Accuracy 0.5, and 0.1 more with each release; runs come to what they are told to."""

    def __init__(self, results: Sequence[Carried]) -> None:
        self.results, self.releases = list(results), 0
        self.jobs: list[tuple[str, int]] = []

    def job(self, step: int) -> Any:
        return SimpleNamespace(train=SimpleNamespace(mode="replay"), step=step)

    def accuracy(self, part: Any) -> float:
        assert len(part.x)
        return 0.5 + self.releases / 10

    def retrain(self, job: Any, run: str) -> Carried:
        self.jobs.append((run, job.step))
        carried = self.results.pop(0)
        self.releases += bool(carried.result and carried.result["release"])
        return carried

    def roll_back(self, release: str) -> None:
        self.releases -= len(release)


class Remembers(Schedule):
    """A schedule that tells what it was told."""

    def __init__(self) -> None:
        super().__init__(2)
        self.learnt: list[Carried] = []

    def learn(self, decision: Decision, carried: Carried) -> None:
        assert decision.job is not None
        self.learnt.append(carried)


def test_a_release_pays_from_the_next_step_on() -> None:
    """Each step is measured before it is decided; what the gate rejected, or a run given up, pays nothing."""
    released = Carried("1", {"release": "r", "bytes": {"total": 1000}})
    rejected = Carried("2", {"release": None, "bytes": {"total": 500}})
    product, policy = FakeProduct([released, rejected, Carried("3", None, "labels: no")]), Remembers()
    stream = Stream("none", 0, 6)
    records = list(run(FakeWorld(stream), product, policy))
    assert [record.accuracy for record in records] == [0.5, 0.5, 0.6, 0.6, 0.6, 0.6]
    assert [record.retrained for record in records] == [False, True] * 3
    assert [record.released for record in records] == [False, True, False, False, False, False]
    assert [record.nbytes for record in records] == [0, 1000, 0, 500, 0, 0]
    assert records[3].why.endswith("; rejected by the gate")
    assert records[5].why.endswith("; refused: labels: no")
    assert product.jobs == [("step-001", 1), ("step-003", 3), ("step-005", 5)]
    assert stream.when("step-003") == stream.ends(3)
    assert len(policy.learnt) == 3


def test_going_back_is_a_release_and_no_retraining() -> None:
    """Nothing was run, and the next step is measured with the older model."""

    class Back(Never):
        def decide(self, moment: Moment) -> Decision:
            return Decision("roll-back", "worse", roll_back="r") if moment.step == 1 else Decision()

    records = list(run(FakeWorld(Stream("none", 0, 4)), FakeProduct([]), Back()))
    assert [record.accuracy for record in records] == [0.5, 0.5, 0.4, 0.4]
    assert (records[1].released, records[1].retrained) == (True, False)


def course(scenario: str, policy: str, accuracies: Sequence[float], retrained: int, seed: int = 0) -> Course:
    records = [
        Record(n, "2025-01-31", value, retrained=n < retrained, released=n < retrained, nbytes=1_000_000, seconds=2)
        for n, value in enumerate(accuracies)
    ]
    return Course(scenario, policy, seed, records)


COURSES = [
    course("seasonal", "never", [0.9, 0.5], 0),
    course("seasonal", "schedule", [0.9, 0.88], 2),
    course("seasonal", "planner", [0.9, 0.89], 1),
    course("none", "never", [0.9, 0.9], 0),
    course("none", "planner", [0.9, 0.9], 0),
    course("none", "planner", [0.9, 0.8], 0, seed=1),
]
WHAT = Comparison(("seasonal", "none"), ("never", "schedule", "planner"), (0, 1), 4)


def test_rows_and_verdicts_by_hand() -> None:
    """Means over steps and seeds; less than a point apart is equal; the planner is set beside both others."""
    found = summary.grouped(COURSES)
    rows = list(summary.rows(found))
    assert rows[0] == ("seasonal", "never", "70.0", "50.0", "0", "0", "2.00", "4.00")
    assert rows[4][:4] == ("none", "planner", "87.5 ± 3.5", "85.0 ± 7.1")
    seasonal, none = summary.verdicts(found)
    assert seasonal == (
        "seasonal: the planner retrains 1.0 times, is 19.5 points better than never to retrain, is as good (+0.5 "
        "points) as the schedule, with 50% of its retrainings."
    )
    assert none == "none: the planner retrains 0.0 times, is 2.5 points worse than never to retrain."
    made = summary.table(WHAT, COURSES, Environment.now(), cli_policies.command(WHAT))
    assert made.name == "compare-policies"
    assert "| none | planner | 87.5 ± 3.5 |" in made.markdown()
    assert "- none: the planner retrains 0.0 times" in made.markdown()
    assert json.loads(json.dumps(summary.as_json(WHAT, COURSES, Environment.now()), allow_nan=False))["worlds"]
    assert told(WHAT.seeds) == "2 seeds"


def test_the_picture_is_a_png_and_a_line_is_the_mean(tmp_path: Path) -> None:
    """One panel for each scenario, also where a policy is missing."""
    assert plots.line(COURSES[4:]) == pytest.approx([0.9, 0.85])
    pytest.importorskip("matplotlib")
    plots.draw("a title", COURSES, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_below_the_table_makes_it_again() -> None:
    """Options that are the defaults are left out."""
    every = Comparison(tuple(ABOUT), ("never", "schedule", "planner"), (0, 1, 2), 12, 2)
    assert cli_policies.command(every) == "fedretrain compare-policies --seeds 3"
    some = Comparison(("none", "seasonal"), ("never", "planner"), (4,), 24, 3)
    assert cli_policies.command(some) == (
        "fedretrain compare-policies --scenarios none,seasonal --policies never,planner --seeds 1 --seed 4 --steps 24 "
        "--every 3"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["compare-policies", "--scenarios", "none,rain"], "--scenarios: expected some of covariate"),
        (["compare-policies", "--policies", "always"], "--policies: expected some of never"),
        (["compare-policies", "--out", "."], "--out: .: expected a folder that does not exist yet"),
        (["compare-policies", "--plot", "plot.jpg"], "--plot: expected a file that ends in .png"),
        (["compare-policies", "--into", "nowhere.md"], "--into: nowhere.md: no such file"),
        (["simulate", "--scenario", "rain"], "--scenario: expected one of covariate"),
        (["simulate", "--steps", "5"], "--steps: of a world; expected --scenario NAME beside it"),
        (["simulate", "--scenario", "none", "--rounds", "2"], "expected no --rounds beside it"),
        (["simulate", "--scenario", "none", "--out", "."], "expected a folder that does not exist yet"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_begins(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit code 2."""
    assert cli.run(options) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_loop_by_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two digits are new: it is seen, planned, retrained, released, and the next step is better for it; all is kept."""
    out = tmp_path / "out"
    assert cli.run(["simulate", "--scenario", "new-classes", "--steps", "4", "--out", str(out), "--json"]) == 0
    said = capfd.readouterr()
    found = json.loads(said.out.splitlines()[-1])
    steps = found["steps"]
    assert [step["step"] for step in steps] == list(range(4))
    assert not steps[0]["retrained"]
    assert steps[1]["accuracy"] < steps[0]["accuracy"] - 0.1
    released = next(step for step in steps if step["released"])
    assert released["action"] == "extend"
    assert steps[released["step"] + 1]["accuracy"] > steps[1]["accuracy"] + 0.1
    assert all((out / step["document"]).read_text(encoding="utf-8").startswith("# ") for step in steps)
    assert sum(line.startswith("  step ") for line in said.err.splitlines()) == 4
    with History.open(history_path(out)) as history:
        assert len(history.checks()) == 4
        carried_out = [plan for plan in history.plans() if plan.decision is not None]
        assert [plan.score is not None for plan in carried_out] == [True] * found["retrainings"]
