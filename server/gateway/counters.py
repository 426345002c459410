"""Who came to the gateway, what it moved and what it refused: kept in memory, written to ``state/sites.json``.

Format ``fedretrain.sites/1``, times in seconds since 1970, sizes in bytes::

    {"format": "fedretrain.sites/1", "written": 1760000000.0,
     "sites": {"hospital-a": {"last_seen": 1760000000.0, "address": "10.0.0.3", "requests": 12,
                              "bytes_in": 5242880, "bytes_out": 1024, "refusals": [REFUSAL, ...]}},
     "strangers": [REFUSAL, ...]}
    REFUSAL = {"at": 1760000000.0, "code": "clock", "text": "...", "address": "10.0.0.3", "times": 3}

``strangers`` are callers that are no member. Refusals of one code and address that follow each other are one entry with
the last one's time and text. The newest ``KEPT`` of a list are kept. The file is replaced as a whole, at most once a
second, and is not flushed to the disk: a power cut may lose it, and nothing but the display depends on it.
"""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError

KEPT = 20
_log = logging.getLogger(__name__)


class Refusal(BaseModel):
    """One thing that was refused, ``times`` times."""

    at: float
    code: str
    text: str
    address: str
    times: int = 1


class Traffic(BaseModel):
    """What one site did."""

    last_seen: float | None = None
    address: str = ""
    requests: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    refusals: list[Refusal] = []


class Report(BaseModel):
    """The content of ``state/sites.json``."""

    format: Literal["fedretrain.sites/1"] = "fedretrain.sites/1"
    written: Annotated[float, Field(ge=0)] = 0.0
    sites: dict[str, Traffic] = {}
    strangers: list[Refusal] = []


def load(file: Path) -> Report:
    """Read a report; an empty one where the file is missing or of no use."""
    try:
        return Report.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return Report()


class Counters:
    """Counts for one gateway, going on from what its file holds.

    Args:
        file: ``state/sites.json``.
        clock: Seconds since 1970.
    """

    def __init__(self, file: Path, clock: Callable[[], float]) -> None:
        self.report = load(file)
        self._file = file
        self._clock = clock
        self._changed = False
        self._failing = False

    def seen(self, site: str, address: str) -> Traffic:
        """Count a request of a member; what it moves is added to the returned record by ``moved``."""
        traffic = self.report.sites.setdefault(site, Traffic())
        traffic.last_seen, traffic.address = self._clock(), address
        traffic.requests += 1
        self._changed = True
        return traffic

    def moved(self, traffic: Traffic, received: int, sent: int) -> None:
        """Add the bytes of bodies that a site's request and its answer had."""
        traffic.bytes_in += received
        traffic.bytes_out += sent
        self._changed = True

    def refused(self, site: str | None, address: str, code: str, text: str) -> bool:
        """Count a refusal, of a member or of a stranger; whether it differs from the one before."""
        traffic = None if site is None else self.report.sites.setdefault(site, Traffic())
        entries = self.report.strangers if traffic is None else traffic.refusals
        last = entries[-1] if entries else None
        self._changed = True
        if last is not None and (last.code, last.address) == (code, address):
            last.at, last.text, last.times = self._clock(), text, last.times + 1
            return False
        entries.append(Refusal(at=self._clock(), code=code, text=text, address=address))
        del entries[:-KEPT]
        return True

    def write(self) -> None:
        """Write the file if something changed; a disk that cannot take it is logged once and tried again."""
        if not self._changed:
            return
        self.report.written = self._clock()
        temporary = self._file.with_name(f".{self._file.name}.tmp")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
                json.dump(self.report.model_dump(), out)
            temporary.replace(self._file)
        except OSError as error:
            if not self._failing:
                _log.warning("%s: cannot be written: %s; it is tried again each second", self._file, error.strerror)
            self._failing = True
        else:
            self._failing = self._changed = False
