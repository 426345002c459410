"""The built-in demo: what is in its parts, and that its folder is made whole or not at all."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedretrain.digest import weights_digest
from fedretrain.errors import ConfigurationError
from fedretrain.job import load_job
from fedretrain.simsites import simulated_sites
from simulations import demo, digits
from simulations.demo import Recipe, ensure_demo
from simulations.digits import FEWEST_IMAGES, REPEATED, Digits, Part, make_digits, photographed, site_names

RECIPE = Recipe.make(0, 3)


def parts(made: Digits) -> list[Part]:
    return [made.base, made.old, made.new, *made.sites.values()]


class Untrained:
    """Stands in for the base model where its weights do not matter."""

    def save(self, path: Path) -> None:
        path.write_bytes(b"model")


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "train_base", lambda *_: Untrained())


@pytest.mark.parametrize("sites", [2, 5, 40])
def test_no_image_is_in_two_parts(sites: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 1797 images are there, each once: in the base's part, a holdout or at one site."""
    monkeypatch.setattr(digits, "photographed", lambda images, *_: images)
    images = np.concatenate([part.x for part in parts(make_digits(3, sites))])
    assert len(images) == digits.IMAGES
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == digits.IMAGES


@pytest.mark.parametrize("sites", [2, 5, 40])
def test_sites_are_uneven_and_none_is_nearly_empty(sites: int) -> None:
    """Private parts differ in size and label mix."""
    made = make_digits(0, sites).sites
    sizes = [len(part.y) for part in made.values()]
    assert min(sizes) >= FEWEST_IMAGES
    assert max(sizes) > 1.1 * min(sizes)
    mixes = [np.bincount(part.y, minlength=10) / len(part.y) for part in made.values()]
    assert max(np.abs(a - b).sum() for a in mixes for b in mixes) > 0.5


def test_a_seed_decides_everything() -> None:
    """The same seed gives the same arrays, another seed others."""
    first, again, other = (
        [weights_digest([part.x, part.y]) for part in parts(make_digits(seed, 3))] for seed in (1, 1, 2)
    )
    assert first == again
    assert not set(first) & set(other)


def test_arrays_are_what_the_model_takes() -> None:
    """Images float32 [n, 8, 8, 1] from 0 to 1, labels int32 [n] from 0 to 9."""
    for part in parts(make_digits(0, 2)):
        assert (part.x.dtype, part.x.shape[1:]) == (np.float32, (8, 8, 1))
        assert part.x.min() >= 0
        assert part.x.max() <= 1
        assert (part.y.dtype, part.y.shape) == (np.int32, (len(part.x),))
        assert set(part.y.tolist()) <= set(range(10))


def test_the_camera_greys_the_paper_and_pales_the_ink() -> None:
    """At strength 0 only noise is added; the dimmer the room, the greyer the paper and the smaller the contrast."""
    page = np.zeros((100, 8, 8), np.float32)
    page[:, 2:6, 2:6] = 1
    seen = [photographed(page, np.full(100, s), np.random.default_rng(0)).mean(axis=0) for s in (0.0, 0.7, 1.0)]
    paper, ink = [float(s[0, 0]) for s in seen], [float(s[4, 4]) for s in seen]
    assert np.abs(seen[0] - page[0]).max() < 0.02
    assert paper[0] < paper[1] < paper[2] == pytest.approx(0.3, abs=0.02)
    assert ink[0] > ink[1] > ink[2] == pytest.approx(0.8, abs=0.02)


def test_labels_are_exchanged_at_one_site_alone() -> None:
    """That site has its images many times, every digit under one other; nothing else changes."""
    honest, wrong = make_digits(0, 3), make_digits(0, 3, permuted="hospital-c")
    right = honest.sites["hospital-c"].y.tolist() * REPEATED
    pairs = set(zip(right, wrong.sites["hospital-c"].y.tolist(), strict=True))
    assert len(pairs) == 10
    assert all(a != b for a, b in pairs)
    wrong.sites["hospital-c"] = honest.sites["hospital-c"]
    assert all(
        weights_digest([a.x, a.y]) == weights_digest([b.x, b.y])
        for a, b in zip(parts(honest), parts(wrong), strict=True)
    )


