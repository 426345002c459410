"""The job file: what it accepts, and that a mistake is named in one line."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.errors import ConfigurationError
from fedretrain.job import Job, load_job, parse_job, site_files

MINIMAL: dict[str, Any] = {
    "model": {"path": "base.keras"},
    "holdout": [{"name": "old", "path": "old.npz"}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("base.keras", "old.npz"):
        (tmp_path / name).touch()
    return tmp_path


def parsed(folder: Path, **tables: Any) -> Job:
    return parse_job(MINIMAL | tables, folder / "job.toml")


def refusal(folder: Path, **tables: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parsed(folder, **tables)
    return str(caught.value).replace(f"{folder}/job.toml: ", "")


def test_every_section_is_read(folder: Path) -> None:
    """A full job file is read into one value with absolute paths."""
    (folder / "job.toml").write_text(
        """
        [model]
        path = "base.keras"
        freeze = ["conv*"]
        [train]
        rounds = 3
        local_steps = 100
        optimizer = { name = "sgd", learning_rate = 0.01 }
        loss = { name = "sparse_categorical_crossentropy", from_logits = true }
        metrics = ["accuracy"]
        [strategy]
        name = "fedadam"
        beta_1 = 0.9
        [participation]
        fraction = 0.5
        [[holdout]]
        name = "old"
        path = "old.npz"
        must = "not-worse"
        margin = 0.02
        [simulation]
        sites = "sites/*.npz"
        """
    )
    job = load_job(folder / "job.toml")
    assert job.model.path == folder / "base.keras"
    assert job.train.optimizer is not None
    assert job.train.optimizer.settings == {"learning_rate": 0.01}
    assert job.strategy.settings == {"beta_1": 0.9}
    assert job.simulation is not None
    assert job.simulation.sites == str(folder / "sites/*.npz")


def test_an_unknown_key_names_the_nearest_valid_one(folder: Path) -> None:
    """A typing error is answered with the key that was probably meant."""
    assert refusal(folder, train={"round": 3}).startswith("train.round: unknown key; did you mean 'rounds'?")


def test_an_unknown_key_in_a_list_of_tables_is_named_with_its_place(folder: Path) -> None:
    """The second holdout's wrong key is shown as holdout.1.…"""
    holdouts = [MINIMAL["holdout"][0], {"name": "new", "path": "old.npz", "mst": "improve"}]
    assert refusal(folder, holdout=holdouts).startswith("holdout.1.mst: unknown key; did you mean 'must'?")


def test_a_wrong_type_says_what_was_expected_and_got(folder: Path) -> None:
    """rounds = "many" is answered with the key, the expected type and the value."""
    assert refusal(folder, train={"rounds": "many"}) == "train.rounds: expected a whole number, got 'many'"
    assert refusal(folder, train={"optimizer": "sgd"}).startswith("train.optimizer: expected a table (")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "rounds", 0),
        ("train", "batch_size", -1),
        ("train", "validation_fraction", 1.0),
        ("participation", "fraction", 0.0),
        ("participation", "fraction", float("nan")),
        ("participation", "deadline_s", 0),
        ("participation", "min_sites", 0),
    ],
)
def test_impossible_numbers_are_refused_by_key(folder: Path, section: str, key: str, value: float) -> None:
    """A number outside its range is refused under its own key."""
    assert refusal(folder, **{section: {key: value}}).startswith(f"{section}.{key}: ")


@pytest.mark.parametrize(
    ("metric", "target", "said"),
    [
        ("accuracy", 95.0, "expected above 0 and at most 1, as accuracy is a share, got 95"),
        ("auc", 0.0, "expected above 0 and at most 1, as auc is a share, got 0"),
    ],
)
def test_a_target_that_cannot_be_meant_is_refused(folder: Path, metric: str, target: float, said: str) -> None:
    """Under its key, where the job names the metric."""
    monitor = {"path": "old.npz", "metric": metric, "stop_at": target}
    assert refusal(folder, monitor=monitor) == f"monitor.stop_at: {said}"


