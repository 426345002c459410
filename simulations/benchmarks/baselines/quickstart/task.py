"""Model and data."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def load_model(name: str, rate: float) -> Any:
    """A compiled ``keras.Model``."""
    import keras

    keras.utils.set_random_seed(0)
    layers: list[Any]
    if name == "2nn":
        layers = [keras.Input((784,))]
        layers += [keras.layers.Dense(200, activation="relu") for _ in range(2)]
    else:
        layers = [keras.Input((28, 28, 1))]
        for channels in (32, 64):
            layers.append(keras.layers.Conv2D(channels, 5, padding="same", activation="relu"))
            layers.append(keras.layers.MaxPooling2D())
        layers += [keras.layers.Flatten(), keras.layers.Dense(512, activation="relu")]
    model = keras.Sequential([*layers, keras.layers.Dense(10, activation="softmax")])
    model.compile(keras.optimizers.SGD(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def load_data(folder: str, site: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """One site's examples."""
    x, y = (np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in "xy")
    return np.array(x[site]), np.array(y[site])


def say(file: str, updates: int) -> None:
    """Add a line: so many updates more, at this moment."""
    with Path(file).open("a", encoding="utf-8") as out:
        out.write(json.dumps({"updates": updates, "at": time.time()}) + "\n")
