"""Kinds of models from job to release: several inputs and outputs, regression, 0/1 labels, classes as rows."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedretrain.job import load_job
from fedretrain.runfolder import RunFolder
from fedretrain.simsites import simulated_sites
from server.registry import Registry
from server.run import execute
from simulations.engine import LocalGrid
from simulations.pool import WorkerPool
from simulations.worker import Sites

pytestmark = pytest.mark.slow
Arrays = dict[str, Any]
TRUTH = np.array([2.0, -1.0, 0.5, 1.0])


def features(rng: np.random.Generator, n: int) -> tuple[Any, Any]:
    x = rng.normal(size=(n, 4)).astype(np.float32)
    return x, x @ TRUTH


def binary(x: Any, score: Any) -> Arrays:
    return {"x": x, "y": (score > 0).astype(np.int64)}


def binary_column(x: Any, score: Any) -> Arrays:
    return {"x": x, "y": (score > 0).astype(np.float32)[:, None]}


def regression(x: Any, score: Any) -> Arrays:
    return {"x": x, "y": score.astype(np.float32)}


def onehot(x: Any, score: Any) -> Arrays:
    return {"x": x, "y": np.eye(3, dtype=np.float32)[np.digitize(score, [-1, 1])]}


def two_and_two(x: Any, score: Any) -> Arrays:
    return {"x.left": x[:, :2], "x.right": x[:, 2:], "y.level": score.astype(np.float32), "y.sign": score > 0}


def dense(units: int, activation: str | None, loss: str, metrics: list[str]) -> Any:
    import keras

    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(units, activation, name="head")])
    model.compile("sgd", loss, metrics=metrics)
    return model


def branched() -> Any:
    import keras

    left, right = keras.Input((2,), name="left"), keras.Input((2,), name="right")
    both = keras.layers.Concatenate()([left, right])
    level = keras.layers.Dense(1, name="level")(both)
    sign = keras.layers.Dense(1, "sigmoid", name="sign")(both)
    model = keras.Model([left, right], {"level": level, "sign": sign})
    model.compile("sgd", {"level": "mse", "sign": "binary_crossentropy"})
    return model


KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any, Any], Arrays]]] = {
    "binary": (lambda: dense(1, "sigmoid", "binary_crossentropy", ["accuracy"]), binary),
    "binary column, auc": (lambda: dense(1, "sigmoid", "binary_crossentropy", ["auc"]), binary_column),
    "regression": (lambda: dense(1, None, "mean_squared_error", []), regression),
    "one-hot": (lambda: dense(3, "softmax", "categorical_crossentropy", ["accuracy"]), onehot),
    "two inputs, two outputs": (branched, two_and_two),
}
METRICS = {"binary": "accuracy", "binary column, auc": "auc", "one-hot": "accuracy"}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerPool]:
    with WorkerPool(1, logs=tmp_path_factory.mktemp("logs")) as pool:
        yield pool


def make_job(folder: Path, make: Callable[[], Any], arrays: Callable[[Any, Any], Arrays]) -> Path:
    """A model that knows nothing yet, two sites, and one holdout on which it has to improve."""
    import keras

    keras.utils.set_random_seed(0)
    make().save(folder / "base.keras")
    (folder / "sites").mkdir()
    rng = np.random.default_rng(0)
    for name, n in {"new": 300, "sites/a": 120, "sites/b": 90}.items():
        np.savez(folder / f"{name}.npz", **arrays(*features(rng, n)))
    (folder / "job.toml").write_text(
        """
        [model]
        path = "base.keras"
        [train]
        rounds = 3
        local_epochs = 3
        optimizer = { name = "sgd", learning_rate = 0.05 }
        [[holdout]]
        name = "new"
        path = "new.npz"
        must = "improve"
        [simulation]
        sites = "sites/*.npz"
        """
    )
    return folder / "job.toml"


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_this_kind_is_retrained_and_released(kind: str, pool: WorkerPool, tmp_path: Path) -> None:
    """Real sites train it, the gate sees it improve on the metric that fits it, and what is released verifies."""
    job = load_job(make_job(tmp_path, *KINDS[kind]))
    folder = RunFolder.create(tmp_path / "out", "r1", job)
    with LocalGrid(Sites(simulated_sites(job), folder.store), pool=pool) as grid:
        result = execute(job, grid, folder)
    assert result["outcome"] == "released", result["gate"]["reasons"]
    assert [len(r["admitted"]) for r in result["rounds"]] == [2, 2, 2]
    assert result["gate"]["holdouts"][0]["metric"] == METRICS.get(kind, "loss")
    incumbent = Registry.open(folder.out).incumbent()
    assert incumbent is not None
    assert incumbent.id == result["release"]
