"""What a site keeps between messages: base models and companions by digest, and what it was asked to prepare by run.

Invariants: a file is there whole or not at all; what is read is what was checked when it was written, or it counts as
not there. No name that came in a message becomes part of a path.

Layout of the folder::

    base/<weights digest>.safetensors     every variable of a base model, by ``fedretrain.contract.key``
    companions/<digest>.safetensors       arrays that a run's objectives need, by position among themselves
    runs/<SHA-256 of the run's id>.json   the run's PrepareRequest, canonical JSON
    checks/<SHA-256 of the check's id>.json   likewise of checks, which are many: of the newest ones
    residuals/                            what codecs left out of updates (``client.residuals``)
    memory/                               what strategies have the site keep for itself (``client.memory``)
    replay/<SHA-256 of the site's name>/  examples kept for later runs (``client.replay``)
    checking/                             key of the noise on counts, and suspected labels (``client.checker``)

Several simulated sites may share one folder, also from several processes.
"""

import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydantic import ValidationError

from fedretrain import arrayfile, atomic
from fedretrain.contract import key
from fedretrain.digest import sha256, weights_digest
from fedretrain.errors import DeclinedRequest
from fedretrain.messages import PrepareRequest

from .memory import Memory

log = logging.getLogger(__name__)

MOST_COMPANIONS = 4  # sets of arrays in memory
MOST_CHECKS = 8  # whose requests are kept
_DIGEST = re.compile(r"[0-9a-f]{64}")


class SiteStore:
    """The folder described above; made when something is first put there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._companions: dict[str, list[NDArray[Any]]] = {}  # the last ones: the same arrays for the same digest

    @property
    def residuals(self) -> Path:
        """Where what codecs leave out of updates lies."""
        return self._folder / "residuals"

    @property
    def replay(self) -> Path:
        """Where examples lie that are kept for later runs."""
        return self._folder / "replay"

    @property
    def checking(self) -> Path:
        """Where what checks leave at the site lies."""
        return self._folder / "checking"

    def memory(self, run: str, site: str) -> Memory:
        """What a site keeps for itself in a run."""
        return Memory(self._folder / "memory", run, site)

    def put_base(self, digest: str, arrays: list[NDArray[Any]]) -> None:
        """Keep a base model under its weights digest.

        Raises:
            DeclinedRequest: ``request-invalid`` where the arrays have another digest.
            MachineError: The disk does not take it.
        """
        path = self._base_path(digest)
        if weights_digest(arrays) != digest:
            raise DeclinedRequest("request-invalid", "base", "arrays with the digest that the request names")
        atomic.make_folder(path.parent)
        with atomic.replacing(path) as temporary:
            arrayfile.write(temporary, {key(i): array for i, array in enumerate(arrays)})

    def has_base(self, digest: str) -> bool:
        """Whether there is a file for this base model; ``base`` still checks its content."""
        return self._base_path(digest).is_file()

    def base(self, digest: str) -> list[NDArray[Any]] | None:
        """The base model's variables by position, or None where there is none, or a damaged one, which is removed.

        They are mapped from the file, read-only.
        """
        return self._checked(self._base_path(digest), digest)

    def put_companion(self, digest: str, arrays: list[NDArray[Any]]) -> None:
        """Keep arrays that a run's objectives need, under their weights digest; raises as ``put_base``."""
        if self.companion(digest) is not None:
            return
        path = self._companion_path(digest)
        if weights_digest(arrays) != digest:
            raise DeclinedRequest("request-invalid", "companion", "arrays with the digest that the request names")
        atomic.make_folder(path.parent)
        with atomic.replacing(path) as temporary:
            arrayfile.write(temporary, {key(i): array for i, array in enumerate(arrays)})

    def companion(self, digest: str) -> list[NDArray[Any]] | None:
        """The arrays kept under this digest, the same ones each time; None as ``base``."""
        if digest not in self._companions:
            arrays = self._checked(self._companion_path(digest), digest)
            if arrays is None:
                return None
            while len(self._companions) >= MOST_COMPANIONS:
                del self._companions[next(iter(self._companions))]
            self._companions[digest] = arrays
        return self._companions[digest]

    def put_run(self, run: str, request: PrepareRequest) -> None:
        """Keep what a run asked for; the same run again replaces it. Raises MachineError."""
        path = self._request_path("checks" if request.check else "runs", run)
        atomic.make_folder(path.parent)
        atomic.write_json(path, request.model_dump(mode="json"))
        if request.check:
            _keep_newest(path.parent, MOST_CHECKS)

    def run(self, run: str) -> PrepareRequest | None:
        """What a run or check asked for, or None where there is nothing, or nothing readable."""
        for kind in ("runs", "checks"):
            try:
                return PrepareRequest.model_validate_json(self._request_path(kind, run).read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, ValidationError):
                log.warning("%s: not readable, ignored; the server will have to prepare this site again", run)
        return None

    def _checked(self, path: Path, digest: str) -> list[NDArray[Any]] | None:
        if not path.is_file():
            return None
        arrays = _read_arrays(path)
        if arrays is None or weights_digest(arrays) != digest:
            log.warning("%s: damaged, removed; the server will send it again", path)
            path.unlink(missing_ok=True)
            return None
        return arrays

    def _base_path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise DeclinedRequest("request-invalid", "base", "a SHA-256 in lower-case hexadecimal")
        return self._folder / "base" / f"{digest}.safetensors"

    def _companion_path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise DeclinedRequest("request-invalid", "companion", "a SHA-256 in lower-case hexadecimal")
        return self._folder / "companions" / f"{digest}.safetensors"

    def _request_path(self, kind: str, run: str) -> Path:
        return self._folder / kind / f"{sha256(run.encode())}.json"


def _keep_newest(folder: Path, most: int) -> None:
    """Remove all but the newest files; one that another process removed meanwhile is none."""
    ages = {}
    for file in folder.glob("*.json"):
        with suppress(FileNotFoundError):
            ages[file] = file.stat().st_mtime_ns
    for file in sorted(ages, key=lambda file: ages[file], reverse=True)[most:]:
        with suppress(OSError):
            file.unlink()


def _read_arrays(path: Path) -> list[NDArray[Any]] | None:
    try:
        arrays = arrayfile.mapped(path)
        return [arrays[key(i)] for i in range(len(arrays))]
    except (OSError, KeyError, ValueError):
        return None
