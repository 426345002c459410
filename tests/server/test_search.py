"""The search: what may vary, what a trial measures, and that KerasTuner's points are tried once and for all."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedretrain import cli
from fedretrain.errors import ConfigurationError, RunFailed
from fedretrain.job import Job, load_job
from fedretrain.runfolder import RunFolder
from fedretrain.searchspace import placed
from server.search import Place, name_of, search, told, trial_job
from server.trial import run_trial

from .grid import NumpySite, ScriptedGrid
from .judging import JudgingSite, loss_of
from .keras_job import TRUTH, make_job

SEARCH = """
[strategy]
name = "fedavg"
objectives = [ { name = "l2sp", strength = 0.1 } ]
[search]
trials = 5
rounds = 1
[search.space]
"train.optimizer.learning_rate" = { low = 0.1, high = 1.0 }
"strategy.objectives.l2sp.strength" = { choose = [0.0, 1.0] }
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    path = make_job(tmp_path_factory.mktemp("job"), more=SEARCH)
    path.write_text(path.read_text().replace("[train]", '[train]\noptimizer = { name = "sgd", learning_rate = 0.5 }'))
    return load_job(path)


def _space(job: Job, text: str) -> None:
    """Load the job with another line in its space."""
    path = job.model.path.with_name("other.toml")
    path.write_text(job.model.path.with_name("job.toml").read_text() + text + "\n")
    load_job(path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('"train.seed" = { low = 0, high = 9 }', "expected places in model.freeze, .*got 'train.seed'"),
        ('"train.validation_fraction" = { low = 0.1, high = 0.5 }', "expected places in"),
        ('"holdout" = { choose = [1, 2] }', "expected places in"),
        ('"train.batch_size" = { low = 8 }', "expected `low` and `high`, or `choose`"),
        ('"train.batch_size" = { low = 8, high = 4 }', "expected `low` below `high`, got 8 and 4"),
        ('"train.batch_size" = { low = 0, high = 4, log = true }', "expected more than 0 with log = true, got 0"),
        ('"train.batch_size" = { choose = [8] }', "expected two values or more"),
        ('"train.batch_size" = { choose = [8, 9], low = 1 }', "`choose` alone"),
    ],
)
def test_what_may_not_vary_is_refused_with_its_reason(job: Job, line: str, said: str) -> None:
    """What candidates are compared on stays as it is, and a range is one."""
    with pytest.raises(ConfigurationError, match=said):
        _space(job, line)


def test_places_are_found_by_key_number_and_name() -> None:
    """And the tables that were given stay as they are."""
    tables = {"a": {"list": [{"name": "x", "v": 1}, {"name": "y", "v": 2}]}}
    changed = placed(tables, {"a.list.y.v": 5, "a.list.0.v": 6, "a.new": 7})
    assert changed == {"a": {"list": [{"name": "x", "v": 6}, {"name": "y", "v": 5}], "new": 7}}
    assert tables["a"]["list"][1]["v"] == 2
    with pytest.raises(ConfigurationError, match=r"'a.list.z.v': expected one of x, y in place of 'z'"):
        placed(tables, {"a.list.z.v": 1})
    with pytest.raises(ConfigurationError, match=r"expected a table or list 'b' in the job, got none"):
        placed(tables, {"b.c": 1})


def test_a_trial_has_the_searchs_rounds_and_values(job: Job) -> None:
    """[search] is no part of what a job is, nor of a trial; a value the job does not take is refused."""
    part = trial_job(job, {"train.optimizer.learning_rate": 0.25, "strategy.objectives.l2sp.strength": 1.0})
    assert (part.train.rounds, part.search) == (1, None)
    assert part.train.optimizer is not None
    assert part.train.optimizer.settings == {"learning_rate": 0.25}
    assert part.strategy.settings["objectives"] == [{"name": "l2sp", "strength": 1.0}]
    assert (part.train.seed, part.holdout) == (job.train.seed, job.holdout)
    assert job.model_copy(update={"search": None}).digest == job.digest
    with pytest.raises(ConfigurationError, match=r"search.space: train.batch_size = \"many\": train.batch_size: "):
        trial_job(job, {"train.batch_size": "many"})


def _grid(rate: float) -> ScriptedGrid:
    """Sites that go so far of the way to the truth in a round."""

    def update(_round: int, params: Any) -> Any:
        return [(rate * (TRUTH - p)).astype(np.float32) for p in params]

    return ScriptedGrid([JudgingSite(name, 40, update) for name in "abc"])


