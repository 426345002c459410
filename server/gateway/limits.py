"""How often somebody may ask: token buckets, one per key, that ask for patience before they refuse.

Invariants: within ``rate`` requests a second on average, and ``burst`` at once, nothing waits; beyond that a request
waits for its turn, which slows down a caller that waits for answers, as a SuperNode does, without an error; one whose
turn is more than ``patience_s`` away is refused and costs nothing. Memory is bounded by ``most`` keys.

A bucket is one number, the time at which it is full again (the generic cell rate algorithm, ITU-T I.371).
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable


class Buckets:
    """Buckets by key.

    Args:
        rate: Requests per second in the long run.
        burst: Requests at once.
        patience_s: Seconds that a request may wait.
        clock: Monotonic seconds.
        most: Keys that are remembered; the one that asked least recently is forgotten first.
    """

    def __init__(
        self, rate: float, burst: int, patience_s: float, clock: Callable[[], float], most: int = 10_000
    ) -> None:
        self._step, self._depth = 1 / rate, burst / rate
        self._patience_s = patience_s
        self._clock = clock
        self._most = most
        self._full_at: OrderedDict[Hashable, float] = OrderedDict()

    def take(self, key: Hashable) -> float | None:
        """Seconds to wait before the request goes on, or None where it is refused."""
        now = self._clock()
        full_at = max(self._full_at.pop(key, now), now) + self._step
        wait = max(0.0, full_at - self._depth - now)
        refused = wait > self._patience_s
        self._full_at[key] = full_at - self._step if refused else full_at
        if len(self._full_at) > self._most:
            self._full_at.popitem(last=False)
        return None if refused else wait

    def spent(self, key: Hashable) -> bool:
        """Whether ``take`` would refuse, without taking."""
        now = self._clock()
        full_at = max(self._full_at.get(key, now), now) + self._step
        return full_at - self._depth - now > self._patience_s
