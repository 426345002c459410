"""Drifts that are built in: what is in their parts, and that the example jobs are what the documentation says."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from fedretrain import cli
from fedretrain.errors import ConfigurationError
from fedretrain.job import load_job
from simulations.scenarios import registry, write
from simulations.scenarios.base import SINCE, Images, Scenario
from simulations.scenarios.meaning import EXCHANGED
from simulations.scenarios.registry import ABOUT, Drift, examples

LINES = 30


class Untrained:
    """Stands in for the model in use where its weights do not matter."""

    def save(self, path: Path) -> None:
        path.write_bytes(b"model")


def all_images(of: Scenario) -> list[bytes]:
    parts = [of.base, of.old, of.new, *(site.part for site in of.sites.values())]
    return [image.tobytes() for part in parts for image in part.x]


@pytest.mark.parametrize("name", ABOUT)
def test_no_example_is_in_two_parts(name: str) -> None:
    """No holdout has an example that somebody trains on; images that look alike from the start apart."""
    repeated = len(Images.load().x) - len({image.tobytes() for image in Images.load().x})
    images = all_images(Drift(name, 3).make())
    assert len(images) - len(set(images)) <= repeated


@pytest.mark.parametrize("name", ABOUT)
def test_every_site_has_old_and_new_and_says_when(name: str) -> None:
    """Times are in order and on both sides of what the jobs call new; the same seed gives the same bits."""
    once, again = Drift(name, 5, 3).make(), Drift(name, 5, 3).make()
    for site, other in zip(once.sites.values(), again.sites.values(), strict=True):
        assert (np.diff(site.time) >= 0).all()
        assert site.time[0] < SINCE.timestamp() <= site.time[-1]
        assert site.part.x.tobytes() == other.part.x.tobytes()
        assert site.time.tobytes() == other.time.tobytes()
    assert Drift(name, 6, 3).make().old.x.tobytes() != once.old.x.tobytes()


def test_new_classes_are_new() -> None:
    """What is old has none of them, what is new nothing else."""
    made = Drift("new-classes").make()
    assert set(made.base.y) == set(made.old.y) == set(range(made.known))
    assert set(made.new.y) == {8, 9}
    for site in made.sites.values():
        assert set(site.part.y[site.time >= SINCE.timestamp()]) == {8, 9}


def test_meaning_changes_at_the_last_site_alone() -> None:
    """Of that site two digits' labels are exchanged, of what is new alone; pictures stay."""
    images = Images.load()
    label = {image.tobytes(): int(digit) for image, digit in zip(images.x, images.y, strict=True)}
    sites = Drift("meaning").make().sites
    for name, site in sites.items():
        true = np.array([label[image.tobytes()] for image in site.part.x])
        other = true != site.part.y
        assert other.any() == (name == list(sites)[-1])
        assert set(true[other]) <= set(EXCHANGED)
        assert (site.time[other] >= SINCE.timestamp()).all()


def test_label_shift_makes_half_of_the_digits_rare() -> None:
    """In what is new, at the sites and in the holdout; what is old has them all alike."""
    made = Drift("label-shift").make()
    assert np.mean(made.new.y >= 5) < 0.2 < np.mean(made.old.y >= 5)
    new = np.concatenate([site.part.y[site.time >= SINCE.timestamp()] for site in made.sites.values()])
    assert np.mean(new >= 5) < 0.2


@pytest.mark.parametrize("job", examples(), ids=lambda path: path.stem)
def test_an_example_is_short_and_says_where_it_belongs(job: Path, tmp_path: Path) -> None:
    """Under 30 lines; the first names drifts, the second what it does; a product's job that loads."""
    lines = job.read_text(encoding="utf-8").splitlines()
    assert len(lines) < LINES
    assert set(lines[0].removeprefix("# for: ").split(", ")) <= set(ABOUT)
    assert lines[1].startswith("# ")
    for name in ("model.keras", "old.npz", "new.npz"):
        (tmp_path / name).touch()
    loaded = load_job(Path(shutil.copy(job, tmp_path)))
    assert [holdout.name for holdout in loaded.holdout] == ["old", "new"]
    assert loaded.train.since in {None, SINCE}


def test_a_folder_has_what_its_jobs_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data with times and names of labels that the product reads; the jobs of this drift; a second start is refused."""
    monkeypatch.setattr(write, "train_base", lambda *_: Untrained())
    command = ["scenario", "new-classes", str(tmp_path / "made"), "--sites", "2"]
    assert cli.run(command) == 0
    jobs = {path.stem for path in (tmp_path / "made").glob("*.toml")}
    assert {"extend", "extend-ewc"} <= jobs
    assert "continue" not in jobs
    files = sorted((tmp_path / "made" / "sites").iterdir())
    assert len(files) == 2
    for file in files:
        with np.load(file) as arrays:
            assert set(arrays) == {"x", "y", "timestamp", "labels"}
    assert cli.run(command) == ConfigurationError.exit_code
    assert "does not exist yet" in capsys.readouterr().err


def test_an_unknown_drift_is_refused() -> None:
    """With the names that there are."""
    with pytest.raises(ConfigurationError, match="expected one of appearance, new-classes"):
        Drift("weather")
    assert registry.examples("weather") == []
