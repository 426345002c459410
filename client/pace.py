"""How long an update has taken, how long it may, and so how much work is begun at once."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from fedretrain.errors import DeclinedRequest

_SHARE = 0.02  # of the limit, what one piece of work should take
_T = TypeVar("_T")


class Pace:
    """The clock of one update, from when it is made.

    Args:
        seconds: How long it may take; None for as long as it does.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = seconds
        self._started = self._last = time.monotonic()
        self._steps = 1

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self._seconds is not None

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def steps(self, most: int) -> int:
        """How many steps to take before looking at the clock again, at most ``most``; few where there is a limit."""
        return most if self._seconds is None else min(self._steps, most)

    def through(self, pieces: Iterable[_T]) -> Iterator[_T]:
        """The pieces, each as long as there is time; what is done with one sets how large the next ones are.

        Raises:
            DeclinedRequest: ``policy``, where there is a limit and it is over.
        """
        for piece in pieces:
            if self._seconds is not None and self.elapsed > self._seconds:
                raise DeclinedRequest(
                    "policy", "max_seconds", f"at most {self._seconds:g} seconds of training in a round"
                )
            begun = time.monotonic()
            yield piece
            if self._seconds is not None and time.monotonic() - begun < _SHARE * self._seconds / 2:
                self._steps *= 2
