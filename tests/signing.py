"""A registry with a clock of its own, and signatures that only somebody with the keys can make."""

import copy
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, MetaFile, TargetFile

from fedretrain.digest import canonical_json, sha256
from fedretrain.ledger import Entry, Statement
from fedretrain.release import Release, release_id
from fedretrain.trust import SignedState, Trust
from server.keys import ONLINE, Signers
from server.metadata import Change, utc, write_version
from server.registry import Registry

NOW = datetime(2026, 1, 1, tzinfo=UTC)
YEAR = timedelta(days=365)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, time: datetime = NOW) -> None:
        self.time = time

    def __call__(self) -> datetime:
        return self.time


def open_registry(out: Path, time: datetime = NOW) -> Registry:
    """The registry under ``out`` at a fixed time."""
    return Registry.open(out, Clock(time))


def site(out: Path, memory: Path) -> Trust:
    """A site that trusts the root of ``out`` and remembers in ``memory``."""
    return Trust(out / "registry", memory, (out / "keys" / "root.json").read_bytes())


def incumbent(trust: Trust, at: datetime = NOW) -> Release:
    """What a site would load."""
    state = trust.state(at)
    assert state.ledger.incumbent is not None
    return trust.open_release(state.ledger.incumbent, state)


def current(out: Path) -> SignedState:
    """The registry's state, verified."""
    state = open_registry(out).state()
    assert state is not None
    return state


def sign(signed: Any, signers: Signers) -> bytes:
    """One metadata file, signed by the role's key."""
    metadata = Metadata(signed)
    for signer in signers[signed.type]:
        metadata.sign(signer, append=True)
    return canonical_json(metadata.to_dict())


def resign(out: Path, edits: Mapping[str, Callable[[Any], None]], signers: Signers | None = None) -> None:
    """Write the next version of all metadata, each edited before it is signed with the keys in force, or others."""
    state = current(out)
    signers = signers or open_registry(out).keys.signers(state.root, ONLINE)
    folder = out / "registry" / "metadata"
    parts = {role: copy.deepcopy(getattr(state, role)) for role in ONLINE}
    for role, part in parts.items():
        part.version += 1
        edits.get(role, lambda _: None)(part)
    data = {"targets": sign(parts["targets"], signers)}
    parts["snapshot"].meta["targets.json"] = MetaFile.from_data(parts["targets"].version, data["targets"], ["sha256"])
    data["snapshot"] = sign(parts["snapshot"], signers)
    parts["timestamp"].snapshot_meta = MetaFile.from_data(parts["snapshot"].version, data["snapshot"], ["sha256"])
    for role in ("targets", "snapshot"):
        (folder / f"{parts[role].version}.{role}.json").write_bytes(data[role])
    (folder / "timestamp.json").write_bytes(sign(parts["timestamp"], signers))


def sign_release(out: Path, files: Mapping[str, bytes], lengths: Mapping[str, int] | None = None) -> str:
    """Publish files as they are, signed with the real keys, without any of the registry's checks."""
    state = current(out)
    identity = release_id({name: sha256(data) for name, data in files.items()})
    folder = out / "registry" / "releases" / identity
    folder.mkdir()
    targets = dict(state.targets.targets)
    for name, data in files.items():
        (folder / name).write_bytes(data)
        targets[f"{identity}/{name}"] = TargetFile.from_data(f"{identity}/{name}", data, ["sha256"])
        targets[f"{identity}/{name}"].length = (lengths or {}).get(name, len(data))
    statement = Statement(action="publish", at=utc(NOW), replaced=state.ledger.incumbent)
    releases = {
        **state.ledger.releases,
        identity: Entry(run="forged", published=utc(NOW), version=state.targets.version + 1),
    }
    signers = open_registry(out).keys.signers(state.root, ONLINE)
    write_version(out / "registry" / "metadata", state, Change(statement, identity, releases, targets), [signers], NOW)
    return identity
