"""Ensembles: members are taken apart and put together bit for bit, and each run changes one of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedretrain.architecture import build, set_weights, to_json, weights_of
from fedretrain.digest import weights_digest
from fedretrain.errors import ConfigurationError, RunFailed
from fedretrain.job import Job, load_job
from fedretrain.modelfile import BaseModel, load_base
from fedretrain.runfolder import RunFolder
from fedretrain.signature import input_names, output_names
from server.members import join, split
from server.modes.ensemble import inverse
from server.registry import Registry
from server.run import execute

from .grid import NumpySite, ScriptedGrid
from .judging import JudgingSite, loss_of
from .keras_job import TRUTH, make_job, towards


def _two_headed() -> Any:
    """Two inputs and two outputs by name, statistics and a random layer."""
    import keras

    a, b = keras.Input((3,), name="a"), keras.Input((None, 2), name="b")
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(4, activation="relu")(a))
    one = keras.layers.Dense(2, activation="softmax")(keras.layers.Dropout(0.5)(hidden))
    return keras.Model({"a": a, "b": b}, {"one": one, "each": keras.layers.Dense(1)(b)})


def test_a_join_predicts_the_weighted_average_and_comes_apart_to_the_bit(tmp_path: Path) -> None:
    """Weights 1 and 3 are a quarter and three quarters, by output; any Keras opens the file."""
    import keras

    keras.utils.set_random_seed(1)
    models = [_two_headed(), _two_headed()]
    architecture = to_json(models[0])
    members = [BaseModel(architecture, weights_of(m), None) for m in models]
    joined = join(members, [1, 3])
    whole = build(joined.architecture)
    set_weights(whole, joined.weights)
    assert (input_names(whole), output_names(whole)) == (["a", "b"], ["each", "one"])
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=(5, 3)).astype("f"), "b": rng.normal(size=(5, 7, 2)).astype("f")}
    of = [m(x, training=False) for m in models]
    for name in ("each", "one"):
        np.testing.assert_allclose(whole(x)[name], 0.25 * of[0][name] + 0.75 * of[1][name], rtol=1e-6)
    apart = split(joined)
    assert apart.weights == (0.25, 0.75)
    assert [weights_digest(m.weights) for m in apart.models] == [weights_digest(m.weights) for m in members]
    assert join(apart.models, apart.weights).architecture == joined.architecture
    whole.save(tmp_path / "whole.keras")
    opened = keras.saving.load_model(tmp_path / "whole.keras")
    assert np.array_equal(opened(x)["one"], whole(x)["one"])
    assert split(members[0]).models == (members[0],)


def test_members_are_of_one_architecture() -> None:
    """And a model of another's that only has such names is one member."""
    import keras

    def dense(units: int) -> BaseModel:
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(units)])
        return BaseModel(to_json(model), weights_of(model), None)

    with pytest.raises(ConfigurationError, match="members of one architecture"):
        join([dense(2), dense(3)], [1, 1])
    parts = [keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)], name=f"member_{i}") for i in (1, 2)]
    x = keras.Input((3,))
    other = keras.Model(x, keras.layers.Add()([part(x) for part in parts]), name="ensemble")
    assert len(split(BaseModel(to_json(other), weights_of(other), None)).models) == 1


def test_weights_are_inverse_losses() -> None:
    """Losses 1, 2 and 4 give weights 4/7, 2/7 and 1/7; a loss below 0 has none."""
    assert inverse([1.0, 2.0, 4.0]) == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert inverse([0.0, 1.0])[0] == pytest.approx(1.0)
    with pytest.raises(RunFailed, match=r"0 or more.*\[-1.0, 2.0\]"):
        inverse([-1.0, 2.0])


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    path = make_job(tmp_path_factory.mktemp("job"), rounds=1)
    text = path.read_text().replace("[train]", '[ensemble]\nmembers = 3\n[train]\nmode = "ensemble"')
    path.write_text(text.replace('must = "improve"', "margin = 0.05"))
    return load_job(path)


def _run(job: Job, out: Path, run: str, target: NDArray[Any], judging: bool = True) -> dict[str, Any]:
    kind = JudgingSite if judging else NumpySite
    grid = ScriptedGrid([kind(name, 40, towards(target)) for name in "abc"])
    return execute(job, grid, RunFolder.create(out, run, job))


def _members(out: Path, release: str) -> tuple[list[NDArray[Any]], tuple[float, ...]]:
    """The heads in a release, and their weights."""
    released = Registry.open(out).load(release)[0]
    found = split(BaseModel(released.architecture, released.weights, None))
    return [model.weights[1] for model in found.models], found.weights


