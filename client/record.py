"""The site's own record of what was asked, what was sent and what was refused: lines that are only ever added.

Format ``fedretrain.record/1``: one canonical JSON object per line, ``{"at", "kind", "previous", ...}``; ``previous`` is
the SHA-256 of the line before (without its line end), 64 zeros in the first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Chain:
    """What ``verify`` found: how many lines, the hash of the last one, and what is wrong, a line each."""

    entries: int
    head: str
    problems: tuple[str, ...]


def append(path: Path, kind: str, **fields: Any) -> None:
    """Add an entry and put it on the disk; safe among processes. Raises MachineError; nothing is added then."""
    raise NotImplementedError


def read(path: Path) -> Iterator[dict[str, Any]]:
    """All entries, oldest first; none where there is no record. Raises MachineError; lines that are none are left out."""
    raise NotImplementedError


def verify(path: Path, coordinator: str | None = None) -> Chain:
    """Check the chain, and with the coordinator's key (hex) each request's signature; raises MachineError."""
    raise NotImplementedError


def words(entry: dict[str, Any]) -> str:
    """An entry in one line for a person who is responsible for the data."""
    raise NotImplementedError
