"""The store that all sites of a simulation share, so that what is the same for all of them is written once."""

from pathlib import Path

from client.store import SiteStore
from fedretrain.messages import PrepareRequest


class SharedStore(SiteStore):
    """As ``client.store.SiteStore``; a request that this process has kept already is not written again."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._kept: PrepareRequest | None = None

    def put_run(self, run: str, request: PrepareRequest) -> None:
        """See ``SiteStore``."""
        if self._kept is None or request != self._kept:
            super().put_run(run, request)
            self._kept = request
