"""What a run starts from and ends with, by its mode; model, gate and registry are real."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedretrain.digest import weights_digest
from fedretrain.errors import ConfigurationError
from fedretrain.job import Job, load_job
from fedretrain.runfolder import RunFolder
from server.plan import make_plan
from server.registry import Registry
from server.run import execute

from .grid import ScriptedGrid
from .keras_job import TRUTH, make_job, sites, start

TRUTH_3 = np.concatenate([TRUTH, np.array([[0], [0], [0], [3]], np.float32)], axis=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labels in use; new.npz has a third."""
    folder = tmp_path_factory.mktemp("job")
    make_job(folder)
    x = np.random.default_rng(1).normal(size=(600, 4)).astype(np.float32)
    np.savez(folder / "three.npz", x=x, y=np.argmax(x @ TRUTH_3, axis=1))
    return folder


def job(folder: Path, mode: str, tables: str = "", new: str = "new.npz", **replaced: str) -> Job:
    text = (folder / "job.toml").read_text().replace("[train]", f'[train]\nmode = "{mode}"')
    text = text.replace('path = "new.npz"', f'path = "{new}"').replace("margin = 0.05", "margin = 0.3")
    for was, becomes in replaced.items():
        text = text.replace(was, becomes)
    path = folder / f"{mode}.toml"
    path.write_text(text + tables)
    return load_job(path)


EXTEND = '[extend]\nold = ["left", "right"]\nlabels = ["left", "right", "up"]\n'
NAMED = '[contract]\nlabels = ["0", "1", "up"]\n'
HEAD = '[transfer]\nhead = [{ name = "Dense", units = 5 }, { name = "Dense", units = 3, activation = "softmax" }]\n'


def incumbent(out: Path) -> Any:
    found = Registry.open(out).incumbent()
    assert found is not None
    return found


def test_full_starts_from_fresh_weights_that_follow_from_the_seed(folder: Path, tmp_path: Path) -> None:
    """Sites' base stays the model in use; what is frozen keeps its bits; another seed is another start."""
    wanted = job(folder, "full")
    plan, again = make_plan(wanted, "r"), make_plan(wanted, "r")
    assert plan.start is not None
    assert again.start is not None
    assert plan.base is plan.incumbent
    assert plan.start[0].tobytes() == again.start[0].tobytes()
    assert plan.start[0].tobytes() != plan.base.weights[1].tobytes()
    other = make_plan(wanted.model_copy(update={"train": wanted.train.model_copy(update={"seed": 1})}), "r")
    assert other.start is not None
    assert other.start[0].tobytes() != plan.start[0].tobytes()
    result = start(wanted, tmp_path)
    assert result["outcome"] == "released"
    release = incumbent(tmp_path)
    np.testing.assert_allclose(release.weights[1], 0.25 * plan.start[0] + 0.75 * TRUTH, rtol=1e-5)
    assert release.weights[0].tobytes() == plan.base.weights[0].tobytes()
    assert release.lineage["mode"] == {"name": "full"}


def test_extend_keeps_the_rows_of_the_labels_that_stay(folder: Path) -> None:
    """Bit for bit; the new row follows from the seed; both contracts name their labels."""
    wanted = job(folder, "extend", EXTEND, "three.npz")
    plan = make_plan(wanted, "r")
    old, new = plan.incumbent.weights[1], plan.base.weights[1]
    assert (old.shape, new.shape) == ((4, 2), (4, 3))
    assert new[:, :2].tobytes() == old.tobytes()
    assert np.abs(new[:, 2]).min() > 0
    assert make_plan(wanted, "r").contract.digest == plan.contract.digest
    assert [spec.labels for spec in (*plan.in_use.outputs, *plan.contract.outputs)] == [
        ("left", "right"),
        ("left", "right", "up"),
    ]
    assert plan.in_use.base == weights_digest(plan.incumbent.weights)


def test_an_extended_model_is_released_in_place_of_the_one_in_use(folder: Path, tmp_path: Path) -> None:
    """The parent has two labels, the release three; its record says which came; plain Keras opens it."""
    import keras

    result = start(job(folder, "extend", EXTEND, "three.npz"), tmp_path, TRUTH_3)
    assert result["outcome"] == "released", result["gate"]["reasons"]
    release = incumbent(tmp_path)
    assert [spec.labels for spec in release.contract.outputs] == [("left", "right", "up")]
    parent = Registry.open(tmp_path).load(result["parent"])[0]
    assert [spec.labels for spec in parent.contract.outputs] == [("left", "right")]
    assert release.lineage["mode"]["labels"]["added"] == ["up"]
    model = keras.saving.load_model(release.folder / "model.keras")
    assert model.output_shape == (None, 3)
    assert model.loss == "sparse_categorical_crossentropy"
    new = result["gate"]["holdouts"][1]
    third = np.mean(np.load(folder / "three.npz")["y"] == 2)
    assert new["incumbent"] <= 1 - third  # what it does not know it never has right


