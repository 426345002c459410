"""The operator's model is opened from every kind of file, as the same value, and never by Keras' own loader."""

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from fedretrain.architecture import build, set_weights, to_json, weights_of
from fedretrain.digest import weights_digest
from fedretrain.errors import ConfigurationError, ModelRefused
from fedretrain.job import ModelSection
from fedretrain.modelfile import BaseModel, load_base

from .models import attention, convolutional, nested, predictions, randomized

CONVOLUTIONAL, NESTED = (f"tests.fedretrain.models:{name}" for name in ("convolutional", "nested"))


def load(path: Path, architecture: str | None = None, allow: tuple[str, ...] = ()) -> BaseModel:
    return load_base(ModelSection(path=path, architecture=architecture, allow_modules=allow))


def refused(path: Path, kind: type[ConfigurationError], *args: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(path, *args)
    message = str(caught.value)
    assert type(caught.value) is kind
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def trained(make: Callable[[], Any]) -> Any:
    """A model that was fitted, so that its optimizer has a state."""
    model = randomized(make())
    model.compile("adam", ["sparse_categorical_crossentropy", "mse"][: len(model.outputs)], metrics=None)
    x = [np.ones((2, *t.shape[1:])) for t in model.inputs]
    y = [np.ones((2, 1)) for _ in model.outputs]
    model.fit(x if len(x) > 1 else x[0], y if len(y) > 1 else y[0], verbose=0)
    return model


def rewrite(source: Path, target: Path, **members: bytes) -> Path:
    """A copy of a .keras file with other members; a member's name with "_" for "."."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, members.pop(name.replace(".", "_"), None) or old.read(name))
        for name, content in members.items():
            new.writestr(name, content)
    return target


def test_a_keras_file_gives_architecture_weights_and_compilation(tmp_path: Path) -> None:
    """Everything of the model, at the same bits; what Keras stored of compile comes along."""
    for make in (convolutional, nested, attention):
        model = randomized(make())
        model.compile(keras.optimizers.SGD(0.5), ["mse"] * len(model.outputs), metrics=[["mae"]] * len(model.outputs))
        model.save(tmp_path / "base.keras")
        base = load(tmp_path / "base.keras")
        assert base.architecture == to_json(model)
        again = build(base.architecture)
        set_weights(again, base.weights)
        assert all(np.array_equal(a, b) for a, b in zip(predictions(again), predictions(model), strict=True))
        assert base.compile_config is not None
        assert base.compile_config["optimizer"]["class_name"] == "SGD"
    model = convolutional()
    model.save(tmp_path / "plain.keras")
    assert load(tmp_path / "plain.keras").compile_config is None


def test_losses_by_position_become_losses_by_output(tmp_path: Path) -> None:
    """The list that Keras stores has no names; what comes back is plain JSON, to be stored with a run."""
    model = nested()
    model.compile("adam", [keras.losses.SparseCategoricalCrossentropy(), "mse"], metrics=[["accuracy"], []])
    model.save(tmp_path / "base.keras")
    config = load(tmp_path / "base.keras").compile_config
    assert config is not None
    assert config["loss"].keys() == {"label", "value"}
    assert config["loss"]["value"] == "mse"
    assert json.loads(json.dumps(config)) == config


def unnumbered(architecture: str) -> str:
    """Graph operations cannot be named: take off the numbers that Keras gave them in this process."""
    return re.sub(r'"(add|multiply)_\d+"', r'"\1"', architecture)


def test_a_function_gives_the_same_names_each_time(tmp_path: Path) -> None:
    """Layers without names are numbered from 0, whatever the process made before: the fingerprint stays."""
    unnamed().save_weights(tmp_path / "base.weights.h5")
    first = load(tmp_path / "base.weights.h5", "tests.fedretrain.test_modelfile:unnamed").architecture
    number = int(layers.Dense(1).name.rpartition("_")[2])
    assert load(tmp_path / "base.weights.h5", "tests.fedretrain.test_modelfile:unnamed").architecture == first
    assert int(layers.Dense(1).name.rpartition("_")[2]) == number + 1


def unnamed() -> Any:
    """Keras makes up the names."""
    return keras.Sequential([layers.Input((2,)), layers.Dense(2), layers.Dense(1)])


@pytest.mark.parametrize(("make", "reference"), [(convolutional, CONVOLUTIONAL), (nested, NESTED)])
def test_every_kind_of_file_gives_the_same_base_model(make: Any, reference: str, tmp_path: Path) -> None:
    """SavedModel, checkpoint and weights files hold the numbers of the .keras file; seeds differ and are set to 0."""
    model = trained(make)
    model.save(tmp_path / "base.keras")
    model.save_weights(tmp_path / "base.weights.h5")
    model.export(tmp_path / "exported", verbose=False)
    tf.saved_model.save(model, str(tmp_path / "saved"))
    tf.train.Checkpoint(model=model).save(str(tmp_path / "checkpoint" / "c"))
    base = load(tmp_path / "base.keras")
    tf.train.Checkpoint(model=model).write(str(tmp_path / "written" / "w"))
    files = ("base.weights.h5", "exported", "saved", "checkpoint", "checkpoint/c-1.index", "written/w")
    for name in files:
        other = load(tmp_path / name, reference)
        assert weights_digest(other.weights) == weights_digest(base.weights), name
        assert other.architecture == unnumbered(base.architecture)
        assert other.compile_config is None


def test_an_old_h5_file_gives_its_weights(tmp_path: Path) -> None:
    """Keras' former format, whole model or weights, read for its weights."""
    model = trained(convolutional)
    model.save(tmp_path / "base.h5")
    model.save(tmp_path / "base.keras")
    digests = {
        weights_digest(load(tmp_path / "base.h5", CONVOLUTIONAL).weights),
        weights_digest(load(tmp_path / "base.keras").weights),
    }
    assert len(digests) == 1


def test_a_file_without_architecture_asks_for_it(tmp_path: Path) -> None:
    """The message names the key and its form."""
    convolutional().save_weights(tmp_path / "base.weights.h5")
    message = refused(tmp_path / "base.weights.h5", ConfigurationError)
    assert "model.architecture" in message
    assert "module:function" in message


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("no_such_module:f", "model.architecture: expected a module that is installed or lies in"),
        ("tests.fedretrain.models:no_such", "expected a function 'no_such'"),
        ("tests.fedretrain.models:predictions", "'tests.fedretrain.models:predictions' raised TypeError"),
        ("builtins:dict", "to return a model"),
    ],
)
def test_a_function_that_makes_no_model_is_the_operators_error(reference: str, says: str, tmp_path: Path) -> None:
    """Not there, not callable as it should be, or of another kind."""
    convolutional().save_weights(tmp_path / "base.weights.h5")
    assert says in refused(tmp_path / "base.weights.h5", ConfigurationError, reference)


