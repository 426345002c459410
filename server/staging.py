"""Writes a draft down as a folder of files, checked as a consumer would check it, before anything vouches for it.

Invariants: what cannot be loaded is never handed on to be signed; whatever fails, the staging folder is gone again;
leftovers of a crash are removed only where they are certainly ours: a staging folder, or an unsigned folder of the
very run that is being published again.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tuf.api.metadata import TargetFile  # type: ignore[attr-defined]  # public, though not in an __all__

from fedretrain import atomic
from fedretrain.digest import sha256
from fedretrain.errors import ConfigurationError, UntrustedRelease
from fedretrain.release import (
    JSON_LIMIT,
    KERAS_FILE,
    LINEAGE,
    RELEASE_ID,
    UNCERTAINTY,
    Release,
    ReleaseDraft,
    encode,
    load_release,
    release_id,
)
from fedretrain.trust import read_signed

PREFIX: Final = "staging-"


@dataclass(frozen=True)
class Staged:
    """A draft on the disk; ``targets`` are its files as they are to be signed, by target path."""

    folder: Path
    release: Release
    targets: dict[str, TargetFile]


def stage(registry: Path, draft: ReleaseDraft) -> Staged:
    """Write a draft into a new folder under ``registry``.

    Raises:
        ConfigurationError: A consumer would not load it; says why.
        MachineError: The disk is full or failed.
    """
    files = encode(draft)
    identity = release_id({name: sha256(data) for name, data in files.items()})
    with atomic.disk_errors(registry):
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=registry))
    try:
        signed = {name: TargetFile.from_data(f"{identity}/{name}", data) for name, data in files.items()}
        for name, data in files.items():
            atomic.write_bytes(folder / name, data)
        try:
            release = load_release(identity, folder, lambda name, most: read_signed(folder / name, signed[name], most))
        except UntrustedRelease as error:
            raise ConfigurationError(f"not released: {error}") from None
        if draft.keras_file is not None:
            signed[KERAS_FILE] = _write_keras_file(draft.keras_file, folder / KERAS_FILE, identity)
        if draft.uncertainty is not None:
            atomic.write_bytes(folder / UNCERTAINTY, draft.uncertainty)
            signed[UNCERTAINTY] = TargetFile.from_data(f"{identity}/{UNCERTAINTY}", draft.uncertainty)
        with atomic.disk_errors(folder):
            folder.chmod(0o755)
            atomic.flush_folder(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Staged(folder, release, {file.path: file for file in signed.values()})


def clear_leftovers(registry: Path, run: str, signed: frozenset[str]) -> None:
    """Remove what a crash left behind; ``signed`` are the ids that metadata vouch for. Raises MachineError."""
    with atomic.disk_errors(registry, "clear away what a crash left"):
        for folder in registry.glob(f"{PREFIX}*"):
            shutil.rmtree(folder)
        for folder in (registry / "releases").iterdir():
            if RELEASE_ID.fullmatch(folder.name) and folder.name not in signed and _run_of(folder) == run:
                shutil.rmtree(folder)


def _write_keras_file(write: Callable[[Path], None], path: Path, identity: str) -> TargetFile:
    with atomic.disk_errors(path):
        write(path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return TargetFile.from_file(f"{identity}/{KERAS_FILE}", str(path))


def _run_of(folder: Path) -> str | None:
    """The run an unsigned release folder says it is from."""
    file = folder / LINEAGE
    if not file.is_file() or file.stat().st_size > JSON_LIMIT:
        return None
    try:
        lineage = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return None
    run = lineage.get("run") if isinstance(lineage, dict) else None
    return run if isinstance(run, str) else None
