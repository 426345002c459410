"""What a run needs to go on after a crash: one file per round, whole and verified, or not there.

Format ``fedretrain.checkpoint/2``: ``state/round-0003.safetensors`` with the tensors ``params.00000``… (the changing
variables after that round, in the contract's order) and ``server.<name>``… (what the strategy remembers), and this
metadata::

    {"format": "fedretrain.checkpoint/2",
     "record": canonical JSON of {"run", "contract", "round", "norms", "history": {"bytes", "sha256"}},
     "sha256": hex over the record, and the tensors by name with dtype and shape}

``state/history.jsonl`` has one canonical JSON object per round, in order. Of it a checkpoint has the length and the
digest at its time, so that a round costs the same however many went before it; what is longer belongs to a later one.

The last three are kept. A file that does not verify is passed over and named; the one before it counts.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
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

FORMAT = "fedretrain.checkpoint/2"
KEEP = 3
HISTORY = "history.jsonl"
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


class Checkpoints:
    """The checkpoints in one folder, which nobody else writes to.

    Attributes:
        newest: The newest that verified when this was made, None where there was none.
        corrupt: Names of the newer files that did not.

    Raises:
        MachineError: The folder cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rounds = 0  # that the history has on disk
        self._size = 0
        self._hash = hashlib.sha256()
        atomic.remove_leftovers(folder)
        self.newest, self.corrupt = self._load_newest()

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint and remove those that are older than the last three.

        Args:
            checkpoint: Its history goes on from the one before.

        Raises:
            MachineError: The disk is full; the checkpoints before are as they were.
        """
        self._append(checkpoint.history[self._rounds :])
        fields = {name: getattr(checkpoint, name) for name in ("run", "contract", "round", "norms")}
        fields["history"] = {"bytes": self._size, "sha256": self._hash.hexdigest()}
        record = canonical_json(fields).decode()
        named = {f"params.{i:05d}": array for i, array in enumerate(checkpoint.params)}
        named |= {f"server.{name}": array for name, array in checkpoint.server.items()}
        tensors = {name: np.asarray(array, order="C") for name, array in named.items()}
        metadata = {"format": FORMAT, "record": record, "sha256": _content_digest(record, tensors)}
        path = self._folder / f"round-{checkpoint.round:04d}.safetensors"
        with atomic.replacing(path, before_replace=lambda: crash_point("checkpoint-written")) as temporary:
            try:
                save_file(tensors, temporary, metadata)
            except SafetensorError as error:
                raise MachineError(f"{path}: cannot write: {error}; free some space there and resume") from error
        for old in sorted(_files(self._folder))[:-KEEP]:
            with atomic.disk_errors(self._folder, "remove an old checkpoint"):
                _files(self._folder)[old].unlink(missing_ok=True)

    def _append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Put further rounds behind those that count, in place of what a start that was killed left there."""
        if not records:
            return
        lines = b"".join(canonical_json(record) + b"\n" for record in records)
        path = self._folder / HISTORY
        with atomic.disk_errors(path), path.open("ab") as file:
            file.truncate(self._size)
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self._rounds, self._size = self._rounds + len(records), self._size + len(lines)
        self._hash.update(lines)

    def _load_newest(self) -> tuple[Checkpoint | None, list[str]]:
        corrupt: list[str] = []
        files = sorted(_files(self._folder).items(), reverse=True)
        path = self._folder / HISTORY
        with atomic.disk_errors(path, "read"):
            history = path.read_bytes() if files and path.exists() else b""
        for _, path in files:
            checkpoint = self._load(path, history)
            if checkpoint is not None:
                return checkpoint, corrupt
            corrupt.append(path.name)
        return None, corrupt

    def _load(self, path: Path, history: bytes) -> Checkpoint | None:
        """The checkpoint in a file, None where it or its part of the history does not verify."""
        try:
            with safe_open(path, framework="numpy") as file:  # type: ignore[no-untyped-call]  # has no types
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            if metadata.get("format") != FORMAT or metadata["sha256"] != _content_digest(metadata["record"], tensors):
                return None
            fields = json.loads(metadata["record"])
            lines = history[: fields["history"]["bytes"]]
            digest = hashlib.sha256(lines)
            if len(lines) != fields["history"]["bytes"] or digest.hexdigest() != fields["history"]["sha256"]:
                return None
            checkpoint = Checkpoint(
                run=fields["run"],
                contract=fields["contract"],
                round=fields["round"],
                params=[a for name, a in tensors.items() if name.startswith("params.")],
                server={name.removeprefix("server."): a for name, a in tensors.items() if name.startswith("server.")},
                norms=tuple(fields["norms"]),
                history=tuple(json.loads(line) for line in lines.splitlines()),
            )
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            return None
        self._rounds, self._size, self._hash = len(checkpoint.history), len(lines), digest
        return checkpoint


def _files(folder: Path) -> dict[int, Path]:
    """Checkpoint files by round."""
    with atomic.disk_errors(folder, "read"):
        return {int(match[1]): path for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))}


def _content_digest(record: str, tensors: Mapping[str, NDArray[Any]]) -> str:
    names = sorted(tensors)
    return sha256(canonical_json([record, names, weights_digest(tensors[name] for name in names)]))