def test_weights_of_another_architecture_name_the_first_difference(tmp_path: Path) -> None:
    """With both shapes, whatever the file; where there are more or fewer, how many, and the first without a like."""
    model = convolutional()
    model.save(tmp_path / "base.keras")
    model.save(tmp_path / "keras2.h5")
    model.save_weights(tmp_path / "base.weights.h5")
    model.export(tmp_path / "exported", verbose=False)
    tf.train.Checkpoint(model=model).save(str(tmp_path / "checkpoint" / "c"))
    other = "tests.fedretrain.test_modelfile:wider"
    for name in ("base.keras", "base.weights.h5", "keras2.h5"):
        message = refused(tmp_path / name, ConfigurationError, other)
        assert "'conv1/kernel': expected [3, 3, 1, 4] as in the architecture, got [3, 3, 1, 2]" in message
    for name in ("base.weights.h5", "base.keras", "keras2.h5"):
        message = refused(tmp_path / name, ConfigurationError, NESTED)
        assert "variables as in the architecture, got" in message
        assert "the first that the file has none like is '" in message
        assert message.count(name) == 1
    message = refused(tmp_path / "exported", ConfigurationError, other)
    assert "'conv1/kernel': expected float32 [3, 3, 1, 4] as in the architecture, got float32 [3, 3, 1, 2]" in message
    assert "'conv1/kernel': expected float32 [3, 3, 1, 4]" in refused(
        tmp_path / "checkpoint", ConfigurationError, other
    )
    message = refused(tmp_path / "exported", ConfigurationError, NESTED)
    assert "expected 22 variables as in the architecture, got 8; the first that differs is '" in message
    assert "expected [4], got [3, 3, 1, 2]" in message
    assert "got none, the nearest" in refused(tmp_path / "checkpoint", ConfigurationError, NESTED)


