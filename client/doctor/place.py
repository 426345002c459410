"""Where the gateway is said to be, and how it is asked something."""

import http.client
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fedretrain.membership import Kit

TIMEOUT_S = 10.0
ASK = "ask the server's operator"
_MOST = 65_536  # bytes of an answer


@dataclass(frozen=True)
class Place:
    """The kit's address; ``clock`` is this machine's, seconds since 1970."""

    host: str
    port: int
    kit: Kit
    clock: Callable[[], float]

    @classmethod
    def of(cls, kit: Kit, clock: Callable[[], float]) -> "Place":
        """The place a kit names."""
        host, _, port = kit.address.rpartition(":")
        return cls(host.removeprefix("[").removesuffix("]"), int(port), kit, clock)

    @property
    def now(self) -> datetime:
        """This machine's time, UTC."""
        return datetime.fromtimestamp(self.clock(), UTC)

    def __str__(self) -> str:
        return self.kit.address

    def context(self) -> ssl.SSLContext:
        """TLS as the kit says it has to be."""
        return ssl.create_default_context(cadata=self.kit.ca)

    def get(self, path: str, headers: dict[str, str], context: ssl.SSLContext) -> tuple[int, Any]:
        """Status and JSON (None where it is none) of a page; raises OSError or http.client.HTTPException."""
        connection = http.client.HTTPSConnection(self.host, self.port, timeout=TIMEOUT_S, context=context)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            data = answer.read(_MOST)
        finally:
            connection.close()
        try:
            return answer.status, json.loads(data)
        except ValueError:
            return answer.status, None


def reason(error: BaseException) -> str:
    """What the system says about a connection that failed, in one line."""
    said = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return str(said).strip() or type(error).__name__


def utc(seconds: float) -> str:
    """A time as people read it."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
