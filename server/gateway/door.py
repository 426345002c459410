"""Where connections come in: how many, from where, and how long one may take to say what it wants.

Invariants:

- At most ``most`` connections are open, and half as many of one address; what comes on top is closed at once, so that
  neither a crowd nor a single caller uses up the process' files. A connection counts from the moment it is accepted:
  one that never finishes its TLS handshake counts, and is closed after ``HANDSHAKE_S``.
- A request's head is complete within ``HEAD_S`` of its first byte, and of the connection, and no larger than
  ``HEAD_BYTES``. An idle connection is closed after ``IDLE_S``.

uvicorn does the HTTP; it sets no limit to any of these by itself.
"""

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HANDSHAKE_S = 10.0
HEAD_S = 10.0
HEAD_BYTES = 32 * 1024
IDLE_S = 75
_REST_S = 0.5  # after the system had no file left for a connection
_log = logging.getLogger(__name__)

Gone = Callable[[], None]


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's HTTP, with an end to its patience.

    Args:
        gone: Called when the connection has ended.
        arguments: uvicorn's.
    """

    def __init__(self, gone: Gone, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._gone = gone
        self._timer: asyncio.TimerHandle | None = None
        self._head = 0  # bytes of a head that is not complete; more than them while one is read
        self._in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Start the clock."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEAD_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)
        self._gone()

    def data_received(self, data: bytes) -> None:
        """Read on, up to the largest head."""
        self._head = self._head + len(data) if self._in_head else 0
        super().data_received(data)
        if self._in_head and self._head > HEAD_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self._in_head = True
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_S, self.transport.abort)

    def on_headers_complete(self) -> None:
        """The end of its head."""
        self._in_head = False
        self._stop_clock()
        super().on_headers_complete()

    def _stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Door:
    """Accepts connections and gives each to a protocol; ``close`` and ``wait_closed`` are those of asyncio's servers.

    Args:
        listener: A bound socket.
        context: TLS.
        protocol: Makes the protocol of one connection, given what it has to call in the end.
        most: Connections at once.
    """

    def __init__(
        self, listener: socket.socket, context: ssl.SSLContext, protocol: Callable[[Gone], asyncio.Protocol], most: int
    ) -> None:
        self._listener = listener
        self._context = context
        self._protocol = protocol
        self._most = most
        self._by_address: Counter[str] = Counter()
        self._open = 0
        self._greetings: set[asyncio.Task[None]] = set()
        self._full = False
        listener.setblocking(False)
        self._task = asyncio.get_running_loop().create_task(self._accept())

    def close(self) -> None:
        """Take no more connections."""
        self._task.cancel()
        self._listener.close()

    async def wait_closed(self) -> None:
        """Wait until nothing is accepted any more."""
        with suppress(asyncio.CancelledError):
            await self._task

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(self._listener)
            except OSError as error:
                _log.warning("no connection can be accepted: %s", error.strerror or error)
                await asyncio.sleep(_REST_S)
                continue
            address = str(peer[0])
            if not self._has_room(address):
                connection.close()
                continue
            greeting = loop.create_task(self._greet(connection, self._count(address)))
            self._greetings.add(greeting)
            greeting.add_done_callback(self._greetings.discard)

    def _has_room(self, address: str) -> bool:
        room = self._open < self._most and self._by_address[address] < max(1, self._most // 2)
        if not room and not self._full:
            _log.warning("%d connections are open, more are closed at once; the last was from %s", self._open, address)
        self._full = not room
        return room

    def _count(self, address: str) -> Gone:
        """Count a connection; what is returned counts it off, once."""
        self._open += 1
        self._by_address[address] += 1
        left = [address]

        def gone() -> None:
            if left:
                self._open -= 1
                self._by_address[left[0]] -= 1
                if not self._by_address[left[0]]:
                    del self._by_address[left[0]]
                left.clear()

        return gone

    async def _greet(self, connection: socket.socket, gone: Gone) -> None:
        """The TLS handshake; from then on the protocol has the connection."""
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._protocol(gone),
                connection,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=HANDSHAKE_S,
            )
        except OSError as error:  # ssl.SSLError is one: a scanner, or a site that does not trust our certificate
            gone()
            _log.debug("handshake: %s", error)
        except asyncio.CancelledError:
            gone()
            raise