def wider() -> Any:
    """The convolutional model with more filters."""
    text = to_json(convolutional()).replace('"filters":2', '"filters":4').replace("[null,4,4,2]", "[null,4,4,4]")
    return build(text.replace("[null,32]", "[null,64]").replace('"shape":[null,4,4,2]', '"shape":[null,4,4,4]'))


def shorter() -> Any:
    """The convolutional model without its normalization: what is left fits by name and shape."""
    model = convolutional()
    kept = [layer for layer in model.layers if layer.name not in {"norm", "dropout"}]
    return keras.Sequential([layers.Input((6, 6, 1), name="image"), *kept], name="digits")


def test_weights_that_the_architecture_lacks_are_refused(tmp_path: Path) -> None:
    """They would be dropped without a word; the first is named with its shape. An optimizer's are no weights."""
    model = trained(convolutional)
    model.save(tmp_path / "base.keras")
    model.save(tmp_path / "keras2.h5")
    model.save_weights(tmp_path / "base.weights.h5")
    tf.saved_model.save(model, str(tmp_path / "saved"))
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "checkpoint" / "c"))
    short = "tests.fedretrain.test_modelfile:shorter"
    for name in ("base.keras", "base.weights.h5"):
        message = refused(tmp_path / name, ConfigurationError, short)
        assert "the first that it lacks is 'layers/batch_normalization/vars/0' [2]" in message
    for name in ("saved", "checkpoint"):
        message = refused(tmp_path / name, ConfigurationError, short)
        assert "the first that it lacks is 'digits/norm/gamma' [2]" in message
    refused(tmp_path / "keras2.h5", ConfigurationError, short)
    load(tmp_path / "checkpoint", CONVOLUTIONAL)


def test_another_model_in_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    """As of a generator and its discriminator: only the one that the architecture is of must fit whole."""
    model, other = trained(convolutional), keras.Sequential([layers.Input((2,)), layers.Dense(1, name="other")])
    tf.train.Checkpoint(one=model, two=other).save(str(tmp_path / "checkpoint" / "c"))
    model.save(tmp_path / "base.keras")
    base = load(tmp_path / "base.keras")
    assert weights_digest(load(tmp_path / "checkpoint", CONVOLUTIONAL).weights) == weights_digest(base.weights)


def test_lambda_and_own_layers_need_the_operators_word(tmp_path: Path) -> None:
    """One line names the file, the layer and what to do; a Lambda stays out, a named module's class gets in."""
    from .own_layers import Scale

    model = keras.Sequential([layers.Input((2,)), layers.Lambda(abs, name="absolute"), layers.Dense(1)])
    model.save(tmp_path / "lambda.keras")
    assert "layer 'absolute': keras.layers.Lambda" in refused(tmp_path / "lambda.keras", ModelRefused, None, ("tests",))
    model = keras.Sequential([layers.Input((2,)), Scale(3.0, name="scale"), layers.Dense(1)])
    model.save(tmp_path / "own.keras")
    assert "layer 'scale'" in refused(tmp_path / "own.keras", ModelRefused)
    base = load(tmp_path / "own.keras", None, ("tests.fedretrain.own_layers",))
    assert weights_digest(base.weights) == weights_digest(weights_of(model))


def test_the_operators_function_stands_in_for_a_refused_architecture(tmp_path: Path) -> None:
    """With both given, the .keras file gives the weights alone."""
    model = randomized(convolutional())
    model.save(tmp_path / "base.keras")
    with zipfile.ZipFile(tmp_path / "base.keras") as archive:
        config = archive.read("config.json").replace(b'"class_name": "Rescaling"', b'"class_name": "Lambda"')
    path = rewrite(tmp_path / "base.keras", tmp_path / "other.keras", config_json=config)
    assert "Lambda" in refused(path, ModelRefused)
    assert weights_digest(load(path, CONVOLUTIONAL).weights) == weights_digest(load(tmp_path / "base.keras").weights)


