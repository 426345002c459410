"""What a codec with error feedback left out of a site's updates, kept until the next one.

Invariants:

- A rest belongs to one run, site, contract and codec, and is read back bit for bit or not at all; without one, an
  update is coded as if nothing had ever been left out, which costs precision and nothing else.
- A round that is asked for again starts from the rest that it started from before: the answer has the same bits, and
  nothing counts twice, whether the site or the server stopped in between.
- It says something about the site's data, and so is readable by this user alone, and is removed with its run's folder
  once that has not been used for a month.

Layout of the folder::

    <SHA-256 of the run's id>/<SHA-256 of the site's name>/
        state.json        "fedretrain.residual/1": whose it is, the round last coded, the files "before" and "after" it
        <random>.f32      the coded variables' rests one after the other, little-endian float32
"""

import hashlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedretrain import atomic
from fedretrain.digest import json_digest, sha256
from fedretrain.messages import PrepareRequest

log = logging.getLogger(__name__)

KEPT_S = 30 * 86_400.0
_STATE = "state.json"
_WRITING_S = 3600.0
_OWN = 0o600
_READ_BYTES = 1 << 20

Floats = NDArray[np.float32]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=r"^[0-9a-f]{32}\.f32$")
    sha256: str


class _State(BaseModel):
    """``of`` is the digest of what it is bound to."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal["fedretrain.residual/1"] = "fedretrain.residual/1"
    of: str
    round: int
    before: _File | None
    after: _File | None

    @property
    def names(self) -> set[str]:
        return {file.name for file in (self.before, self.after) if file}


@dataclass(frozen=True)
class Residual:
    """One site's rest in one run.

    Args:
        folder: Where all rests of this store lie.
        request: The prepared run.
        site: The site's name.
        sizes: Elements of each coded variable, in the contract's order.
    """

    folder: Path
    request: PrepareRequest
    site: str
    sizes: Sequence[int]

    def begin(self, round_: int) -> "Carried":
        """What the update of a round starts from, and where its own rest goes.

        Raises:
            MachineError: The disk does not take it.
        """
        path = self.folder / sha256(self.request.run.encode()) / sha256(self.site.encode())
        atomic.make_folder(path, mode=0o700)
        codec = self.request.codec.model_dump(mode="json")
        of = json_digest([self.request.run, self.site, self.request.contract.digest, codec])
        state = _read(path / _STATE, of)
        before = None
        if state is not None and state.round <= round_:
            before = state.before if state.round == round_ else state.after
        rests = _rests(path, before, self.sizes)
        return Carried(path, state, _State(of=of, round=round_, before=before if rests else None, after=None), rests)


class Carried:
    """One round's way from rest to rest: ``take`` and ``keep`` each coded variable in turn, then ``commit``.

    Until then, what was kept before is as it was.
    """

    def __init__(self, path: Path, begun: _State | None, state: _State, rests: Sequence[Floats] | None) -> None:
        self._path = path
        self._begun = begun
        self._state = state
        self._rests = iter(rests) if rests else None
        self._name = f"{secrets.token_hex(16)}.f32"
        self._hash = hashlib.sha256()
        with atomic.disk_errors(path, "keep what a codec leaves out"):
            handle = os.open(path / self._name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWN)
            self._file = os.fdopen(handle, "wb")

    def take(self) -> Floats | None:
        """What was left out of the next variable, flat; None where there is nothing. Of a file, not of memory."""
        return next(self._rests) if self._rests is not None else None

    def keep(self, rest: Floats) -> None:
        """Put down what is left out of the next variable; raises MachineError."""
        data = np.ascontiguousarray(rest, "<f4").reshape(-1).view(np.uint8).data
        with atomic.disk_errors(self._path, "keep what a codec leaves out"):
            self._file.write(data)
        self._hash.update(data)

    def commit(self) -> None:
        """From here on the rest is this round's; raises MachineError."""
        with atomic.disk_errors(self._path, "keep what a codec leaves out"):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        after = _File(name=self._name, sha256=self._hash.hexdigest())
        state = self._state.model_copy(update={"after": after})
        last = _read(self._path / _STATE, state.of)
        if last is not None and last != self._begun and last.round > state.round:
            return  # a later round was answered meanwhile, so nobody waits for this one
        atomic.write_json(self._path / _STATE, state.model_dump(mode="json"), mode=_OWN)
        _tidy(self._path, last.names - state.names if last else set(), state.names)


def _read(path: Path, of: str) -> _State | None:
    try:
        state = _State.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        log.warning("%s: not readable, ignored; what was left out of earlier updates is lost", path)
        return None
    return state if state.of == of else None


def _rests(path: Path, file: _File | None, sizes: Sequence[int]) -> list[Floats] | None:
    """The rests by variable, mapped from the file; None where there is none, or a damaged one."""
    if file is None:
        return None
    try:
        with (path / file.name).open("rb") as stream:
            found = hashlib.sha256()
            while piece := stream.read(_READ_BYTES):
                found.update(piece)
        whole = np.memmap(path / file.name, "<f4", "r")
    except (OSError, ValueError):
        whole = None
    if whole is None or whole.size != sum(sizes) or found.hexdigest() != file.sha256:
        log.warning("%s: damaged, ignored; what was left out of earlier updates is lost", path / file.name)
        return None
    return np.split(whole, np.cumsum(sizes)[:-1])


def _tidy(path: Path, over: Collection[str], used: Collection[str]) -> None:
    """Remove the files that are over, those of crashes (not used, nor just being written), and what old runs left."""
    with suppress(OSError):  # a file too many does no harm
        for file in path.glob("*.f32"):
            if file.name in over or (file.name not in used and time.time() - file.stat().st_mtime > _WRITING_S):
                file.unlink()
        os.utime(path.parent)
        for run in path.parent.parent.iterdir():
            if run != path.parent and time.time() - run.stat().st_mtime > KEPT_S:
                shutil.rmtree(run, ignore_errors=True)
