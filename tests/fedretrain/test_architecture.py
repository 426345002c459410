"""Architectures are canonical, round trips keep them, and weights go by position."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from fedretrain.architecture import (
    MAX_JSON_BYTES,
    build,
    canonical,
    fingerprint,
    named_layers,
    set_weights,
    to_json,
    weights_of,
)
from fedretrain.digest import weights_digest
from fedretrain.errors import ModelRefused

from .models import attention, convolutional, nested, predictions, randomized

MODELS = pytest.mark.parametrize("make", [convolutional, nested, attention])


@MODELS
def test_building_from_json_gives_the_same_json_and_the_same_model(make: Any) -> None:
    """Build and write are inverse; with the weights by position the outputs are the same bits."""
    model = randomized(make())
    text = to_json(model)
    again = build(text)
    assert to_json(again) == text
    set_weights(again, weights_of(model))
    assert weights_digest(weights_of(again)) == weights_digest(weights_of(model))
    assert all(np.array_equal(a, b) for a, b in zip(predictions(again), predictions(model), strict=True))


@MODELS
def test_json_is_the_same_before_and_after_compiling_saving_and_loading(make: Any, tmp_path: Path) -> None:
    """Two saves of one model differ in object ids and times; its architecture does not."""
    model = make()
    text = to_json(model)
    model.compile("adam", ["mse"] * len(model.outputs))
    texts = [to_json(model)]
    for name in ("a.keras", "b.keras"):
        model.save(tmp_path / name)
        with zipfile.ZipFile(tmp_path / name) as archive:
            config = json.loads(archive.read("config.json"))
        assert "compile_config" in config
        texts.append(canonical(config))
        model = keras.saving.load_model(tmp_path / name, compile=False)
        model.compile("sgd", ["mae"] * len(model.outputs))
    assert set(texts) == {text}
    assert "compile_config" not in text
    assert "shared_object_id" not in text


@pytest.mark.slow
def test_fingerprint_is_the_same_in_another_process() -> None:
    """Names and ids that Keras makes up in a process are not part of it."""
    code = (
        "from tests.fedretrain.models import *; from fedretrain.architecture import *; attention(); "
        "text = to_json(nested()); build(text); print(fingerprint(to_json(build(text))))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()[-1]
    keras.backend.clear_session()  # names made up by Keras start from 0, as in a fresh process
    attention()
    assert found == fingerprint(to_json(nested()))


def test_layer_names_are_kept_and_paths_show_nesting() -> None:
    """The freeze patterns of a job mean the same layers at every site."""
    paths = [path for path, _ in named_layers(build(to_json(nested())))]
    assert {"outer", "outer/inner", "outer/inner/dense1", "outer/top", "each", "each/step", "lstm", "label"} <= {*paths}
    assert paths.index("outer") < paths.index("outer/inner") < paths.index("outer/inner/dense1")


def test_normalization_computes_with_the_weights_it_was_given() -> None:
    """It keeps copies of its mean and variance, which assigning to its variables alone leaves at 0 and 1."""
    model = nested()
    again = build(to_json(model))
    assert not np.array_equal(predictions(again)[0], predictions(model)[0])
    set_weights(again, weights_of(model))
    assert np.array_equal(predictions(again)[0], predictions(model)[0])


def test_parameters_are_counted_before_they_are_allocated() -> None:
    """An architecture of 64 GB does not cost memory, nor does a later model pay for it."""
    text = to_json(keras.Sequential([layers.Input((4,)), layers.Dense(8, name="big")]))
    build(text, max_parameters=40)
    with pytest.raises(ModelRefused, match=r"at most 39 parameters, got 40"):
        build(text, max_parameters=39)
    huge = text.replace('"units":8', '"units":4000000000')
    assert huge != text
    with pytest.raises(ModelRefused, match="got 20000000000"):
        build(huge, max_parameters=40)
    assert build(text, max_parameters=40).count_params() == 40


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected JSON"),
        ("{", "expected JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * 300 + "]" * 300, "at most 200 levels"),
        (json.dumps("x" * MAX_JSON_BYTES), "at most 20000000 bytes"),
        ("{}", "expected a model"),
        ("null", "expected a model"),
        (
            '{"class_name":"Dense","config":{"units":2},"module":"keras.layers","registered_name":null}',
            "expected a model, got Dense",
        ),
        (
            '{"class_name":"Sequential","config":{"layers":3},"module":"keras","registered_name":null}',
            "Keras cannot build it",
        ),
    ],
)
def test_what_is_no_architecture_is_refused_in_one_line(text: str, says: str) -> None:
    """Too large, too deep, no JSON, no model, or a configuration Keras cannot use."""
    with pytest.raises(ModelRefused, match=says) as caught:
        build(text)
    assert "\n" not in str(caught.value)


def test_a_layer_in_two_models_is_refused() -> None:
    """Keras stores it twice: built again the two would drift apart."""
    shared = layers.Dense(3, name="shared")
    first = keras.Sequential([layers.Input((3,)), shared], name="first")
    second = keras.Sequential([layers.Input((3,)), shared], name="second")
    x = layers.Input((3,))
    with pytest.raises(ModelRefused, match="'second/shared' is the same object as 'first/shared'"):
        to_json(keras.Model(x, second(first(x))))


def test_a_subclassed_model_without_configuration_is_refused() -> None:
    """Only what can be built again can travel."""

    class Own(keras.Model):
        def __init__(self, setting):
            super().__init__()
            self.setting = setting

    with pytest.raises(ModelRefused, match="cannot be written as an architecture"):
        to_json(Own(setting=object()))


def test_weights_that_do_not_fit_change_nothing() -> None:
    """Count, shape and dtype are checked before the first variable is touched; the position is named."""
    model = convolutional()
    before = weights_digest(weights_of(model))
    good = [w + 1 for w in weights_of(model)]
    last = len(good) - 1
    for bad, says in (
        (good[:-1], f"expected {last + 1} arrays, got {last}"),
        ([*good[:-1], np.zeros(4, np.float32)], rf"position {last} .*shape \[3\] of float32, got \[4\] of float32"),
        ([*good[:-1], np.zeros(3)], rf"position {last} .*got \[3\] of float64"),
    ):
        with pytest.raises(ModelRefused, match=says):
            set_weights(model, bad)
        assert weights_digest(weights_of(model)) == before
    set_weights(model, good)
    assert weights_digest(weights_of(model)) == weights_digest(good)


def test_weights_are_copies() -> None:
    """What was read does not change when the model trains on."""
    model = convolutional()
    weights = weights_of(model)
    digest = weights_digest(weights)
    set_weights(model, [w + 1 for w in weights])
    assert weights_digest(weights) == digest
