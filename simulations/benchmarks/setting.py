"""The setting of McMahan et al. 2017 (arXiv:1602.05629, section 3): MNIST at 100 sites, and the paper's two models.

``2nn``: two hidden layers of 200 units, 199,210 parameters. ``cnn``: two 5x5 convolutions of 32 and 64 channels, each
with 2x2 pooling, and a layer of 512 units, 1,663,370 parameters.

MNIST is an npz with ``x_train`` uint8 [60000, 28, 28], ``y_train``, ``x_test``, ``y_test``, as Keras has it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.errors import ConfigurationError

SIDE, CLASSES = 28, 10
MODELS = ("2nn", "cnn")


@dataclass(frozen=True)
class Images:
    """Grey images (uint8 [n, 28, 28]) and their digits (int64 [n])."""

    x: NDArray[np.uint8]
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: NDArray[np.int64] | slice) -> "Images":
        """Those rows, in that order."""
        return Images(self.x[rows], self.y[rows])

    def inputs(self, model: str) -> NDArray[np.float32]:
        """What a model takes: float32 in [0, 1], [n, 784] for the 2NN and [n, 28, 28, 1] for the CNN."""
        shape = (SIDE * SIDE,) if model == "2nn" else (SIDE, SIDE, 1)
        return (self.x.astype(np.float32) / np.float32(255)).reshape(-1, *shape)


def load_mnist(path: Path | None) -> tuple[Images, Images]:
    """Training and test images, from the file or, without one, as Keras downloads them.

    Raises:
        ConfigurationError: The file is missing or holds something else.
    """
    if path is None:
        from keras.datasets import mnist

        (x, y), (x_test, y_test) = mnist.load_data()
        return Images(x, y.astype(np.int64)), Images(x_test, y_test.astype(np.int64))
    try:
        with np.load(path, allow_pickle=False) as file:
            train, test = (Images(file[f"x_{part}"], file[f"y_{part}"].astype(np.int64)) for part in ("train", "test"))
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(f"--mnist {path}: expected an npz of x_train, y_train, ...: {error}") from None
    return train, test


def made_up(examples: int, seed: int = 0) -> Images:
    """Noise with a bright line whose place tells the digit: for smoke runs, learnt within a few rounds."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 64, (examples, SIDE, SIDE), dtype=np.uint8)
    y = rng.integers(0, CLASSES, examples)
    x[np.arange(examples), 2 * y + 4] = 255
    return Images(x, y)


def split_evenly(images: Images, sites: int, examples: int, seed: int = 0) -> list[Images]:
    """So many examples at each site, drawn without repetition as long as there are enough (IID)."""
    rng = np.random.default_rng(seed)
    passes = -(-sites * examples // len(images))
    order = np.concatenate([rng.permutation(len(images)) for _ in range(passes)])
    return [images.take(order[i * examples : (i + 1) * examples]) for i in range(sites)]


def make_model(name: str, seed: int = 0) -> Any:
    """One of the paper's models, as an uncompiled ``keras.Model``."""
    import keras

    keras.utils.set_random_seed(seed)
    layers: list[Any]
    if name == "2nn":
        layers = [keras.Input((SIDE * SIDE,), name="image")]
        layers += [keras.layers.Dense(200, activation="relu", name=f"hidden{i}") for i in (1, 2)]
    elif name == "cnn":
        layers = [keras.Input((SIDE, SIDE, 1), name="image")]
        for i, channels in enumerate((32, 64), start=1):
            layers.append(keras.layers.Conv2D(channels, 5, padding="same", activation="relu", name=f"conv{i}"))
            layers.append(keras.layers.MaxPooling2D(name=f"pool{i}"))
        layers += [keras.layers.Flatten(name="flatten"), keras.layers.Dense(512, activation="relu", name="hidden")]
    else:
        raise ValueError(f"model: expected one of {MODELS}, got {name}")
    return keras.Sequential([*layers, keras.layers.Dense(CLASSES, activation="softmax", name="digit")], name=f"m{name}")
