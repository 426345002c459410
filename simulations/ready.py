"""The sites that a worker has at hand, with their data in memory: as many as a budget holds, the last used ones.

Invariant: a site that went comes back the same; only reading and checking its data is done again.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from client.site import Site

DATA_BYTES = 1 << 30  # of examples, in each worker


class Ready:
    """Sites by name.

    Args:
        make: Makes a site that has no data yet.
        budget: Bytes that their data may take together; the one in use stays whatever it takes.
    """

    def __init__(self, make: "Callable[[str], Site]", budget: int = DATA_BYTES) -> None:
        self._make = make
        self._budget = budget
        self._kept: OrderedDict[str, tuple[Site, int]] = OrderedDict()
        self._bytes = 0

    @contextmanager
    def site(self, name: str) -> "Iterator[Site]":
        """The site, for one use."""
        site, size = self._kept.pop(name) if name in self._kept else (self._make(name), 0)
        try:
            yield site
        finally:
            self._kept[name] = site, site.data_bytes
            self._bytes += site.data_bytes - size
            while self._bytes > self._budget and len(self._kept) > 1:
                _, (_, freed) = self._kept.popitem(last=False)
                self._bytes -= freed
