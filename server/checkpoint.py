"""What a run needs to go on after a crash: one file per round, whole and verified, or not there.

Format ``fedretrain.checkpoint/1``: ``state/round-0003.safetensors`` with the tensors ``params.00000``… (the changing
variables after that round, in the contract's order) and ``server.<name>``… (what the strategy remembers), and this
metadata::

    {"format": "fedretrain.checkpoint/1",
     "record": canonical JSON of {"run", "contract", "round", "norms", "history"},
     "sha256": hex over the record, and the tensors by name with dtype and shape}

The last three are kept. A file that does not verify is passed over and named; the one before it counts.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedretrain import atomic
from fedretrain.crashpoint import crash_point
from fedretrain.digest import canonical_json, sha256, weights_digest
from fedretrain.errors import MachineError
from strategies.base import Arrays

FORMAT = "fedretrain.checkpoint/1"
KEEP = 3
_NAME = re.compile(r"round-(\d{4,})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after ``round`` completed rounds.

    ``server`` is what the strategy remembers, by name; ``norms`` are those of the updates admitted in the last round;
    ``history`` has one JSON object per round.
    """

    run: str
    contract: str
    round: int
    params: Arrays
    server: Mapping[str, NDArray[Any]]
    norms: tuple[float, ...]
    history: tuple[Mapping[str, Any], ...]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint and remove those that are older than the last three.

    Raises:
        MachineError: The disk is full; the checkpoints before are as they were.
    """
    fields = {name: getattr(checkpoint, name) for name in ("run", "contract", "round", "norms", "history")}
    record = canonical_json(fields).decode()
    named = {f"params.{i:05d}": array for i, array in enumerate(checkpoint.params)}
    named |= {f"server.{name}": array for name, array in checkpoint.server.items()}
    tensors = {name: np.asarray(array, order="C") for name, array in named.items()}
    metadata = {"format": FORMAT, "record": record, "sha256": _content_digest(record, tensors)}
    path = folder / f"round-{checkpoint.round:04d}.safetensors"
    with atomic.replacing(path, before_replace=lambda: crash_point("checkpoint-written")) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise MachineError(f"{path}: cannot write: {error}; free some space there and resume") from error
    for old in sorted(_files(folder))[:-KEEP]:
        with atomic.disk_errors(folder, "remove an old checkpoint"):
            _files(folder)[old].unlink(missing_ok=True)


def load_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and the names of newer files that do not.

    Raises:
        MachineError: The folder cannot be read.
    """
    corrupt: list[str] = []
    atomic.remove_leftovers(folder)
    for _, path in sorted(_files(folder).items(), reverse=True):
        checkpoint = _load(path)
        if checkpoint is not None:
            return checkpoint, corrupt
        corrupt.append(path.name)
    return None, corrupt


def _load(path: Path) -> Checkpoint | None:
    """The checkpoint in a file, None where it does not verify."""
    try:
        with safe_open(path, framework="numpy") as file:  # type: ignore[no-untyped-call]  # the package has no types
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        if metadata.get("format") != FORMAT or metadata["sha256"] != _content_digest(metadata["record"], tensors):
            return None
        fields = json.loads(metadata["record"])
        return Checkpoint(
            run=fields["run"],
            contract=fields["contract"],
            round=fields["round"],
            params=[a for name, a in tensors.items() if name.startswith("params.")],
            server={name.removeprefix("server."): a for name, a in tensors.items() if name.startswith("server.")},
            norms=tuple(fields["norms"]),
            history=tuple(fields["history"]),
        )
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None


def _files(folder: Path) -> dict[int, Path]:
    """Checkpoint files by round."""
    with atomic.disk_errors(folder, "read"):
        return {int(match[1]): path for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))}


def _content_digest(record: str, tensors: Mapping[str, NDArray[Any]]) -> str:
    names = sorted(tensors)
    return sha256(canonical_json([record, names, weights_digest(tensors[name] for name in names)]))
