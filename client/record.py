"""The site's own record: what was asked, what was sent, what was refused; lines that are only ever added.

Invariants: an entry is on the disk before ``append`` returns, whole or not at all; several processes may add at once;
a line that is changed, removed, put in or moved breaks the chain of hashes, and ``verify`` says where. Only a cut at
the end, or a change of the last line, needs something from outside to be seen: the head that ``verify`` gave before.

Format ``fedretrain.record/1``, one canonical JSON object per line::

    {"at": UTC, "kind": str, "previous": hex, ...}     previous: SHA-256 of the line before, without its line end;
                                                       64 zeros in the first

Kinds written by ``client.gatekeeper``: ``asked`` (with the coordinator's claims and signature, which prove it later),
``sent``, ``refused``, ``kept``, ``omitted`` (from training); by ``client.approvals``: ``approved``, ``withdrawn``; by
``client.releases``: ``chosen``; here: ``mended``, where the machine stopped in the middle of a line and its beginning
was taken away again.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedretrain.atomic import disk_errors
from fedretrain.digest import canonical_json, sha256

START = "0" * 64
_BLOCK = 65_536  # bytes read from the end to find the last line


@dataclass(frozen=True)
class Chain:
    """What ``verify`` found: how many lines, the hash of the last one, and what is wrong, a line each."""

    entries: int
    head: str
    problems: tuple[str, ...]


def append(path: Path, kind: str, /, **fields: Any) -> None:
    """Add an entry; ``fields`` are JSON values. Raises MachineError, and then nothing was added."""
    with disk_errors(path, "write the site's record"):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o660)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # given back when the handle is closed
            previous, end, torn = _last_line(handle)
            if torn:
                os.ftruncate(handle, end)
                previous, end = _write(handle, end, {"kind": "mended", "previous": previous, "bytes": torn})
            _write(handle, end, {"kind": kind, "previous": previous, **fields})
        finally:
            os.close(handle)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """All entries, oldest first; lines that are none (``verify`` names them) are left out. Raises MachineError."""
    return (entry for _, entry in _lines(path) if entry is not None)


def verify(path: Path, coordinator: str | None = None) -> Chain:
    """Check the chain and, given the coordinator's public key in hexadecimal, each request's signature.

    Raises:
        MachineError: The record cannot be read.
    """
    previous, count, problems = START, 0, list[str]()
    for count, (line, entry) in enumerate(_lines(path), 1):
        if entry is None:
            problems.append(f"line {count}: not an entry; it was changed, or cut off when the machine stopped")
        elif entry.get("previous") != previous:
            problems.append(f"line {count}: does not follow the line before it; one of the two was changed or removed")
        elif coordinator is not None and entry["kind"] == "asked" and not _proven(entry, coordinator):
            problems.append(f"line {count}: not signed by the coordinator of the kit")
        previous = sha256(line)
    return Chain(count, previous, tuple(problems))


def words(entry: dict[str, Any]) -> str:
    """An entry in one line for a person who is responsible for the data."""
    kind = str(entry.get("kind"))
    told = _TELL.get(kind)
    rest = {key: value for key, value in entry.items() if key not in ("at", "kind", "previous")}
    text = told(entry) if told else f"{kind}: " + ", ".join(f"{key} {value}" for key, value in rest.items())
    return "".join(c if c.isprintable() else "?" for c in f"{entry.get('at', '')}  {text}")


def _asked(entry: dict[str, Any]) -> str:
    size = f", {_size(entry['bytes'])} came with it" if entry.get("bytes") else ""
    return f"the coordinator of {entry.get('federation')} asked (signature verified): {_subject(entry)}{size}"


def _sent(entry: dict[str, Any]) -> str:
    parts = []
    if arrays := entry.get("arrays"):
        what = f"the sum {entry['sum']}" if entry.get("sum") else "changes to the model"
        what = "counts" if entry.get("sum") == "check" else what
        parts.append(f"{arrays} arrays of {what}, {_size(entry.get('bytes', 0))}")
    parts += [f"{name} {value}" for name, value in entry.get("counts", {}).items()]
    if release := entry.get("release"):
        parts.append(f"release {release} is in use here")
    if statistics := entry.get("statistics"):
        parts.append(f"statistics {', '.join(statistics)}")
    if epsilon := entry.get("epsilon"):
        parts.append(f"each count with noise of epsilon {epsilon:g}")
    if withheld := entry.get("withheld"):
        parts.append(f"kept back by policy: {', '.join(withheld)}")
    if declines := entry.get("declines"):
        parts.append(f"modes not allowed here: {', '.join(declines)}")
    return f"sent in answer to {_subject(entry)}: {'; '.join(parts) or 'an acknowledgement'}"


def _refused(entry: dict[str, Any]) -> str:
    why = f"{entry.get('code')}" + (f" at {entry['where']}" if entry.get("where") else "")
    expected = f" (expected {entry['expected']})" if entry.get("expected") else ""
    more = f"; {entry['unrecorded']} like it since the last entry" if entry.get("unrecorded") else ""
    return f"refused {_subject(entry)}: {why}{expected}{more}; no data were sent"


def _kept(entry: dict[str, Any]) -> str:
    if damaged := entry.get("damaged"):
        return (
            f"files of examples kept here for later runs that are not as this site wrote them: {damaged}; nothing in "
            f"them is used, they are removed or written anew; noticed at {_subject(entry)}"
        )
    return (
        f"{entry.get('examples')} examples are kept here for later runs, encrypted, as the policy allows; "
        f"the last ones after {_subject(entry)}"
    )


def _omitted(entry: dict[str, Any]) -> str:
    counts = ", ".join(f"{count} for {reason}" for reason, count in entry.get("counts", {}).items())
    return f"examples left out of training, as the policy says: {counts}; noticed at {_subject(entry)}"


def _approval(entry: dict[str, Any]) -> str:
    did = "allowed" if entry["kind"] == "approved" else "took back the permission for"
    return f"{entry.get('by')} {did} job {str(entry.get('job'))[:12]}, which run {entry.get('run')} asked for"


_TELL: dict[str, Callable[[dict[str, Any]], str]] = {
    "asked": _asked,
    "sent": _sent,
    "refused": _refused,
    "approved": _approval,
    "withdrawn": _approval,
    "chosen": lambda entry: (
        f"{entry.get('by')} chose release {str(entry.get('release'))[:16]} (run {entry.get('run')}) to be used here"
    ),
    "kept": _kept,
    "omitted": _omitted,
    "mended": lambda entry: (
        f"the beginning of a line ({entry.get('bytes')} bytes) from when the machine stopped is gone"
    ),
}
_SUBJECTS = {
    "query.prepare": "a check and count of the data",
    "query.base": "keeping the base model",
    "train": "training",
    "query.release": "a release",
    "query.sum": "a sum over the data",
    "query.companion": "keeping what the run's objectives need",
}


def _subject(entry: dict[str, Any]) -> str:
    if entry.get("unverified"):
        return "a message that is not the coordinator's for this site"
    round_ = f", round {entry['round']}" if entry.get("round") else ""
    return f"{_SUBJECTS.get(str(entry.get('type')), 'a message')} [run {entry.get('run')}{round_}]"


def _size(count: int) -> str:
    if count < 1000:
        return f"{count} bytes"
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def _proven(entry: dict[str, Any], coordinator: str) -> bool:
    """Whether the coordinator signed the claims in the entry, and the entry says what they do."""
    from cryptography.exceptions import InvalidSignature

    from fedretrain.membership import public_key
    from fedretrain.seal import CONTEXT

    try:
        text = str(entry["claims"])
        public_key(coordinator).verify(bytes.fromhex(entry["signature"]), CONTEXT + text.encode())
        claims = json.loads(text)
        told = {"message_type": entry["type"], **{key: entry[key] for key in ("federation", "run", "round")}}
        return bool(told == {key: claims[key] for key in told})
    except (InvalidSignature, KeyError, TypeError, ValueError):
        return False


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Each line without its end, and the entry in it."""
    if not path.exists():
        return
    with disk_errors(path, "read the site's record"), path.open("rb") as file:
        for line in file:
            yield line.removesuffix(b"\n"), _entry(line)


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "kind" in entry else None


def _last_line(handle: int) -> tuple[str, int, int]:
    """The last whole line's hash, where it ends, and how many bytes of an unfinished one come after it."""
    size = os.lseek(handle, 0, os.SEEK_END)
    length = 0
    while True:
        length = min(size, length + _BLOCK)
        tail = os.pread(handle, length, size - length)
        whole = tail[: tail.rfind(b"\n") + 1]
        start = whole.rfind(b"\n", 0, -1) + 1
        if length == size or (whole and start):
            line = whole[start:-1]
            return (sha256(line) if whole else START), size - len(tail) + len(whole), len(tail) - len(whole)


def _write(handle: int, end: int, entry: dict[str, Any]) -> tuple[str, int]:
    """Put an entry at ``end``, and return its hash and where it ends; a disk that is full leaves nothing of it."""
    line = canonical_json({"at": datetime.now(UTC).isoformat(timespec="seconds"), **entry})
    written = 0
    try:
        while written <= len(line):
            written += os.pwrite(handle, (line + b"\n")[written:], end + written)
        os.fsync(handle)
    except OSError:
        with suppress(OSError):  # what stays is mended by the next entry
            os.ftruncate(handle, end)
        raise
    return sha256(line), end + len(line) + 1
