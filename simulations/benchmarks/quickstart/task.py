"""The model and the data of both sides of the benchmark: almost no training, and as many bytes as are asked for."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEATURES = 256
CLASSES = 10
EXAMPLES = 64


def hidden_units(megabytes: float) -> int:
    """The width at which the model's variables take so many MiB as float32."""
    return max(1, round((megabytes * 2**20 / 4 - CLASSES) / (FEATURES + 1 + CLASSES)))


def load_model(megabytes: float) -> Any:
    """A compiled ``keras.Model`` with variables of about that size."""
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((FEATURES,), name="features"),
            keras.layers.Dense(hidden_units(megabytes), activation="relu"),
            keras.layers.Dense(CLASSES, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def load_data(seed: int, examples: int = EXAMPLES) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Random examples (``examples``, ``FEATURES``); the label is the place of the largest of the first ten features."""
    x = np.random.default_rng(seed).normal(size=(examples, FEATURES)).astype(np.float32)
    return x, x[:, :CLASSES].argmax(axis=1).astype(np.int64)


def append(file: Path, line: str) -> None:
    """Add a line to a file that several processes write."""
    with file.open("a", encoding="utf-8") as out:
        out.write(line + "\n")
