"""This project: ``fedretrain simulate JOB.toml``, as a researcher starts it, with all that comes with a run."""

import sysconfig
import tempfile
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fedretrain.processes import clean_environment
from simulations.benchmarks.race import Command, Mark, Work
from simulations.benchmarks.setting import make_model
from simulations.quiet import diverted_stderr

_JOB = """\
[model]
path = "model.keras"

[train]
rounds = 100000                 # it is ended from outside
local_epochs = {epochs}
batch_size = {batch}
optimizer = {{ name = "sgd", learning_rate = {rate} }}
validation_fraction = {validation}

[participation]
fraction = {fraction}
min_sites = {per_round}

[[holdout]]
name = "test"
path = "test.npz"

[simulation]
sites = "sites/*.npz"
"""


def prepare(folder: Path, work: Work, *, validating: bool = False, engine: str = "local") -> Command:
    """Write model, sites and job.

    Args:
        folder: An empty folder.
        work: What is done.
        validating: Each site has a ninth more examples, to evaluate the model on; it trains on as many.
        engine: "local" or "flower".
    """
    sites = _write_sites(folder / "sites", work.data, validating)
    (folder / "model.keras").write_bytes(_model(work.case.model, work.rate))
    x, y = (np.load(work.data / f"{name}_test.npy") for name in "xy")
    np.savez(folder / "test.npz", allow_pickle=False, x=x, y=y)
    job = _JOB.format(
        epochs=work.case.epochs,
        batch=work.batch,
        rate=work.rate,
        validation=0.1 if validating else 0.0,
        fraction=work.per_round / sites,
        per_round=work.per_round,
    )
    (folder / "job.toml").write_text(job, encoding="utf-8")
    command = [str(Path(sysconfig.get_path("scripts")) / "fedretrain"), "simulate", str(folder / "job.toml")]
    command += ["--out", str(folder / "out"), "--workers", str(work.processes), "--engine", engine]
    return Command(command, clean_environment(), "out/runs/*/events.jsonl", _mark)


def _write_sites(folder: Path, data: Path, validating: bool) -> int:
    folder.mkdir()
    x, y = (np.load(data / f"{name}.npy", mmap_mode="r") for name in "xy")
    more = x.shape[1] // 9 if validating else 0  # the next site's first ones
    for site in range(len(x)):
        other = (site + 1) % len(x)
        part = {"x": np.concatenate([x[site], x[other][:more]]), "y": np.concatenate([y[site], y[other][:more]])}
        np.savez(folder / f"site-{site:04}.npz", allow_pickle=False, **part)
    return len(x)


@cache
def _model(name: str, rate: float) -> bytes:
    """A .keras file."""
    with tempfile.TemporaryDirectory() as folder, diverted_stderr(Path(folder) / "log"):  # TensorFlow greets at length
        import keras

        model = make_model(name)
        model.compile(keras.optimizers.SGD(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
        model.save(Path(folder) / "model.keras")
        return (Path(folder) / "model.keras").read_bytes()


def _mark(event: Mapping[str, Any]) -> Mark | None:
    """What an event says: a round's beginning or its end."""
    updates = {"round-started": 0, "round-finished": len(event.get("admitted", ()))}.get(event["event"])
    return None if updates is None else Mark(updates, datetime.fromisoformat(event["at"]).timestamp())
