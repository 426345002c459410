"""What one way of running rounds costs, in numbers that a table can show side by side."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from .trees import Tree


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        seconds: Its length.
        training: Of it, the longest training and evaluation of a site.
        down: Bytes of bodies from the server to all sites.
        up: Bytes of bodies from all sites to the server.
        parts: Where the rest of the seconds went, if that is known.
    """

    seconds: float
    training: float
    down: float
    up: float
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def overhead(self) -> float:
        """What is not training."""
        return self.seconds - self.training


@dataclass(frozen=True)
class Costs:
    """All that was measured of one way.

    Attributes:
        rounds: Every round but the first, in which everything is started and traced.
        first: The first round.
        server_cpu: CPU seconds of the server's processes in one round.
        site_cpu: CPU seconds of one site's processes in one round.
        server_idle: Share of one core that the server's processes take while nothing is asked of them.
        site_idle: The same of one site's processes.
    """

    rounds: Sequence[Round]
    first: Round
    server_cpu: float
    site_cpu: float
    server_idle: float
    site_idle: float

    def typical(self, what: Callable[[Round], float]) -> float:
        """The median over the rounds."""
        return median(what(each) for each in self.rounds)


class Meter:
    """CPU time of a server's processes and of its sites'.

    Args:
        server: Its processes.
        sites: One for each site.
    """

    def __init__(self, server: Sequence[Tree], sites: Sequence[Tree]) -> None:
        self._server, self._sites = server, sites

    def read(self) -> tuple[float, float]:
        """Seconds so far: of the server, and of a site on average."""
        server = sum(tree.cpu_seconds() for tree in self._server)
        return server, sum(tree.cpu_seconds() for tree in self._sites) / len(self._sites)

    def share(self, seconds: float, rest_s: float = 0.0) -> tuple[float, float]:
        """Shares of a core that server and site take during so many seconds, after a rest; zero for no seconds."""
        if not seconds:
            return 0.0, 0.0
        time.sleep(rest_s)
        before, start = self.read(), time.monotonic()
        time.sleep(seconds)
        after, took = self.read(), time.monotonic() - start
        return (after[0] - before[0]) / took, (after[1] - before[1]) / took
