"""The central holdouts: their data checked against the contract, and how often each decided about a release.

A holdout that has decided many releases is no independent evidence any more, so its uses are counted: by a digest of
its content, whatever the file is called, and once for each run, however often that run is resumed.

Format ``fedretrain.holdout-uses/1`` of ``OUT/holdout-uses.json``, replaced atomically::

    {"format": "fedretrain.holdout-uses/1", "uses": {digest: [run id, ...]}}
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fedretrain import atomic
from fedretrain.contract import Contract
from fedretrain.dataset import Dataset, as_arrays, check_dataset, load_npz
from fedretrain.digest import json_digest, weights_digest
from fedretrain.errors import ConfigurationError, DataMismatch, MachineError
from fedretrain.foreign import with_label
from fedretrain.job import HoldoutSection, Job, TrainSection

from .measure import choose_measure

FORMAT = "fedretrain.holdout-uses/1"
FILE = "holdout-uses.json"


def load_holdouts(
    job: Job, contract: Contract, train: TrainSection | None = None
) -> list[tuple[HoldoutSection, Dataset]]:
    """All holdouts of a job, checked, in the dtypes that Keras takes; to be called before any round as well.

    Args:
        job: Its holdout tables say where the files are and how they are judged.
        contract: What the model expects.
        train: Resolved, where that is known: says by which metric a holdout is judged that names none.

    Raises:
        ConfigurationError: A file that cannot be read or does not fit the contract, or a metric or output that does
            not fit the model; names the holdout, the file and what was expected.
    """
    return [(section, load_holdout(section, contract, train or job.train)) for section in job.holdout]


def load_holdout(section: HoldoutSection, contract: Contract, train: TrainSection) -> Dataset:
    """One holdout, as ``load_holdouts``."""
    choose_measure(section, contract, train)
    try:
        data = load_npz(section.path, contract)
        check_dataset(data, contract)
    except DataMismatch as mismatch:
        error = with_label(mismatch, section.path, contract)  # the operator's own data, which may be named
        raise ConfigurationError(f"holdout '{section.name}': {section.path}: {error}") from None
    return as_arrays(data, contract)


def holdout_digest(data: Dataset) -> str:
    """What the holdout is counted under: SHA-256 over all its arrays, whatever the file's name or compression."""
    arrays = {f"x.{k}": v for k, v in data.x.items()} | {f"y.{k}": v for k, v in data.y.items()}
    if data.sample_weight is not None:
        arrays["sample_weight"] = data.sample_weight
    if data.slices is not None:
        arrays["slice"] = np.char.encode(data.slices, "utf-8")
    return json_digest({key: weights_digest([array]) for key, array in arrays.items()})


def count_uses(out: Path, digests: Iterable[str]) -> dict[str, int]:
    """By digest: in how many runs the holdout decided about a release so far.

    Raises:
        MachineError: The count under ``out`` is damaged.
    """
    uses = _read(out / FILE)
    return {digest: len(uses.get(digest, [])) for digest in digests}


def record_use(out: Path, run_id: str, digests: Iterable[str]) -> dict[str, int]:
    """Count one use of each holdout for this run, unless this run is counted already; to be called before judging.

    Returns:
        ``count_uses`` with this run in it.

    Raises:
        MachineError: The count is damaged or cannot be written.
    """
    wanted = list(digests)
    atomic.make_folder(out)
    with _only_writer(out):
        uses = _read(out / FILE)
        for digest in wanted:
            uses[digest] = sorted({*uses.get(digest, []), run_id})
        atomic.write_json(out / FILE, {"format": FORMAT, "uses": uses})
    return {digest: len(uses[digest]) for digest in wanted}


def _read(file: Path) -> dict[str, list[str]]:
    with atomic.disk_errors(file, "read"):
        try:
            content = json.loads(file.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError:
            content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not _is_count(content.get("uses")):
        raise MachineError(
            f"{file}: expected the count of holdout uses ({FORMAT}), got something else; put back a copy, or move the "
            "file away to count from zero"
        )
    uses: dict[str, list[str]] = content["uses"]
    return uses


def _is_count(uses: object) -> bool:
    return isinstance(uses, dict) and all(
        isinstance(runs, list) and all(isinstance(run, str) for run in runs) for runs in uses.values()
    )


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Wait until no other process changes the count: runs may share an output folder."""
    with atomic.disk_errors(folder):
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