def test_a_run_that_released_another_label_space_can_be_started_again(folder: Path, tmp_path: Path) -> None:
    """It finds the release that it replaced, and releases nothing twice."""
    named = job(folder, "continue", '[contract]\nlabels = ["left", "right"]\n')
    first = start(named, tmp_path, run="r0")
    model = tmp_path / "registry" / "releases" / first["release"] / "model.keras"
    wanted = job(folder, "extend", '[extend]\nlabels = ["left", "right", "up"]\n', "three.npz")
    wanted = wanted.model_copy(update={"model": wanted.model.model_copy(update={"path": model})})
    result = start(wanted, tmp_path, TRUTH_3)
    assert [spec.labels for spec in incumbent(tmp_path).contract.outputs] == [("left", "right", "up")]  # by the release
    run = RunFolder.open(tmp_path / "runs" / "r1")
    run.result.unlink()
    again = execute(wanted, ScriptedGrid(sites(TRUTH_3)), run)
    assert (again["release"], again["parent"]) == (result["release"], first["release"])


def test_names_of_labels_are_carried_on(folder: Path, tmp_path: Path) -> None:
    """A job that names no labels has those of the release it retrains, in the contract of the next one too."""
    first = start(job(folder, "continue", '[contract]\nlabels = ["left", "right"]\n'), tmp_path, run="r0")
    model = tmp_path / "registry" / "releases" / first["release"] / "model.keras"
    plain = job(folder, "continue", **{'must = "improve"': 'must = "not-worse"'})
    plain = plain.model_copy(update={"model": plain.model.model_copy(update={"path": model})})
    start(plain, tmp_path)
    assert [spec.labels for spec in incumbent(tmp_path).contract.outputs] == [("left", "right")]
    assert len(Registry.open(tmp_path).state().ledger.releases) == 3  # the model itself, and two runs'


def test_transfer_puts_a_new_head_on_layers_that_stay(folder: Path) -> None:
    """The last new layer has the old one's name; what is below keeps its bits; the seed decides the rest."""
    plan = make_plan(job(folder, "transfer", NAMED + HEAD, "three.npz"), "r")
    layers = [layer["config"]["name"] for layer in json.loads(plan.base.architecture)["config"]["layers"]]
    assert layers == ["x", "frozen", "head_1", "head"]
    assert plan.base.weights[0].tobytes() == plan.incumbent.weights[0].tobytes()
    assert [w.shape for w in plan.base.weights] == [(4, 4), (4, 5), (5,), (5, 3), (3,)]
    assert [spec.rule for spec in plan.contract.variables] == ["keep", "train", "train", "train", "train"]
    again = make_plan(job(folder, "transfer", NAMED + HEAD, "three.npz"), "r")
    assert weights_digest(again.base.weights) == weights_digest(plan.base.weights)
    assert plan.space is not None
    assert plan.space.added == ("up",)