def test_damaged_keras_files_are_one_line(tmp_path: Path) -> None:
    """Truncated anywhere, flipped bytes, empty, another kind of file, a folder, no JSON inside."""
    convolutional().save(tmp_path / "base.keras")
    good = (tmp_path / "base.keras").read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 255
    path = tmp_path / "bad.keras"
    for content in (b"", b"text", good[:100], good[: len(good) // 2], good[:-10], bytes(flipped)):
        path.write_bytes(content)
        refused(path, ConfigurationError)
    path.unlink()
    path.mkdir()
    refused(path, ConfigurationError)
    for config in (b"[1]", b"{", b"[" * 100_000):
        other = rewrite(tmp_path / "base.keras", tmp_path / "other.keras", config_json=config)
        assert "config.json: expected a JSON object" in refused(other, ConfigurationError)


def test_only_known_members_of_bounded_size_are_read(tmp_path: Path) -> None:
    """Assets, strangers, doubles, and members that expand without end (fault 48) are refused before reading."""
    convolutional().save(tmp_path / "base.keras")
    base, path = tmp_path / "base.keras", tmp_path / "other.keras"
    assert "vocabulary" in refused(rewrite(base, path, **{"assets/layers/x.txt": b"a"}), ModelRefused)
    assert "expected the members" in refused(rewrite(base, path, **{"model.py": b"import os"}), ModelRefused)
    rewrite(base, path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.json", b"{}")
    assert "expected the members" in refused(path, ModelRefused)
    with zipfile.ZipFile(base) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, b" " * 30_000_000 if name == "config.json" else old.read(name))
    assert path.stat().st_size < 200_000
    assert "config.json: expected at most 20000000 bytes, got 30000000" in refused(path, ModelRefused)
    with zipfile.ZipFile(base) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, bytes(30_000_000) if name.endswith("h5") else old.read(name))
    assert "far larger" in refused(path, ModelRefused)


def test_links_inside_a_keras_file_are_found_before_keras_follows_them(tmp_path: Path) -> None:
    """Fault 50, inside the archive."""
    convolutional().save(tmp_path / "base.keras")
    with zipfile.ZipFile(tmp_path / "base.keras") as archive:
        archive.extract("model.weights.h5", tmp_path)
    with h5py.File(tmp_path / "model.weights.h5", "a") as file:
        file.move("layers/dense/vars/0", "aside")
        file["layers/dense/vars/0"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")
    content = (tmp_path / "model.weights.h5").read_bytes()
    path = rewrite(tmp_path / "base.keras", tmp_path / "other.keras", model_weights_h5=content)
    assert "'layers/dense/vars/0' is a link" in refused(path, ModelRefused)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    """A base model with NaN would poison every round; the variable is named."""
    model = convolutional()
    model.layers[-1].bias.assign([0, np.nan, 0])
    model.save(tmp_path / "base.keras")
    assert "head/bias': expected finite weights" in refused(tmp_path / "base.keras", ConfigurationError)


def test_other_kinds_of_files_are_named(tmp_path: Path) -> None:
    """What is no model at all, and a folder without one."""
    (tmp_path / "model.onnx").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    for name in ("model.onnx", "folder"):
        assert "model.path: expected a .keras file" in refused(tmp_path / name, ConfigurationError, CONVOLUTIONAL)


def test_a_damaged_checkpoint_is_one_line(tmp_path: Path) -> None:
    """TensorFlow's own words do not reach the operator alone."""
    convolutional().export(tmp_path / "exported", verbose=False)
    index = tmp_path / "exported" / "variables" / "variables.index"
    for content in (b"", index.read_bytes()[:50]):
        index.write_bytes(content)
        assert "undamaged checkpoint" in refused(tmp_path / "exported", ConfigurationError, CONVOLUTIONAL)
    shutil.rmtree(tmp_path / "exported" / "variables")
    refused(tmp_path / "exported", ConfigurationError, CONVOLUTIONAL)