def test_epochs_and_steps_exclude_each_other(folder: Path) -> None:
    """Two measures of local work at once are refused."""
    assert "local_epochs or local_steps" in refusal(folder, train={"local_epochs": 1, "local_steps": 5})


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-06-01", "2026-06-01T00:00:00+00:00"),
        ("2026-06-01T02:00:00+02:00", "2026-06-01T00:00:00+00:00"),
        ("2026-06-01 12:30:00", "2026-06-01T12:30:00+00:00"),
    ],
)
def test_what_is_new_begins_at_a_moment(folder: Path, text: str, moment: str) -> None:
    """A day begins at midnight; without a zone it is UTC, with one it becomes that. As TOML writes all three."""
    (folder / "job.toml").write_text(
        f'[model]\npath = "base.keras"\n[[holdout]]\nname = "old"\npath = "old.npz"\n[train]\nsince = {text}\n'
    )
    since = load_job(folder / "job.toml").train.since
    assert since is not None
    assert since.isoformat() == moment


def test_replay_is_said_of_its_mode_alone(folder: Path) -> None:
    """And its share leaves some to train on."""
    assert "replay: no such table where train.mode is 'continue'" in refusal(folder, train={"replay": {"share": 0.5}})
    train = {"mode": "replay", "replay": {"share": 1.0}}
    assert refusal(folder, train=train).startswith("train.replay.share: expected less than 1")


def test_a_missing_file_is_named_with_its_key(folder: Path) -> None:
    """A holdout that is not there is found before anything starts."""
    message = refusal(folder, holdout=[{"name": "new", "path": "nowhere.npz"}])
    assert message.startswith("holdout.new.path: expected an existing file, got")


def test_no_holdout_is_one_line(folder: Path) -> None:
    """A job without a holdout cannot be gated and says so once."""
    assert refusal(folder, holdout=[]).count("\n") == 0


def test_two_holdouts_of_one_name_are_refused(folder: Path) -> None:
    """Evidence is kept by name, so names must differ."""
    assert "must differ" in refusal(folder, holdout=MINIMAL["holdout"] * 2)


def test_improve_asks_for_any_gain_unless_told(folder: Path) -> None:
    """The margin of 'improve' is the gain asked, and zero by default."""
    job = parsed(folder, holdout=[{"name": "new", "path": "old.npz", "must": "improve"}])
    assert job.holdout[0].margin == 0


def test_a_missing_job_file_and_broken_toml_are_one_line(tmp_path: Path) -> None:
    """Neither ends in a traceback."""
    with pytest.raises(ConfigurationError, match="no such job file"):
        load_job(tmp_path / "job.toml")
    (tmp_path / "job.toml").write_text("[model\n")
    with pytest.raises(ConfigurationError, match="not readable as TOML"):
        load_job(tmp_path / "job.toml")


def test_sites_are_ordered_by_name(folder: Path) -> None:
    """The order of sites is that of their names, not that of the file system."""
    (folder / "sites").mkdir()
    for name in ("b", "a", "c-10", "c-9"):
        (folder / "sites" / f"{name}.npz").touch()
    assert list(site_files(parsed(folder, simulation={"sites": "sites/*.npz"}))) == ["a", "b", "c-10", "c-9"]


def test_the_jobs_folder_may_have_any_name(tmp_path: Path) -> None:
    """Brackets and stars in the folder's name are no pattern; those in the job are."""
    folder = tmp_path / "job [1] *"
    (folder / "sites").mkdir(parents=True)
    for name in ("base.keras", "old.npz", "sites/a.npz"):
        (folder / name).touch()
    assert site_files(parsed(folder, simulation={"sites": "sites/[ab].npz"})) == {"a": folder / "sites" / "a.npz"}


def test_no_site_file_is_a_configuration_error(folder: Path) -> None:
    """A pattern that matches nothing is said with the pattern."""
    with pytest.raises(ConfigurationError, match="none matches"):
        site_files(parsed(folder, simulation={"sites": "sites/*.npz"}))


def test_the_digest_does_not_depend_on_where_the_job_lies(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same job in another folder has the same digest; another seed has another."""
    other = tmp_path_factory.mktemp("other")
    for name in ("base.keras", "old.npz"):
        (other / name).touch()
    assert parsed(folder).digest == parsed(other).digest
    assert parsed(folder).digest != parsed(folder, train={"seed": 1}).digest


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from([*Job.model_fields, "other"]), json_values, max_size=7))
def test_whatever_the_tables_hold_the_answer_is_a_job_or_one_of_our_errors(raw: dict[str, Any]) -> None:
    """No input makes the schema raise anything but ConfigurationError."""
    with contextlib.suppress(ConfigurationError):
        assert isinstance(parse_job(raw, Path("job.toml")), Job)
