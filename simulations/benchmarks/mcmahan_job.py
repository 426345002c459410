"""The job of McMahan et al. 2017: model, sites, test images and job file in one folder, for the real command.

Differences from the paper: the initial weights are Keras' (Glorot uniform), and a job has to name a holdout for its
gate, which here is a thousand training images and decides nothing that is reported.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simulations.partition import Kind, Scheme, partition

from .setting import Images, make_model

BATCH = 10
_GATE_IMAGES = 1000
_JOB = """\
[model]
path = "base.keras"

[train]
rounds = {rounds}
local_epochs = {epochs}
batch_size = {batch}
optimizer = {{ name = "sgd", learning_rate = {rate} }}
loss = "sparse_categorical_crossentropy"
metrics = ["accuracy"]
validation_fraction = 0.0       # as in the paper, a site trains on all it has
seed = {seed}

[participation]
fraction = {fraction}
deadline_s = 3600

[monitor]
path = "test.npz"
metric = "accuracy"
stop_at = {target}

[[holdout]]
name = "gate"
path = "gate.npz"
must = "improve"

[simulation]
sites = "sites"
"""


@dataclass(frozen=True)
class Setting:
    """One experiment.

    Attributes:
        model: ``2nn`` or ``cnn``.
        split: ``iid`` or ``shards``.
        epochs: Passes of a site over its images in a round.
        target: Test accuracy at which the run ends.
        rate: Learning rate.
        rounds: Rounds after which it ends in any case.
        sites: How many sites share the training images.
        fraction: Share of them in a round.
    """

    model: str
    split: str
    epochs: int
    target: float
    rate: float
    rounds: int
    sites: int = 100
    fraction: float = 0.1


def write_job(folder: Path, setting: Setting, train: Images, test: Images, seed: int) -> Path:
    """Write everything the job names, and the job.

    Args:
        folder: Made if need be.
        setting: The experiment.
        train: What the sites share.
        test: What the model is measured on after each round.
        seed: Decides the split, the initial weights and the job's own choices.

    Returns:
        The job file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "all.npz", **_arrays(train, setting.model))
    np.savez(folder / "test.npz", **_arrays(test, setting.model))
    np.savez(folder / "gate.npz", **_arrays(train.take(slice(_GATE_IMAGES)), setting.model))
    partition(folder / "all.npz", folder / "sites", Scheme(Kind(setting.split), setting.sites, seed))
    (folder / "all.npz").unlink()
    make_model(setting.model, seed).save(folder / "base.keras")
    values = {name: getattr(setting, name) for name in ("rounds", "epochs", "rate", "fraction", "target")}
    (folder / "job.toml").write_text(_JOB.format(**values, batch=BATCH, seed=seed))
    return folder / "job.toml"


def _arrays(images: Images, model: str) -> dict[str, Any]:
    return {"x": images.inputs(model), "y": images.y.astype(np.int32)}
