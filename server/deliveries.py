"""When the release in use is to be brought to sites that lack it: not too often, and one delivery at a time.

Invariant: nothing is asked of anybody here; who lacks what follows from files that are read again once they change.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from .federation import Federation

EVERY_S: Final = 2.0
AGAIN_S: Final = 600.0  # longest pause where deliveries change nothing
LOOK_S: Final = 30.0  # between two looks at files that have not changed: what a site refused is due again some day


class Deliveries:
    """A federation's deliveries, the one under way and those before it."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._running: int | None = None
        self._due = self._look_due = 0.0
        self._brought_to: tuple[str, ...] = ()
        self._pause_s = EVERY_S
        self._seen: tuple[Any, ...] = ()
        self._behind: list[str] = []

    def due(self, goes_on: Callable[[int], bool]) -> bool:
        """Whether it is time to look for sites to serve; ``goes_on`` tells whether a delivery, by number, does."""
        if time.monotonic() < self._due:
            return False
        self._due = time.monotonic() + EVERY_S
        if self._running is not None and goes_on(self._running):
            return False
        self._running = None
        return True

    def lacking(self) -> tuple[str, ...]:
        """Connected sites without the release in use; raises as ``server.deliver.behind``."""
        from .deliver import behind
        from .sites import online

        there = online(self._federation)
        if not there:
            return ()
        f = self._federation
        seen = tuple(map(stamp, (f.registry / "metadata" / "timestamp.json", f.installed, f.roster)))
        if seen != self._seen or time.monotonic() > self._look_due:
            self._behind = behind(f)
            self._seen, self._look_due = seen, time.monotonic() + LOOK_S
        return tuple(site for site in self._behind if site in there)

    def begun(self, lacking: tuple[str, ...], number: int) -> None:
        """Note that a delivery to these sites was started; where it changes nothing the next one comes later."""
        self._running = number
        self._pause_s = min(2 * self._pause_s, AGAIN_S) if lacking == self._brought_to else EVERY_S
        self._brought_to, self._due = lacking, time.monotonic() + self._pause_s


def stamp(path: Path) -> tuple[Any, ...]:
    """Another value once the file was replaced; empty where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return ()
    return (stat.st_mtime_ns, stat.st_ino, stat.st_size)
