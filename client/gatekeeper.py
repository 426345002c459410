"""The gate in front of a site's data: nothing passes but what the federation's coordinator asks of this site now, and
what the site's policy allows; nothing leaves that is not in the site's record.
"""

import time
from collections.abc import Callable
from typing import Any

from flwr.app import RecordDict

from fedretrain.membership import Kit

from .home import Home
from .sitefile import SiteFile


class Gatekeeper:
    """One site's answer to every message.

    Args:
        home: The site's folder.
        kit: Whom to believe.
        site: Data and policy; read again when ``site.toml`` changes.
        trainer: The backend, as ``client.trainer.Trainer``: ``prepare`` and ``train``.
        clock: Seconds since 1970.
    """

    def __init__(
        self, home: Home, kit: Kit, site: SiteFile, trainer: Any, clock: Callable[[], float] = time.time
    ) -> None:
        raise NotImplementedError

    def handle(self, message_type: str, content: RecordDict) -> RecordDict:
        """The sealed answer to one message, whatever is in it; never raises."""
        raise NotImplementedError
