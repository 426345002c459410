"""TUF's own client on a local folder, with what we need of it beside its public interface.

Invariant: how metadata are verified is decided by TUF's client alone; here is only where it reads, what time it takes
it to be, and what it has verified.
"""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import (  # type: ignore[attr-defined]  # public, though not in an __all__
    Root,
    Snapshot,
    Targets,
    Timestamp,
)
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

_BASE = "registry:/"


class Client(Updater):
    """TUF's client with a reference time of our choice, and its verified metadata to read."""

    def __init__(self, scratch: Path, fetcher: FetcherInterface, root: bytes, at: datetime | None) -> None:
        super().__init__(str(scratch), _BASE, fetcher=fetcher, bootstrap=root)
        if at is not None:
            self._trusted_set.reference_time = at

    def trusted(self) -> tuple[Root, Timestamp, Snapshot, Targets]:
        """The four verified parts; only after ``refresh``."""
        known = self._trusted_set
        return known.root, known.timestamp, known.snapshot, known.targets

    def file_of(self, role: str) -> str:
        """The registry's file name for the version of ``role`` that was verified or is about to be."""
        if role == Root.type:
            return f"{self._trusted_set.root.version}.root.json"
        if role == Snapshot.type:
            return f"{self._trusted_set.timestamp.snapshot_meta.version}.snapshot.json"
        if role == Targets.type:
            return f"{self._trusted_set.snapshot.meta['targets.json'].version}.targets.json"
        return "timestamp.json"


class Folder(FetcherInterface):
    """Takes metadata from a local folder; ``last`` is the file asked for last."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.last = ""

    def _fetch(self, url: str) -> Iterator[bytes]:
        self.last = url.rpartition("/")[2]  # role names are quoted, so this is a plain file name
        path = self._folder / self.last
        if not path.is_file():
            raise DownloadHTTPError(f"{path} is missing", 404)
        return _chunks(path)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(2**16):
            yield chunk
