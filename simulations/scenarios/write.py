"""A drift as files: what ``fedretrain simulate`` needs to run any of the example jobs on it.

Layout of the folder, which appears complete or not at all::

    model.keras               the model in use, trained on what there was before the drift
    old.npz, new.npz          holdouts: what it could do, and what has come
    sites/NAME.npz            one file for each site, with ``timestamp`` and the names of the labels
    MODE.toml                 the example jobs that mean something here (``simulations/examples``)
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedretrain import atomic
from fedretrain.errors import ConfigurationError
from simulations.demo import train_base
from simulations.digits import Part

from .base import Scenario, SiteData
from .registry import Drift, examples

MODEL = "model.keras"


def write(drift: Drift, folder: Path, say: Callable[[str], None]) -> list[str]:
    """Make the data, train the model in use, and copy the example jobs.

    Args:
        drift: What to make.
        folder: Does not exist yet.
        say: Told what is being done, one short line at a time.

    Returns:
        The names of the job files.

    Raises:
        ConfigurationError: The folder exists, or scikit-learn is missing.
        MachineError: The disk is full or not writable.
    """
    if folder.exists():
        raise ConfigurationError(f"{folder}: expected a folder that does not exist yet; choose another one")
    say("dividing the digits")
    scenario = drift.make()
    atomic.make_folder(folder.parent)
    with atomic.disk_errors(folder), tempfile.TemporaryDirectory(dir=folder.parent, prefix=".scenario.") as temporary:
        made = Path(temporary) / "made"
        (made / "sites").mkdir(parents=True)
        _write_parts(made, scenario)
        say("training the model in use")
        train_base(scenario.base, drift.seed, scenario.known).save(made / MODEL)
        jobs = examples(drift.name)
        for job in jobs:
            shutil.copyfile(job, made / job.name)
        made.rename(folder)
    return [job.name for job in jobs]


def _write_parts(folder: Path, scenario: Scenario) -> None:
    names = np.array(scenario.labels)
    for name, part in {"old": scenario.old, "new": scenario.new}.items():
        np.savez(folder / f"{name}.npz", allow_pickle=False, **_arrays(part), labels=names)
    for name, data in scenario.sites.items():
        np.savez(folder / "sites" / f"{name}.npz", allow_pickle=False, **_site_arrays(data), labels=names)


def _arrays(part: Part) -> dict[str, Any]:
    return {"x": part.x, "y": part.y}


def _site_arrays(data: SiteData) -> dict[str, Any]:
    return {**_arrays(data.part), "timestamp": data.time}
