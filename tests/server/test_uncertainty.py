"""How certain a candidate is: in the gate's report, signed with the release, and carried to the next retraining."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from fedretrain.errors import ConfigurationError
from fedretrain.job import load_job
from fedretrain.messages import SUM
from fedretrain.runfolder import RunFolder
from fedretrain.sums import unpacked
from server import calibration
from server.registry import Registry
from server.run import execute
from strategies.laplace import moderated, posterior

from .grid import NumpySite, ScriptedGrid
from .keras_job import make_job, sites

LAPLACE = "[uncertainty]\n"
UPDATING = '[strategy]\nname = "fedavg"\nobjectives = [{ name = "posterior", prior_precision = 2.0 }]\n'


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A job with more in it; the files are made once for each."""
    made: dict[str, Path] = {}

    def job(more: str) -> Path:
        if more not in made:
            made[more] = make_job(tmp_path_factory.mktemp("job"), more=more)
        return made[more]

    return job


def run(job: Path, out: Path, at: list[NumpySite], name: str = "r1", **watch: Any) -> dict[str, Any]:
    loaded = load_job(job)
    return execute(loaded, ScriptedGrid(at), RunFolder.create(out, name, loaded), **watch)


def kept(out: Path) -> dict[str, np.ndarray]:
    """What the release in use knows of its certainty, verified."""
    registry = Registry.open(out)
    incumbent = registry.incumbent()
    assert incumbent is not None
    content = registry.uncertainty(incumbent.id)
    return {} if content is None else load(content)


def test_the_report_and_the_release_say_how_certain_the_candidate_is(make: Callable[..., Path], tmp_path: Path) -> None:
    """Numbers are those of the posterior that the sites' sum gives, on the holdouts; a second start asks nobody."""
    job, at = make(LAPLACE), sites()
    result = run(job, tmp_path, at)
    told = result["gate"]["uncertainty"]
    assert (told["examples"], told["sites"], told["parameters"]) == (33, ["a", "b", "c"], 8)
    tensors = kept(tmp_path)
    np.testing.assert_array_equal(unpacked(tensors["last.curvature"]), 33 * np.ones((8, 8)))
    weights = Registry.open(tmp_path).incumbent().weights[1]  # type: ignore[union-attr]
    made = posterior(33 * np.ones((8, 8)), weights.reshape(-1), 2)
    assert told["prior_precision"] == pytest.approx(made.prior)
    with np.load(job.parent / "new.npz") as data:
        x, y = data["x"], data["y"]
    logits = moderated(x.astype(np.float64) @ weights, made.variance(x), exclusive=True)
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    new = next(h for h in told["holdouts"] if h["name"] == "new")
    assert new["after"] == pytest.approx(calibration.of_labels(chances, y), rel=1e-6)
    assert new["before"]["ece"] != new["after"]["ece"]
    (tmp_path / "runs" / "r1" / "result.json").unlink()
    silent = sites()
    again = run(job, tmp_path, silent)
    assert again["gate"] == result["gate"]
    assert [site.asked for site in silent] == [[], [], []]


def test_a_sum_the_sites_refuse_does_not_stop_a_run(make: Callable[..., Path], tmp_path: Path) -> None:
    """The rounds were worth something: the gate decides, and the report says what is missing and why."""
    at = sites()
    for site in at:
        site.declines = {SUM: ("policy", "statistics", "one that fits val-*")}
    events: list[dict[str, Any]] = []
    result = run(make(LAPLACE), tmp_path, at, on_event=events.append)
    assert result["outcome"] == "released"
    assert "policy at statistics" in result["gate"]["uncertainty"]["missing"]
    assert [e["text"] for e in events if e["event"] == "warning"]
    assert kept(tmp_path) == {}


def test_a_model_without_a_dense_end_is_refused_before_the_first_round(tmp_path: Path) -> None:
    """With what was found and what to do."""
    import keras

    job, at = make_job(tmp_path / "job", more=LAPLACE), sites()
    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2), keras.layers.LayerNormalization()])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.save(job.parent / "base.keras")
    job.write_text(job.read_text().replace('freeze = ["frozen"]', ""))
    with pytest.raises(
        ConfigurationError, match=r"expected a Dense layer at the end of the model.*leave \[uncertainty\]"
    ):
        run(job, tmp_path, at)
    assert at[0].asked == []


def test_the_posterior_of_one_retraining_is_the_prior_of_the_next(make: Callable[..., Path], tmp_path: Path) -> None:
    """Λ = 2 + 33·1 is sent as Λ/33; then Λ' = Λ + 33·1 = 68 is kept, and sent as Λ'/33 without a sum before rounds."""
    job, first = make(UPDATING), sites()
    run(job, tmp_path, first)
    (companion,) = first[0].companions.values()
    np.testing.assert_allclose(companion["00001"], 35 / 33, rtol=1e-6)
    assert [what.settings["of"] for what in first[0].summed] == ["old", "trained"]
    np.testing.assert_allclose(kept(tmp_path)["diagonal.00001"], 68, rtol=1e-6)
    incumbent = Registry.open(tmp_path).incumbent()
    assert incumbent is not None
    text = job.read_text().replace('path = "base.keras"', f'path = "{incumbent.folder / "model.keras"}"')
    further = job.with_name("next.toml")
    further.write_text(text.replace('must = "improve"', ""))
    second = sites()
    run(further, tmp_path, second, "r2")
    (companion,) = second[0].companions.values()
    np.testing.assert_allclose(companion["00001"], 68 / 33, rtol=1e-6)
    assert [what.settings["of"] for what in second[0].summed] == ["trained"]
    np.testing.assert_allclose(kept(tmp_path)["diagonal.00001"], 101, rtol=1e-6)


def test_what_older_examples_told_is_added_where_only_new_ones_are_trained_on(tmp_path: Path) -> None:
    """In the mode "incremental" the sum is over new examples, and the release in use knows of the others."""
    job = make_job(tmp_path / "job", more=LAPLACE)
    run(job, tmp_path, sites())
    incumbent = Registry.open(tmp_path).incumbent()
    assert incumbent is not None
    text = job.read_text().replace('path = "base.keras"', f'path = "{incumbent.folder / "model.keras"}"')
    job.write_text(text.replace('must = "improve"', "").replace("[train]", '[train]\nmode = "incremental"'))
    told = run(job, tmp_path, sites(), "r2")["gate"]["uncertainty"]
    assert (told["examples"], told["carried"]) == (33, 33)
    np.testing.assert_array_equal(unpacked(kept(tmp_path)["last.curvature"]), 66 * np.ones((8, 8)))
