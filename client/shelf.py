"""Releases on a site's disk, and the pointer to the one in use.

Invariants: a release is read from bytes whose hash is its id, so that a change on the disk is refused and not served;
the pointer changes in one step; a release folder appears in one step and is not changed after.

Format ``fedretrain.current/1`` of the pointer, canonical JSON::

    {"format": "fedretrain.current/1",
     "installed": release id,      the newest the server had in use that is installed
     "used": release id,           what this site serves
     "pinned": bool,               the operator chose ``used``; a later release is installed and does not come into use
     "before": [release id]}       what was in use before, the latest last
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from fedretrain import atomic
from fedretrain.errors import ConfigurationError, UntrustedRelease
from fedretrain.ledger import Ledger, ReleaseId, read_ledger
from fedretrain.release import RELEASE_ID, Release, load_release

from .home import Home

if TYPE_CHECKING:
    from tuf.api.metadata import Targets  # type: ignore[attr-defined]  # public, though not in an __all__

_MEND = "the server sends the release again when it next asks; 'fedretrain client release back' uses the one before"
_REMEMBERED = 20  # releases in ``before``


class Current(BaseModel):
    """The pointer; see the module docstring."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["fedretrain.current/1"] = "fedretrain.current/1"
    installed: ReleaseId
    used: ReleaseId
    pinned: bool = False
    before: tuple[ReleaseId, ...] = ()

    def using(self, identity: str, *, pinned: bool) -> "Current":
        """The pointer with another release in use."""
        before = self.before if identity == self.used else (*self.before, self.used)[-_REMEMBERED:]
        return self.model_copy(update={"used": identity, "pinned": pinned, "before": before})


class Shelf:
    """The folder ``home.releases``."""

    def __init__(self, home: Home) -> None:
        self.root = home.releases
        self.pointer = home.releases / "current"
        self.folder = home.releases / "releases"
        self.memory = home.releases / "trust"
        self.lock = home.releases / ".lock"

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder; waits for a release that is being installed. Raises MachineError."""
        atomic.make_folder(self.root)
        with atomic.locked(self.lock):
            yield

    def read(self) -> Current | None:
        """The pointer, None before the first release; raises UntrustedRelease where it is damaged, or MachineError."""
        if not self.pointer.is_file():
            return None
        with atomic.disk_errors(self.pointer, "read"):
            data = self.pointer.read_bytes()
        try:
            return Current.model_validate_json(data)
        except ValidationError:
            raise UntrustedRelease(
                f"{self.pointer}: damaged: it does not say which release is in use. 'fedretrain client release list' "
                f"shows what is here, 'fedretrain client release use RELEASE' chooses again"
            ) from None

    def write(self, pointer: Current) -> None:
        """Replace the pointer in one step; raises MachineError."""
        atomic.write_json(self.pointer, pointer.model_dump(mode="json"))

    def in_use(self) -> Release | None:
        """The release in use, verified; raises as ``read`` and ``open``."""
        pointer = self.read()
        return self.open(pointer.used) if pointer else None

    def ids(self) -> list[str]:
        """The releases that lie here, whole or not."""
        if not self.folder.is_dir():
            return []
        return sorted(f.name for f in self.folder.iterdir() if RELEASE_ID.fullmatch(f.name))

    def open(self, identity: str) -> Release:
        """A release from bytes of which the id is the hash; raises UntrustedRelease or MachineError."""
        folder = self.folder / identity
        try:
            return load_release(identity, folder, lambda name, most: _read(folder / name, most))
        except UntrustedRelease as error:
            raise UntrustedRelease(f"{error}. It is not used; {_MEND}") from None

    def is_whole(self, identity: str) -> bool:
        """Whether the release is here and every byte is as it was signed."""
        try:
            self.open(identity)
        except UntrustedRelease:
            return False
        return True

    def place(self, identity: str, arrived: Path) -> None:
        """Give a verified folder its place, instead of a damaged one if there is one; raises MachineError."""
        final = self.folder / identity
        atomic.make_folder(self.folder)
        with atomic.disk_errors(final):
            if final.exists():
                shutil.rmtree(final)
            atomic.flush_folder(arrived)
            arrived.rename(final)
            atomic.flush_folder(self.folder)

    def remove(self, identity: str) -> None:
        """Delete a release's folder; raises MachineError."""
        with atomic.disk_errors(self.folder / identity, "delete"):
            shutil.rmtree(self.folder / identity)
            atomic.flush_folder(self.folder)

    def resolve(self, beginning: str) -> str:
        """The full id of a release that is here; raises ConfigurationError."""
        here = self.ids()
        found = [identity for identity in here if identity.startswith(beginning)] if len(beginning) >= 4 else []
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigurationError(f"release {beginning}: {len(found)} releases begin so; give more digits")
        raise ConfigurationError(
            f"release {beginning}: expected a release that is installed here, or at least its first 4 digits; "
            f"there are: {', '.join(identity[:16] for identity in here) or 'none'}"
        )

    def ledger(self) -> Ledger | None:
        """What the server's newest statement that was verified here says, None before the first one.

        Raises:
            UntrustedRelease: The memory of it is damaged.
        """
        targets = self._targets()
        return None if targets is None else read_ledger(targets, str(self._memory_file))

    def valid_until(self) -> datetime | None:
        """Until when that statement is valid, UTC; None before the first one. Raises as ``ledger``."""
        targets = self._targets()
        return None if targets is None else targets.expires

    @property
    def _memory_file(self) -> Path:
        return self.memory / "targets.json"

    def _targets(self) -> "Targets | None":
        from tuf.api.exceptions import RepositoryError
        from tuf.api.metadata import Metadata

        if not self._memory_file.is_file():
            return None
        try:
            with atomic.disk_errors(self._memory_file, "read"):
                return Metadata["Targets"].from_bytes(self._memory_file.read_bytes()).signed
        except RepositoryError as error:
            raise UntrustedRelease(f"{self._memory_file}: damaged: {error}") from None


def _read(path: Path, most: int) -> bytes:
    if not path.is_file():
        raise UntrustedRelease(f"{path}: expected this file, it is missing")
    with atomic.disk_errors(path, "read"), path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise UntrustedRelease(f"{path}: expected at most {most} bytes, got more")
    return data
