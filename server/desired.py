"""What is wanted of a run and what was done about it: two small files by which commands and `server up` talk.

Invariants: the commands write ``desired.json`` and `server up` writes ``starts.json``, neither the other's, so that no
wish is lost; both survive crashes of either side; what to do next follows from the files alone (``next_step``).

Format ``fedretrain.desired/1``: ``{"format", "state": "run" | "stop", "at"}``. Format ``fedretrain.starts/1``:
``{"format", "starts": [{"flower_run", "at", "progress", "ended", "excused"}]}``, the oldest first: when a start was
made, how far the run was then, when it ended (null while it goes on), and whether it ended because a process of ours
was down. Times are UTC in ISO 8601.
"""

import json
import time
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedretrain import atomic
from fedretrain.errors import ConfigurationError
from fedretrain.runfolder import RunFolder
from fedretrain.standing import Standing

FRUITLESS = 5
"""Starts in a row without progress after which a run is left to its operator."""
KEPT = 50
FIRST_PAUSE_S = 1.0
LAST_PAUSE_S = 60.0
FINAL = frozenset({"ConfigurationError", "ModelRefused", "DataMismatch", "RunFailed", "UntrustedRelease"})
"""Failures that stay as they are until a person acts; of others a start may end otherwise."""
BELOW_QUORUM = "RunFailed"

FileT = TypeVar("FileT", bound="_File")


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Desired(_File):
    """What the operator asked for last."""

    format: Literal["fedretrain.desired/1"] = "fedretrain.desired/1"
    state: Literal["run", "stop"]
    at: str


class Start(_File):
    """One start of the run on the SuperLink."""

    flower_run: int
    at: str
    progress: int
    ended: str | None = None
    excused: bool = False


class Starts(_File):
    """All starts that are remembered."""

    format: Literal["fedretrain.starts/1"] = "fedretrain.starts/1"
    starts: tuple[Start, ...] = Field((), max_length=KEPT)


class Step(StrEnum):
    """What `server up` is to do about a run."""

    NOTHING = "nothing"
    START = "start"
    STOP = "stop"
    WAIT = "wait"
    GIVEN_UP = "given up"


def utc(at: float | None = None) -> str:
    """A time (Unix seconds; the present one by default) as it stands in the files."""
    return datetime.fromtimestamp(time.time() if at is None else at, UTC).isoformat(timespec="milliseconds")


def ask(folder: RunFolder, state: Literal["run", "stop"]) -> None:
    """Write down what is wanted; asking for a run forgets why its last start failed. Raises MachineError."""
    if state == "run":
        with atomic.disk_errors(folder.failure, "remove"):
            folder.failure.unlink(missing_ok=True)
    atomic.write_json(_desired(folder), Desired(state=state, at=utc()).model_dump(mode="json"))


def desired(folder: RunFolder) -> Desired | None:
    """What is wanted; None where nobody asked for anything. Raises ConfigurationError on a damaged file."""
    return _read(_desired(folder), Desired)


def read_starts(folder: RunFolder) -> tuple[Start, ...]:
    """The starts so far, oldest first; raises ConfigurationError on a damaged file."""
    found = _read(_starts(folder), Starts)
    return found.starts if found else ()


def write_starts(folder: RunFolder, starts: tuple[Start, ...]) -> None:
    """Replace the starts; of very many the last are kept. Raises MachineError."""
    atomic.write_json(_starts(folder), Starts(starts=starts[-KEPT:]).model_dump(mode="json"))


def going_on(starts: tuple[Start, ...]) -> bool:
    """Whether the last of these starts has not ended."""
    return bool(starts) and starts[-1].ended is None


def progress(folder: RunFolder) -> int:
    """How far the run is: rounds that count, and one more for a verdict."""
    return Standing.of(folder.read_events()).completed + folder.gate.exists()


def next_step(folder: RunFolder, now: float) -> Step:
    """What is to be done about a run; its starts are up to date, and nobody holds its lock.

    NOTHING stays until the run or its wish changes; WAIT is a pause before another start.

    Args:
        folder: The run's.
        now: Unix seconds.

    Raises:
        ConfigurationError: One of the files is damaged.
        MachineError: The disk.
    """
    wish, starts = desired(folder), read_starts(folder)
    under_way = going_on(starts)
    if wish is None or folder.result.exists():
        return Step.NOTHING
    if wish.state == "stop":
        return Step.STOP if under_way else Step.NOTHING
    if under_way:
        return Step.WAIT
    return _another(folder, wish, starts, now)


def _another(folder: RunFolder, wish: Desired, starts: tuple[Start, ...], now: float) -> Step:
    """Whether to start a run that is wanted and not going on."""
    last = starts[-1] if starts else None
    if is_final(failure(folder), last):
        return Step.NOTHING
    vain = fruitless(starts, wish, progress(folder))
    if vain >= FRUITLESS:
        return Step.GIVEN_UP
    if last is not None and last.ended is not None and vain and now < unix(last.ended) + _pause(vain):
        return Step.WAIT
    return Step.START


def is_final(failed: dict[str, Any] | None, last: Start | None) -> bool:
    """Whether only a person can mend what stopped the last start.

    Too few sites are not their fault where a process of ours was down meanwhile, so that start is not counted as final.
    """
    kind = (failed or {}).get("error")
    return kind in FINAL and not (kind == BELOW_QUORUM and last is not None and last.excused)


def fruitless(starts: tuple[Start, ...], wish: Desired, reached: int) -> int:
    """How many of the last starts that were made for this wish got the run no further than it is."""
    return sum(start.progress == reached and start.at >= wish.at for start in starts)


def failure(folder: RunFolder) -> dict[str, Any] | None:
    """Why the last start stopped, as ``server.app`` wrote it; None where it did not say."""
    try:
        value = json.loads(folder.failure.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _pause(vain: int) -> float:
    return float(min(LAST_PAUSE_S, FIRST_PAUSE_S * 2 ** (vain - 1)))


def unix(text: str) -> float:
    """The Unix seconds of a time in the files."""
    return datetime.fromisoformat(text).timestamp()


def _desired(folder: RunFolder) -> Path:
    return folder.root / "desired.json"


def _starts(folder: RunFolder) -> Path:
    return folder.root / "starts.json"


def _read(path: Path, kind: type[FileT]) -> FileT | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        return kind.model_validate_json(data)
    except ValidationError:
        what = "desired" if kind is Desired else "starts"
        raise ConfigurationError(
            f"{path}: not a fedretrain.{what}/1 file; delete it and run 'fedretrain server resume' for this run"
        ) from None
