"""Signs and writes a registry's metadata, version after version (format: ``fedretrain.ledger``).

Invariants: no file that a valid timestamp leads to is ever changed; ``timestamp.json`` is replaced last, in one step,
when everything it leads to is on the disk, so that at every instant it names one complete state; a version that failed
before that step leaves nothing behind. Signatures are python-tuf's and securesystemslib's, none is ours.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from tuf.api.metadata import (  # type: ignore[attr-defined]  # public, though not in an __all__
    Key,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from fedretrain import atomic
from fedretrain.crashpoint import crash_point
from fedretrain.digest import canonical_json, sha256
from fedretrain.errors import MachineError
from fedretrain.ledger import FIELD, Entry, Ledger, Link, Previous, Statement
from fedretrain.trust import SignedState

from .keys import ROLES, Signers

ROOT_LIFETIME: Final = timedelta(days=3 * 365)
LIFETIME: Final = timedelta(days=365)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """What the next version says: everything that is signed about releases, not only what differs."""

    statement: Statement
    incumbent: str | None
    releases: Mapping[str, Entry]
    targets: Mapping[str, TargetFile]


def utc(time: datetime) -> str:
    """``2026-01-31T12:00:00Z``."""
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"


def first_root(signers: Signers, now: datetime, threshold: int = 1) -> bytes:
    """Version 1 of the root metadata: each role has the keys of ``signers``; ``threshold`` of them sign a root."""
    return _root(1, _public(signers), threshold, [signers], now)


def next_root(before: Root, old: Signers, new: Signers, now: datetime) -> bytes:
    """The root metadata that replace keys of ``before`` by ``new``, signed by the old root keys and their successors.

    Args:
        before: The root in force.
        old: Its root keys, as many as its threshold.
        new: Keys of the roles that change; none, to give the root new life and leave the keys as they are.
        now: Start of the new root's life.
    """
    kept = {role: [before.keys[keyid] for keyid in before.roles[role].keyids] for role in ROLES}
    signing = [{"root": old["root"]}]
    if "root" in new:
        signing.append({"root": new["root"]})
    return _root(before.version + 1, kept | _public(new), before.roles["root"].threshold, signing, now)


def write_version(
    folder: Path, state: SignedState | None, change: Change, signers: Sequence[Signers], now: datetime
) -> None:
    """Sign and write the versions that follow ``state``, and move the pointer to them.

    Args:
        folder: The registry's ``metadata``.
        state: The verified state in force, None where there was none.
        change: What the new version says.
        signers: Keys of the online roles; several sets sign side by side while keys are being replaced.
        now: Time of signing.

    Raises:
        MachineError: The disk is full or failed; the pointer is where it was and nothing new is left.
    """
    expires = now + LIFETIME
    targets = Targets(
        version=state.targets.version + 1 if state else 1,
        expires=expires,
        targets=dict(change.targets),
        unrecognized_fields={FIELD: _ledger(state, change).model_dump(mode="json")},
    )
    targets_data = _signed(targets, signers)
    snapshot = Snapshot(
        version=state.snapshot.version + 1 if state else 1,
        expires=expires,
        meta={"targets.json": _meta_file(targets.version, targets_data)},
    )
    snapshot_data = _signed(snapshot, signers)
    timestamp = Timestamp(
        version=state.timestamp.version + 1 if state else 1,
        expires=expires,
        snapshot_meta=_meta_file(snapshot.version, snapshot_data),
    )
    files = {f"{targets.version}.targets.json": targets_data, f"{snapshot.version}.snapshot.json": snapshot_data}
    _swap(folder, files, _signed(timestamp, signers))


def _swap(folder: Path, files: Mapping[str, bytes], timestamp: bytes) -> None:
    pointer = folder / "timestamp.json"
    try:
        for name, data in files.items():
            atomic.write_bytes(folder / name, data)
        crash_point("metadata-written")
        atomic.write_bytes(pointer, timestamp)
    except BaseException as error:
        if not points_to(pointer, timestamp):
            with suppress(OSError):  # the first error says what is wrong; what is left is named by no pointer
                for name in files:
                    (folder / name).unlink(missing_ok=True)
            raise
        if not isinstance(error, MachineError):
            raise
        logger.warning("signed and in force, but a power cut now could undo it: %s", error)
    crash_point("timestamp-swapped")


def points_to(pointer: Path, timestamp: bytes | None) -> bool:
    """Whether the pointer's content is ``timestamp``; None stands for no pointer."""
    try:
        return pointer.read_bytes() == timestamp
    except FileNotFoundError:
        return timestamp is None
    except OSError as error:
        raise MachineError(f"{pointer}: cannot read: {error.strerror or error}") from error


def _ledger(state: SignedState | None, change: Change) -> Ledger:
    previous = None
    if state is not None:
        links = {
            role: Link(version=version, sha256=sha256(state.files[f"{version}.{role}.json"]))
            for role, version in (("targets", state.targets.version), ("snapshot", state.snapshot.version))
        }
        previous = Previous(targets=links["targets"], snapshot=links["snapshot"])
    return Ledger(
        incumbent=change.incumbent,
        statement=change.statement,
        previous=previous,
        releases=dict(change.releases),
    )


def _public(signers: Signers) -> dict[str, list[Key]]:
    return {role: [signer.public_key for signer in keys] for role, keys in signers.items()}


def _root(
    version: int, keys: Mapping[str, list[Key]], threshold: int, signers: Sequence[Signers], now: datetime
) -> bytes:
    root = Root(
        version=version,
        expires=now + ROOT_LIFETIME,
        keys={key.keyid: key for role in ROLES for key in keys[role]},
        roles={role: Role([key.keyid for key in keys[role]], threshold if role == "root" else 1) for role in ROLES},
        consistent_snapshot=True,
    )
    return _signed(root, signers)


def _signed(value: Any, signers: Sequence[Signers]) -> bytes:
    metadata = Metadata(value)
    for signer in (signer for keys in signers for signer in keys.get(value.type, ())):
        metadata.sign(signer, append=True)
    return canonical_json(metadata.to_dict())


def _meta_file(version: int, data: bytes) -> MetaFile:
    return MetaFile.from_data(version, data, ["sha256"])