def test_a_trial_is_judged_by_the_sites_and_releases_nothing(job: Job, tmp_path: Path) -> None:
    """Its loss is the head's at the sites; no holdout is counted as used, there is no registry, and it is made once."""
    folder = RunFolder.create(tmp_path, "trial-001", trial_job(job, {}))
    record = run_trial(folder.load_job(), _grid(1.0), folder)
    assert record["loss"] == pytest.approx(loss_of(TRUTH), rel=1e-6)
    assert (record["accuracy"], record["examples"], record["sites"]) == (pytest.approx(1.0), 9, ["a", "b", "c"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["runs"]
    assert run_trial(folder.load_job(), ScriptedGrid([]), folder) == record


def test_a_trial_that_comes_to_nothing_says_why(job: Job, tmp_path: Path) -> None:
    """Too few sites are no number, and the search may go on."""
    folder = RunFolder.create(tmp_path, "trial-001", trial_job(job, {}))
    empty = {"query.prepare": ("data-empty", "", "at least one example")}
    record = run_trial(folder.load_job(), ScriptedGrid([NumpySite(name, declines=empty) for name in "ab"]), folder)
    assert record["loss"] is None
    assert "at least 2" in record["reason"]


def _try(noted: list[float]) -> Any:
    """Trials without training: the loss is least at a rate of 0.6, and there is none below 0.2."""

    def trial(part: Job, folder: RunFolder) -> dict[str, Any]:
        assert part.train.optimizer is not None
        rate = part.train.optimizer.settings["learning_rate"]
        strength = part.strategy.settings["objectives"][0]["strength"]
        noted.append(rate)
        lost = rate < 0.2
        loss = None if lost else (rate - 0.6) ** 2 + strength
        return {"format": "", "loss": loss, "accuracy": loss, "reason": "diverged" if lost else ""}

    return trial


@pytest.mark.parametrize("method", ["random", "bayesian"])
def test_the_same_points_are_tried_again_and_the_best_is_named(job: Job, tmp_path: Path, method: str) -> None:
    """A failed trial stops nothing; the seed decides, so that a search that broke off goes on with the same points."""
    pytest.importorskip("keras_tuner")
    assert job.search is not None
    wanted = job.model_copy(update={"search": job.search.model_copy(update={"method": method, "trials": 8})})
    noted: list[float] = []
    found = search(wanted, Place.of_simulation(tmp_path / "one"), _try(noted))
    assert len(found["trials"]) == len(noted) == 8
    known = [trial for trial in found["trials"] if trial["loss"] is not None]
    assert found["best"] == min(known, key=lambda trial: trial["loss"])["trial"]
    assert json.loads((tmp_path / "one" / "search.json").read_bytes()) == found
    again: list[float] = []
    search(wanted, Place.of_simulation(tmp_path / "two"), _try(again))
    assert again == noted
    other = wanted.model_copy(update={"train": wanted.train.model_copy(update={"rounds": 7})})
    with pytest.raises(ConfigurationError, match="search of this job, got another"):
        search(other, Place.of_simulation(tmp_path / "one"), _try([]))

    def broken(_part: Job, _folder: RunFolder) -> dict[str, Any]:
        raise ConfigurationError("wrong model")

    with pytest.raises(ConfigurationError, match="wrong model"):
        search(wanted, Place.of_simulation(tmp_path / "three"), broken)
    with pytest.raises(RunFailed, match="none of 8 trials came to a number; the last one: no luck"):
        search(
            wanted,
            Place.of_simulation(tmp_path / "four"),
            lambda *_: {"format": "", "loss": None, "accuracy": None, "reason": "no luck"},
        )


def test_searches_of_one_federation_lie_beside_each_other(job: Job, tmp_path: Path) -> None:
    """Another space is another search; more trials are the same one, which goes on."""
    assert job.search is not None
    more = job.model_copy(update={"search": job.search.model_copy(update={"trials": 9})})
    other = job.model_copy(update={"search": job.search.model_copy(update={"rounds": 2})})
    assert name_of(more) == name_of(job) != name_of(other)
    place = Place.of_federation(tmp_path, job)
    assert (place.file, place.out, place.trial) == (tmp_path / "state" / f"{name_of(job)}.json", tmp_path, name_of(job))


def test_without_keras_tuner_the_command_says_what_to_install(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is tried in another way, and nothing left behind."""
    monkeypatch.setitem(sys.modules, "keras_tuner", None)
    sites = job.model.path.parent / "sites"
    sites.mkdir(exist_ok=True)
    for name in "ab":
        np.savez(sites / f"{name}.npz", x=np.zeros((4, 4), np.float32), y=np.zeros(4, np.int64))
    path = job.model.path.with_name("simulated.toml")
    path.write_text(job.model.path.with_name("job.toml").read_text() + '[simulation]\nsites = "sites/*.npz"\n')
    assert cli.run(["server", "search", str(path), "--out", str(tmp_path / "s")]) == 2
    assert "keras_tuner is not installed; install fedretrain[search]" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_values_are_told_as_they_stand_in_a_job() -> None:
    """Numbers short, lists as lists."""
    assert told({"a.b": 0.123456, "c": ["x"]}) == 'a.b = 0.1235, c = ["x"]'