def test_names_are_in_order_of_the_sites() -> None:
    """Letters, or numbers where there are more sites than letters; sorted by name they keep their order."""
    assert site_names(3) == ["hospital-a", "hospital-b", "hospital-c"]
    assert site_names(40) == sorted(site_names(40))


@pytest.mark.parametrize("sites", [1, 41])
def test_an_impossible_number_of_sites_is_refused(sites: int) -> None:
    """One line says what is possible."""
    with pytest.raises(ConfigurationError, match=f"expected 2 to 40 for the demo, got {sites}"):
        Recipe.make(0, sites)


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's data come with an extra."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigurationError, match=r"install fedretrain\[simulation\]"):
        make_digits(0, 2)


@pytest.mark.usefixtures("untrained")
def test_the_folder_holds_a_job_to_copy(tmp_path: Path) -> None:
    """job.toml is short, loads, freezes the convolutions and names every file beside it."""
    path = ensure_demo(tmp_path / "demo", RECIPE, lambda _: None)
    job = load_job(path)
    assert len(path.read_text().splitlines()) <= 40
    assert job.model.freeze == ("conv*",)
    assert [h.name for h in job.holdout] == ["old", "new"]
    assert list(simulated_sites(job)) == ["hospital-a", "hospital-b", "hospital-c"]
    with np.load(simulated_sites(job)["hospital-a"].file, allow_pickle=False) as file:
        assert sorted(file) == ["preprocessing", "x", "y"]
        assert str(file["preprocessing"]) == job.contract.preprocessing


@pytest.mark.usefixtures("untrained")
def test_the_same_recipe_is_not_made_twice(tmp_path: Path) -> None:
    """A demo that is there is used as it is; another recipe takes its place."""
    said: list[str] = []
    first = ensure_demo(tmp_path / "demo", RECIPE, said.append).stat().st_mtime_ns
    assert said
    assert ensure_demo(tmp_path / "demo", RECIPE, pytest.fail).stat().st_mtime_ns == first
    other = ensure_demo(tmp_path / "demo", Recipe.make(1, 2), said.append)
    assert json.loads((tmp_path / "demo" / "recipe.json").read_text())["seed"] == 1
    assert load_job(other).train.seed == 1
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "job.toml").write_text("x"), "job.toml was changed"),
        (lambda folder: (folder / "sites" / "mine.npz").write_text("x"), "sites/mine.npz was changed"),
        (lambda folder: (folder / "old.npz").unlink(), "old.npz was changed"),
        (
            lambda folder: (folder / "recipe.json").unlink(),
            "expected a demo, an empty folder or none, .*; choose another folder$",
        ),
    ],
)
def test_what_a_user_changed_is_not_overwritten(tmp_path: Path, change: Callable[[Path], Any], said: str) -> None:
    """A folder that is not a demo as it was made is refused with what to do, also for another recipe."""
    ensure_demo(tmp_path / "demo", RECIPE, lambda _: None)
    change(tmp_path / "demo")
    for recipe in (RECIPE, Recipe.make(1, 2)):
        with pytest.raises(ConfigurationError, match=said):
            ensure_demo(tmp_path / "demo", recipe, lambda _: None)


@pytest.mark.usefixtures("untrained")
def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    """A folder somebody made for the demo is as good as none; a file in its place is not."""
    (tmp_path / "demo").mkdir()
    assert load_job(ensure_demo(tmp_path / "demo", RECIPE, str)).model.path.exists()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="an empty folder or none"):
        ensure_demo(tmp_path / "file", RECIPE, str)


def test_an_interrupted_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where training the base is interrupted there is no half demo, and the next start makes a whole one."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "train_base", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure_demo(tmp_path / "demo", RECIPE, lambda _: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_base_model_knows_old_and_not_new() -> None:
    """Seeded to the same weights twice; good at scanned digits, clearly worse at camera pictures."""
    made = make_digits(0, 5)
    model, again = (demo.train_base(made.base, 0) for _ in range(2))
    assert weights_digest(model.get_weights()) == weights_digest(again.get_weights())
    old, new = ((model.predict(p.x, verbose=0).argmax(axis=1) == p.y).mean() for p in (made.old, made.new))
    assert old > 0.95
    assert new < old - 0.05
    assert [layer.name for layer in model.layers if layer.name.startswith("conv")][:2] == ["conv1", "conv1_norm"]
