"""Is what lies in a registry what its operator signed, and is it the newest? Both are answered before a load.

Invariants: every metadata file that counts was verified by TUF's client (``tuf.ngclient.Updater``) from a root the
caller already trusts; a state older than one verified before is refused, and so is another content under the same
version; a file's bytes are hashed and used from one reading, so that they cannot change in between; every way in which
this fails is an ``UntrustedRelease`` that names the file, what was expected and what was found.

What was verified last is remembered in a folder of its own, apart from the releases, because whoever can put back old
releases must not be able to put back the memory too::

    <memory>/root_history/N.root.json, timestamp.json, snapshot.json, targets.json

Verification works on a copy of it, and only news are written back: where nothing is new it needs no write access.
After the online keys were replaced by a new root, what the old keys signed counts for nothing, and so a version number
that was pushed far ahead with a stolen key is forgotten (TUF 5.3.11).

Example::

    trust = Trust(registry, memory, root_bytes)
    release = trust.open_release(trust.state().ledger.incumbent)
"""

import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import (  # type: ignore[attr-defined]  # public, though not in an __all__
    Metadata,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError

from . import atomic
from .digest import canonical_json, sha256
from .errors import MachineError, UntrustedRelease
from .ledger import Ledger, files_of, read_ledger
from .release import Release, load_release
from .tufclient import Client, Folder

ANY_TIME = datetime(1970, 1, 1, tzinfo=UTC)  # at which nothing of ours has expired; for the one who signs anew
METADATA_LIMIT = 5_000_000  # bytes; the most TUF's client takes of any metadata file
_TOP = ("timestamp.json", "snapshot.json", "targets.json")


@dataclass(frozen=True)
class SignedState:
    """One verified state of a registry's metadata; ``files`` holds the verified bytes by their name in the registry."""

    root: Root
    timestamp: Timestamp
    snapshot: Snapshot
    targets: Targets
    ledger: Ledger
    files: dict[str, bytes]

    @property
    def expires(self) -> datetime:
        """When the first of the four expires."""
        return min(signed.expires for signed in (self.root, self.timestamp, self.snapshot, self.targets))


class Trust:
    """A consumer's view of one registry.

    Args:
        registry: Folder with ``metadata`` and ``releases``; only read.
        memory: Folder for what was verified last, made when there is something to remember.
        root: Root metadata trusted from the start, any version; later ones are followed through their signatures.
    """

    def __init__(self, registry: Path, memory: Path, root: bytes) -> None:
        self.registry = registry
        self.metadata = registry / "metadata"
        self.memory = memory
        self.root = root

    def state(self, at: datetime | None = None, *, remembered: bool = True) -> SignedState:
        """The registry's newest signed state.

        Args:
            at: Time at which nothing may have expired; default is the clock's. ``ANY_TIME`` lets expiry pass.
            remembered: False leaves the memory aside, and with it the protection from older states.

        Raises:
            UntrustedRelease: Anything about the metadata does not verify.
            MachineError: The disk failed.
        """
        with atomic.disk_errors(self.metadata, "verify"), tempfile.TemporaryDirectory() as name:
            scratch = Path(name)
            before = self._recall(scratch) if remembered else None
            try:
                state = self._verified(scratch, at)
            except UntrustedRelease:
                if remembered:  # what did verify before the failure counts against older states from here on
                    with suppress(MachineError):
                        self._remember(scratch, before)
                raise
            if remembered:
                self._remember(scratch, before)
            return state

    def open_release(self, identity: str, state: SignedState) -> Release:
        """One release of a verified state, read from verified bytes; raises UntrustedRelease or MachineError."""
        folder = self.registry / "releases" / identity
        signed = files_of(state.targets, identity)
        if not signed:
            raise UntrustedRelease(f"{folder}: no signed metadata vouch for this release")
        return load_release(identity, folder, lambda name, limit: read_signed(folder / name, signed[name], limit))

    def _verified(self, scratch: Path, at: datetime | None) -> SignedState:
        fetcher = Folder(self.metadata)
        try:
            updater = Client(scratch, fetcher, self.root, at)
        except (RepositoryError, ValueError) as error:
            raise UntrustedRelease(f"root metadata trusted from the start: {self._reason(error, '')}") from error
        try:
            updater.refresh()
        except ExpiredMetadataError as error:
            self._expired(error, updater)
        except (RepositoryError, DownloadError, ValueError) as error:
            raise UntrustedRelease(f"{self.metadata / fetcher.last}: {self._reason(error, fetcher.last)}") from error
        root, timestamp, snapshot, targets = updater.trusted()
        names = {
            f"{snapshot.version}.snapshot.json": scratch / "snapshot.json",
            f"{targets.version}.targets.json": scratch / "targets.json",
            "timestamp.json": scratch / "timestamp.json",
        } | {file.name: file for file in (scratch / "root_history").iterdir()}
        files = {name: _same_bytes(self.metadata / name, copy) for name, copy in names.items()}
        ledger = read_ledger(targets, str(self.metadata / f"{targets.version}.targets.json"))
        return SignedState(root, timestamp, snapshot, targets, ledger, files)

    def _expired(self, error: ExpiredMetadataError, updater: Client) -> NoReturn:
        role = next((r for r in ("root", "timestamp", "snapshot", "targets") if r in str(error)), "timestamp")
        file = self.metadata / updater.file_of(role)
        since = ""
        with suppress(OSError, RepositoryError):  # it may have gone meanwhile; that it has expired is what matters
            since = f" since {Metadata.from_bytes(read_bounded(file) or b'').signed.expires:%Y-%m-%dT%H:%M:%SZ}"
        cure = "rotate" if role == "root" else "renew"
        raise UntrustedRelease(
            f"{file}: expired{since}; it may hide newer releases. The server's operator signs it anew with "
            f"'fedretrain server releases {cure}'"
        ) from error

    def _reason(self, error: Exception, file: str) -> str:
        if isinstance(error, DownloadHTTPError):
            return "expected this file, it is missing"
        if isinstance(error, DeserializationError):
            return f"not readable as signed metadata: {error.__cause__}"
        if isinstance(error, UnsignedMetadataError):
            return (
                f"too few valid signatures by the keys that count: {error}; was it changed, or signed by another key?"
            )
        if isinstance(error, LengthOrHashMismatchError):
            return f"not the file that was signed: {error}"
        known = _version(self.memory / "timestamp.json") if file == "timestamp.json" else None
        found = _version(self.metadata / "timestamp.json")
        if known is not None and found is not None and found < known:
            return (
                f"version {found} is older than version {known}, verified here before: an older signed state was put "
                f"back, or a stolen key pushed the version ahead. Put the newest metadata back; if a key was stolen, "
                f"the server's operator runs 'fedretrain server releases rotate --accept-older'"
            )
        return str(error)

    def _recall(self, scratch: Path) -> bytes | None:
        """Copy the memory to ``scratch``; returns the remembered timestamp."""
        if (self.memory / "root_history").is_dir():
            hidden = shutil.ignore_patterns(".*")  # another process may be writing there
            shutil.copytree(self.memory / "root_history", scratch / "root_history", ignore=hidden)
        for name in _TOP:
            if (self.memory / name).is_file():
                shutil.copyfile(self.memory / name, scratch / name)
        before = scratch / "timestamp.json"
        if not before.is_file():
            return None
        if _version(before) is None:
            raise UntrustedRelease(
                f"{self.memory / before.name}: the memory of what was verified last is damaged. Restore it, or delete "
                f"{self.memory} and verify at once: until then an older signed state would pass"
            )
        return before.read_bytes()

    def _remember(self, scratch: Path, before: bytes | None) -> None:
        """Write back what TUF's client verified, unless another process has written meanwhile."""
        found = [*sorted((scratch / "root_history").glob("*.json")), *(scratch / name for name in _TOP)]
        news = {f.relative_to(scratch): f.read_bytes() for f in found if f.is_file()}
        news = {name: data for name, data in news.items() if data != read_bounded(self.memory / name)}
        if not news:
            return
        atomic.make_folder(self.memory, mode=0o700)
        atomic.make_folder(self.memory / "root_history", mode=0o700)
        with atomic.locked(self.memory / ".lock"):
            if read_bounded(self.memory / "timestamp.json") == before:
                for name, data in news.items():
                    atomic.write_bytes(self.memory / name, data, mode=0o600)


def read_signed(path: Path, signed: TargetFile, limit: int) -> bytes:
    """The content of a release's file, read once and verified.

    Raises:
        UntrustedRelease: Missing, longer than ``limit``, or not of the signed length and hash.
    """
    if signed.length > limit:
        raise UntrustedRelease(f"{path}: expected at most {limit} bytes, {signed.length} were signed; not opened")
    check_length(path, signed)
    with atomic.disk_errors(path, "read"), path.open("rb") as file:
        data = file.read(signed.length)
    expected, got = signed.hashes["sha256"], sha256(data)
    if expected != got:
        raise UntrustedRelease(f"{path}: expected SHA-256 {expected}, got {got}; the file was changed or damaged")
    return data


def check_length(path: Path, signed: TargetFile) -> None:
    """Raises UntrustedRelease where ``path`` is no file of the signed length; opens nothing."""
    if not path.is_file():
        raise UntrustedRelease(f"{path}: expected a file of {signed.length} bytes, it is missing")
    if path.stat().st_size != signed.length:
        raise UntrustedRelease(f"{path}: expected {signed.length} bytes, got {path.stat().st_size}")


def read_bounded(path: Path, limit: int = METADATA_LIMIT) -> bytes | None:
    """The content of a file, at most ``limit`` bytes and one more to show that there are more; None without a file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return file.read(limit + 1)


def _same_bytes(file: Path, verified: Path) -> bytes:
    """The file's content, which must be the verified one to the letter and in its one spelling."""
    data, found = verified.read_bytes(), read_bounded(file, verified.stat().st_size)
    if found is None:
        raise UntrustedRelease(f"{file}: expected this file, it is missing")
    if found != data:
        raise UntrustedRelease(
            f"{file}: expected the content verified before under this version, {len(data)} bytes with SHA-256 "
            f"{sha256(data)}, got other content; the file was changed or damaged"
        )
    metadata = Metadata.from_bytes(data)  # TUF takes "t" for "T" in a time and "AB" for "ab" in a signature
    lower = all(s.signature == s.signature.lower() for s in metadata.signatures.values())
    if not lower or canonical_json(metadata.to_dict()) != data:
        raise UntrustedRelease(f"{file}: expected canonical JSON, got another spelling; the file was changed")
    return data


def _version(path: Path) -> int | None:
    """The version a metadata file claims, None where it is not readable."""
    try:
        return int(Metadata.from_bytes(read_bounded(path) or b"").signed.version)
    except (OSError, RepositoryError):
        return None