def test_runs_add_members_until_there_are_enough_and_then_change_one(job: Job, tmp_path: Path) -> None:
    """One of one, two, three; then the weakest is trained on, or a further one takes its place; the others stay."""
    first = _run(job, tmp_path, "r1", TRUTH)
    assert first["outcome"] == "released", first["gate"]["reasons"]
    assert first["bytes"]["down"] == 3 * 3 * (4 * 8 + 128)  # one round and two evaluations, at three sites
    base = load_base(job.model).weights[1]
    heads, weights = _members(tmp_path, first["release"])
    assert np.array_equal(heads[0], base)
    np.testing.assert_allclose(heads[1], 0.5 * (base + TRUTH), rtol=1e-5)
    losses = [loss_of(head) for head in heads]
    assert weights == pytest.approx([(1 / loss) / sum(1 / one for one in losses) for loss in losses], rel=1e-4)
    mode = Registry.open(tmp_path).load(first["release"])[0].lineage["mode"]
    assert [member["trained"] for member in mode["members"]] == [False, True]

    def following(release: str, **more: Any) -> Job:
        path = tmp_path / "registry" / "releases" / release / "model.keras"
        update: dict[str, Any] = {"model": job.model.model_copy(update={"path": path})}
        if more and job.ensemble:
            update["ensemble"] = job.ensemble.model_copy(update=more)
        return job.model_copy(update=update)

    second = _run(following(first["release"]), tmp_path, "r2", TRUTH)
    three, weights = _members(tmp_path, second["release"])
    assert [np.array_equal(a, b) for a, b in zip(heads, three, strict=False)] == [True, True]
    np.testing.assert_allclose(three[2], 0.5 * (three[1] + TRUTH), rtol=1e-5)  # from the strongest
    weakest = weights.index(min(weights))
    assert weakest == 0
    third = _run(following(second["release"]), tmp_path, "r3", 0.9 * TRUTH)
    changed, _ = _members(tmp_path, third["release"])
    assert [np.array_equal(a, b) for a, b in zip(three, changed, strict=True)] == [False, True, True]
    np.testing.assert_allclose(changed[0], 0.5 * (three[0] + 0.9 * TRUTH), rtol=1e-5)
    fourth = _run(following(third["release"], change="add"), tmp_path, "r4", TRUTH)
    heads, _ = _members(tmp_path, fourth["release"])
    strongest = changed[int(np.argmin([loss_of(head) for head in changed]))]
    left = [head for head in changed if not any(np.array_equal(head, other) for other in heads)]
    assert len(heads) == 3
    assert [loss_of(head) for head in left] == [max(loss_of(head) for head in changed)]
    np.testing.assert_allclose(heads[2], 0.5 * (strongest + TRUTH), rtol=1e-5)
    contracts = [Registry.open(tmp_path).load(one["release"])[0].contract for one in (first, fourth)]
    assert (contracts[0].inputs, contracts[0].outputs) == (contracts[1].inputs, contracts[1].outputs)


def test_what_is_frozen_is_the_same_in_all_members(job: Job, tmp_path: Path) -> None:
    """Sites have frozen variables once, so freezing what runs before trained is refused by the layer's name."""
    release = _run(job, tmp_path, "r1", TRUTH)["release"]
    path = tmp_path / "registry" / "releases" / release / "model.keras"
    other = job.model_copy(update={"model": job.model.model_copy(update={"path": path, "freeze": ("head",)})})
    with pytest.raises(ConfigurationError, match=r"model.freeze: .*got \['head'\], and variable 1 \('head/kernel'\)"):
        _run(other, tmp_path, "r2", TRUTH)


def test_what_was_found_of_the_members_is_not_asked_again(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that broke off after the evaluation goes on with sites that answer none, to the same candidate."""
    whole = _run(job, tmp_path / "whole", "r1", TRUTH)
    monkeypatch.setattr("server.run.judge", _broken)
    with pytest.raises(RunFailed, match="broken"):
        _run(job, tmp_path / "broken", "r1", TRUTH)
    monkeypatch.undo()
    again = _run(job, tmp_path / "broken", "r1", TRUTH, judging=False)
    digests = [
        weights_digest(Registry.open(out).load(one["release"])[0].weights)
        for out, one in ((tmp_path / "whole", whole), (tmp_path / "broken", again))
    ]
    assert digests[0] == digests[1]


def _broken(*_: Any, **__: Any) -> None:
    raise RunFailed("broken")


def test_an_ensemble_needs_validation_parts(job: Job, tmp_path: Path) -> None:
    """Known before anybody is asked."""
    without = job.model_copy(update={"train": job.train.model_copy(update={"validation_fraction": 0.0})})
    with pytest.raises(ConfigurationError, match="validation_fraction: expected more than 0 in mode 'ensemble'"):
        _run(without, tmp_path, "r1", TRUTH)
