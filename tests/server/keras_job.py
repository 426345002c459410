"""A job with a real Keras model and real holdouts, and sites that know where the truth lies.

Examples are four numbers; the class is which of two linear functions is larger. The base model has noise on its
weights, so that pulling them towards the truth must improve it, and pulling them away must not.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.job import Job, load_job
from fedretrain.runfolder import RunFolder
from server.run import execute

from .grid import NumpySite, ScriptedGrid

TRUTH = np.float32([[2, -2], [-1, 1], [1, -1], [0, 0]])


def make_job(folder: Path, *, rounds: int = 2, more: str = "") -> Path:
    """Writes base.keras, old.npz, new.npz and job.toml."""
    import keras

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("old", "new"):
        x = rng.normal(size=(600, 4)).astype(np.float32)
        np.savez(folder / f"{name}.npz", x=x, y=np.argmax(x @ TRUTH, axis=1))
    layers = [
        keras.layers.Input((4,), name="x"),
        keras.layers.Dense(4, use_bias=False, kernel_initializer="identity", name="frozen"),
        keras.layers.Dense(2, use_bias=False, activation="softmax", name="head"),
    ]
    model = keras.Sequential(layers)
    model.layers[-1].set_weights([TRUTH + rng.normal(0, 1.2, TRUTH.shape).astype(np.float32)])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.save(folder / "base.keras")
    job = folder / "job.toml"
    job.write_text(
        f"""
[model]
path = "base.keras"
freeze = ["frozen"]
[train]
rounds = {rounds}
[participation]
deadline_s = 20.0
[[holdout]]
name = "old"
path = "old.npz"
margin = 0.05
[[holdout]]
name = "new"
path = "new.npz"
must = "improve"
{more}"""
    )
    return job


def towards(target: NDArray[Any]) -> Any:
    return lambda _round, params: [(0.5 * (target - p)).astype(np.float32) for p in params]


def sites(target: NDArray[Any] = TRUTH, n: int = 3) -> list[NumpySite]:
    return [NumpySite(name, 10 + i, towards(target)) for i, name in enumerate("abcdef"[:n])]


def start(job: Job | Path, out: Path, target: NDArray[Any] = TRUTH, run: str = "r1", **watch: Any) -> dict[str, Any]:
    """One start of a run, as the command would."""
    job = load_job(job) if isinstance(job, Path) else job
    return execute(job, ScriptedGrid(sites(target)), RunFolder.create(out, run, job), **watch)
