"""The model.keras beside a release shows the model that was released."""

from pathlib import Path

import numpy as np
import pytest

from fedretrain import architecture
from fedretrain.errors import ModelRefused
from server.keras_file import keras_writer
from tests.drafts import contract, draft
from tests.signing import incumbent, open_registry, site


def test_the_copy_for_people_predicts_as_the_release(tmp_path: Path) -> None:
    """Opened by Keras, it has the released weights, the compile settings, and the same predictions."""
    import keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(2)])
    model.compile(optimizer="sgd", loss="mse")
    text, arrays = architecture.to_json(model), architecture.weights_of(model)
    release = open_registry(tmp_path).publish(
        draft(
            architecture=text,
            weights=arrays,
            contract=contract(arrays, text),
            keras_file=keras_writer(text, arrays, model.get_compile_config()),
        )
    )
    copy = keras.models.load_model(release.folder / "model.keras")
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_array_equal(copy.predict(x, verbose=0), model.predict(x, verbose=0))
    assert copy.loss == "mse"
    built = architecture.build(incumbent(site(tmp_path, tmp_path / "memory")).architecture)
    architecture.set_weights(built, release.weights)
    np.testing.assert_array_equal(built.predict(x, verbose=0), model.predict(x, verbose=0))


def test_a_copy_that_does_not_fit_is_no_release(tmp_path: Path) -> None:
    """An architecture that Keras may not build stops the release, and nothing of it stays."""
    with pytest.raises(ModelRefused):
        open_registry(tmp_path).publish(draft(keras_file=keras_writer('{"class_name":"Lambda"}', [])))
    assert list((tmp_path / "registry" / "releases").iterdir()) == []
    assert open_registry(tmp_path).incumbent() is None