def test_a_function_may_make_the_head(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given what the old head stood on."""
    (tmp_path / "my_head.py").write_text(
        "import keras\ndef make(x):\n    return keras.layers.Dense(2, activation='softmax', name='mine')(x)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plan = make_plan(job(folder, "transfer", '[transfer]\nhead = "my_head:make"\n'), "r")
    assert [spec.name for spec in plan.contract.outputs] == ["mine"]
    assert plan.space is None  # the same labels, both as probabilities


LOGITS = HEAD.replace(', activation = "softmax"', "")
WITH = 'loss = {{ name = "{}", from_logits = true }}\n'
SPARSE = "sparse_categorical_crossentropy"


@pytest.mark.parametrize(
    ("head", "loss", "line"),
    [
        (LOGITS, "", f'add activation = "softmax" to its last layer, or set train.loss = {{ name = "{SPARSE}", from_'),
        (LOGITS, 'loss = "binary_crossentropy"\n', 'add activation = "sigmoid" to its last layer, or set train.loss ='),
        (HEAD, WITH.format(SPARSE), f'leave that out, or set train.loss = "{SPARSE}"'),
        (LOGITS, WITH.format(SPARSE), None),
        (LOGITS, 'loss = "mse"\n', "transfer.head: expected a head that answers as output 'head'"),  # is no fault of it
    ],
)
def test_a_head_and_its_loss_agree_on_logits(folder: Path, head: str, loss: str, line: str | None) -> None:
    """Otherwise nothing good could come of the run; numbers have no such rule."""
    replaced = {"[participation]": f"{loss}[participation]"}
    named = "" if "mse" in loss else NAMED  # numbers have no labels either
    if line is None:
        plan = make_plan(job(folder, "transfer", named + head, "three.npz", **replaced), "r")
        assert plan.space is not None
        assert (plan.space.old_logits, plan.space.new_logits) == (False, True)
        return
    with pytest.raises(ConfigurationError, match=r"^transfer\.head: expected .*, got .*") as caught:
        make_plan(job(folder, "transfer", named + head, "three.npz", **replaced), "r")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "tables", "line"),
    [
        (
            "extend",
            '[extend]\nlabels = ["0", "2"]\n',
            "'1' is no label any more. Keep these labels, or set extend.allow",
        ),
        ("extend", '[extend]\nlabels = ["0", "1"]\n', "extend.labels: expected other labels than those of the model"),
        ("extend", '[extend]\nold = ["a"]\nlabels = ["a", "b"]\n', "extend.old: expected 2 names"),
        ("transfer", HEAD.replace('"Dense"', '"Lambda"', 1), "head.0.name: Keras has no layer 'Lambda' that may be"),
        ("transfer", HEAD.replace("[transfer]", '[transfer]\nafter = "frozn"'), "layer of the model, got 'frozn'; did"),
        ("transfer", HEAD, "contract.labels: expected the names of all 3 labels of transfer.head, of which"),
        ("transfer", HEAD.replace("units = 3", "units = 1"), "head: expected a head that answers as output 'head' of"),
        ("ensembl", "", "train.mode: expected 'continue', 'full'"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_line(folder: Path, mode: str, tables: str, line: str) -> None:
    """The key, what was expected, what was found."""
    loss = {"[participation]": 'loss = "binary_crossentropy"\n[participation]'} if "units = 1" in tables else {}
    with pytest.raises(ConfigurationError) as caught:
        make_plan(job(folder, mode, tables, **loss), "r")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_that_move_are_told_by_name(folder: Path, tmp_path: Path) -> None:
    """Two become one: the job lets them go, the record says which, data have to name theirs, both answer in them."""
    with np.load(folder / "three.npz") as three:
        x, up = three["x"], three["y"] == 2
    np.savez(folder / "named.npz", x=x, y=up.astype(int), labels=["side", "up"])
    tables = '[extend]\nold = ["left", "right"]\nlabels = ["up", "side"]\nmerge = { side = ["left", "right"] }\n'
    files = {'path = "old.npz"': 'path = "named.npz"'}
    with pytest.raises(ConfigurationError, match="'left' and 'right' become 'side'"):
        make_plan(job(folder, "extend", tables, "named.npz", **files), "r")
    tables += "allow_loss = true\n"
    with pytest.raises(ConfigurationError, match="labels: expected the names of y's positions"):
        start(job(folder, "extend", tables, "new.npz", **files), tmp_path / "unnamed")
    wanted = job(folder, "extend", tables, "named.npz", **files)
    plan = make_plan(wanted, "r")
    np.testing.assert_allclose(plan.base.weights[1][:, 1], plan.incumbent.weights[1].mean(axis=1))
    result = start(wanted, tmp_path / "out", np.stack([TRUTH_3[:, 2], TRUTH_3[:, :2].mean(axis=1)], axis=1))
    assert result["gate"]["holdouts"][0]["incumbent"] == np.mean(~up)  # it knows no "up"
    assert result["outcome"] == "released", result["gate"]["reasons"]
    record = incumbent(tmp_path / "out").lineage["mode"]["labels"]
    assert (record["merged"], record["removed"]) == ({"side": ["left", "right"]}, [])


SMALL = """import keras
def make(width=2):
    layers = keras.layers
    return keras.Sequential([
        layers.Input((4,), name="x"),
        layers.Dense(4, use_bias=False, name="frozen"),
        layers.Dense(width, use_bias=False, activation="softmax", name="head"),
    ], name="small")
def wider():
    return make(3)
"""
COMPILED = {
    "[participation]": 'loss = "sparse_categorical_crossentropy"\noptimizer = { name = "sgd" }\n[participation]'
}


@pytest.mark.parametrize(("mode", "tables"), [("full", ""), ("extend", EXTEND), ("transfer", NAMED + HEAD)])
def test_every_mode_starts_from_weights_without_an_architecture(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, tables: str
) -> None:
    """The operator's function makes the model; weights of another name the first variable that differs, in any mode."""
    import keras

    (tmp_path / "small_models.py").write_text(SMALL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "small_models", raising=False)
    in_use = keras.saving.load_model(folder / "base.keras")
    in_use.save_weights(tmp_path / "small.weights.h5")
    in_use.export(tmp_path / "exported", verbose=False)
    new = "new.npz" if mode == "full" else "three.npz"
    for path in ("small.weights.h5", "exported"):
        files = {'path = "base.keras"': f'path = "{tmp_path / path}"\narchitecture = "small_models:make"', **COMPILED}
        plan = make_plan(job(folder, mode, tables, new, **files), "r")
        for array, variable in zip(plan.incumbent.weights, in_use.weights, strict=True):
            assert array.tobytes() == variable.numpy().tobytes()
        files['path = "base.keras"'] = files['path = "base.keras"'].replace(":make", ":wider")
        with pytest.raises(ConfigurationError, match=r"'head/kernel': expected .*\[4, 3\] as in .*, got .*\[4, 2\]"):
            make_plan(job(folder, mode, tables, new, **files), "r")
