"""What a site keeps for itself from round to round: arrays of its own, which never leave it.

Invariants:

- Arrays belong to one run, site and name, and are read back bit for bit or not at all.
- A round reads what the newest round before it left, whatever was kept since: one that is asked for again, because the
  server or the site stopped in between, starts from where it started before. Rounds after it are forgotten then.
- They say something about the site's data, and so are readable by this user alone, and are removed with their run's
  folder once that has been neither read nor written for a month.

Layout of the folder::

    <SHA-256 of the run's id>/<SHA-256 of the site's name>/<name>/
        <round>.<weights digest>.safetensors      the arrays by ``fedretrain.contract.key``; of the last rounds
"""

import logging
import os
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fedretrain import arrayfile, atomic
from fedretrain.contract import VariableSpec, key
from fedretrain.digest import sha256, weights_digest

log = logging.getLogger(__name__)

KEPT_S = 30 * 86_400.0
ROUNDS = 4  # of which the arrays are kept: a run goes on from one of its server's last three checkpoints
_FILE = re.compile(r"(\d{8,})\.([0-9a-f]{64})\.safetensors")

Arrays = list[NDArray[Any]]


@dataclass(frozen=True)
class Memory:
    """What one site keeps in one run.

    Args:
        folder: Where everything of this kind lies.
        run: The run's id.
        site: The site's name.
    """

    folder: Path
    run: str
    site: str

    def read(self, name: str, before: int, specs: Sequence[VariableSpec]) -> Arrays | None:
        """What the newest round before this one kept, mapped read-only; None where there is nothing of these specs.

        A damaged file is removed, and what is older counts.
        """
        wanted = [(spec.shape, spec.dtype) for spec in specs]
        for round_, path in sorted(_files(self._folder(name)).items(), reverse=True):
            if round_ >= before:
                continue
            arrays = _read(path)
            if arrays is None:
                log.warning("%s: damaged, removed; what an earlier round left counts", path)
                path.unlink(missing_ok=True)
            elif [(array.shape, array.dtype.name) for array in arrays] == wanted:
                with suppress(OSError):
                    os.utime(self.folder / sha256(self.run.encode()))  # it is used
                return arrays
        return None

    def write(self, name: str, round_: int, arrays: Sequence[NDArray[Any]]) -> None:
        """Keep what a round leaves, in place of what it left when it was asked for before.

        Raises:
            MachineError: The disk does not take it; what was kept is as it was.
        """
        folder = self._folder(name)
        for made in (self.folder, folder.parent.parent, folder.parent, folder):
            atomic.make_folder(made, mode=0o700)
        before = _files(folder)
        path = folder / f"{round_:08d}.{weights_digest(arrays)}.safetensors"
        with atomic.replacing(path, mode=0o600) as temporary:
            arrayfile.write(temporary, {key(i): array for i, array in enumerate(arrays)})
        kept = sorted(n for n in before if n < round_)[-(ROUNDS - 1) :]
        with suppress(OSError):  # a file too many does no harm, but for one of the same round
            for old, file in before.items():
                if old not in kept and file != path:
                    file.unlink(missing_ok=True)
        self._tidy()

    def _folder(self, name: str) -> Path:
        return self.folder / sha256(self.run.encode()) / sha256(self.site.encode()) / name

    def _tidy(self) -> None:
        """Remove what runs left that have not been used for a month."""
        run = self.folder / sha256(self.run.encode())
        with suppress(OSError):
            os.utime(run)
            for other in self.folder.iterdir():
                if other != run and time.time() - other.stat().st_mtime > KEPT_S:
                    shutil.rmtree(other, ignore_errors=True)


def _files(folder: Path) -> dict[int, Path]:
    """By round; where a crash left two of one round, the later one."""
    try:
        found = [(path, match) for path in folder.iterdir() if (match := _FILE.fullmatch(path.name))]
        return {int(match[1]): path for path, match in sorted(found, key=lambda one: one[0].stat().st_mtime_ns)}
    except OSError:
        return {}


def _read(path: Path) -> Arrays | None:
    try:
        named = arrayfile.mapped(path)
        arrays = [named[key(i)] for i in range(len(named))]
    except (OSError, KeyError, ValueError):
        return None
    match = _FILE.fullmatch(path.name)
    return arrays if match and weights_digest(arrays) == match[2] else None
