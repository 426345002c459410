"""The way from the gateway to SuperLink: HTTP over TLS on loopback, connections kept, bodies passed on in pieces.

Invariants: the certificate is verified against the federation's own authority; only the headers of Flower's protocol
go through, in either direction; a body is never held whole, and neither side is waited for longer than ``STALL_S``.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from fedretrain.errors import ConfigurationError

from .refusal import Refused

STALL_S = 60.0
_CONNECT_S = 5.0
_READY_S = 1.0  # how long an answer to "is it ready" is good for
_LINGER = {True: (5.0, 512 * 2**20), False: (1.0, 64 * 2**10)}  # seconds and bytes, for a member or somebody else
# SuperLink's own server closes a connection after five idle seconds; ours is not to use one that is being closed.
_KEEP_S = 3.0
_PASSED = frozenset({"content-type", "content-length", "content-encoding", "accept"})
_AS_IT_IS = ("accept-encoding", "identity")

ReceiveCall = Callable[[], Awaitable[MutableMapping[str, Any]]]
SendCall = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class SuperLink:
    """One SuperLink on this machine.

    Args:
        port: File with its port; read again when it changes.
        ca: Certificate of the authority that signed its certificate.

    Raises:
        ConfigurationError: The authority's certificate cannot be read.
    """

    def __init__(self, port: Path, ca: Path) -> None:
        self._port = port
        try:
            context = ssl.create_default_context(cafile=str(ca))
        except OSError as error:
            raise ConfigurationError(f"{ca}: expected the certificate of the authority: {error}") from None
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=_KEEP_S)
        timeout = httpx.Timeout(STALL_S, connect=_CONNECT_S)
        self._client = httpx.AsyncClient(verify=context, limits=limits, timeout=timeout, trust_env=False)
        self._ready = (0.0, False)

    @asynccontextmanager
    async def call(
        self, path: str, headers: Iterable[tuple[str, str]], body: AsyncIterator[bytes]
    ) -> AsyncIterator[httpx.Response]:
        """Send a request and yield the answer, whose body is still to be read.

        Raises:
            Refused: SuperLink does not answer; or what reading the body raised.
        """
        try:
            request = self._client.build_request("POST", self._url(path), headers=[*headers, _AS_IT_IS], content=body)
            answer = await self._client.send(request, stream=True)
        except (httpx.HTTPError, OSError, ValueError) as error:
            raise Refused(
                "superlink-down", f"the server's SuperLink does not answer ({type(error).__name__}); try again shortly"
            ) from None
        try:
            yield answer
        finally:
            await answer.aclose()

    async def ready(self) -> bool:
        """Whether SuperLink answers, asked at most once a second."""
        at, ready = self._ready
        if time.monotonic() - at < _READY_S:
            return ready
        self._ready = (time.monotonic(), ready)  # whoever asks meanwhile gets the answer before
        try:
            answer = await self._client.get(self._url("/health"), timeout=_CONNECT_S)
            ready = answer.status_code == httpx.codes.OK
        except (httpx.HTTPError, OSError, ValueError):
            ready = False
        self._ready = (time.monotonic(), ready)
        return ready

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    def _url(self, path: str) -> str:
        return f"https://127.0.0.1:{int(self._port.read_text(encoding='ascii'))}{path}"


def passed_on(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those headers, in lower case, that belong to Flower's protocol."""
    return [(name, value) for name, value in headers if name in _PASSED or name.startswith("flwr-")]


class Body:
    """The body of a request, read in pieces and counted.

    Args:
        receive: The connection's.
        limit: The most bytes it may have.
    """

    def __init__(self, receive: ReceiveCall, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self.size = 0
        self.complete = False

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body; raises Refused where it is too large, does not go on, or its sender is gone."""
        while not self.complete:
            piece = await self._next(STALL_S)
            if self.size > self._limit:
                raise too_large(self.size, self._limit)
            if piece:
                yield piece

    async def discard(self, member: bool) -> None:
        """Read on for a few seconds: a sender that is cut off while it sends may never read our answer."""
        seconds, most = _LINGER[member]
        try:
            async with asyncio.timeout(seconds):
                while not self.complete and self.size < most:
                    await self._next(seconds)
        except (TimeoutError, Refused):
            pass

    async def _next(self, patience_s: float) -> bytes:
        try:
            async with asyncio.timeout(patience_s):
                message = await self._receive()
        except TimeoutError:
            raise Refused(
                "stalled", f"the request's body did not go on for {patience_s:.0f} s; send it again"
            ) from None
        if message["type"] == "http.disconnect":
            self.complete = True
            raise Refused("stalled", "the connection ended before the request's body did; send it again")
        piece: bytes = message.get("body", b"")
        self.size += len(piece)
        self.complete = not message.get("more_body", False)
        return piece


def too_large(size: int, limit: int) -> Refused:
    """The refusal of a body that is over the limit."""
    return Refused(
        "too-large",
        f"the request's body has {size} bytes or more, the gateway takes {limit}: send less, or ask the server's "
        "operator to raise body_limit_bytes in federation.toml",
    )


async def pass_back(answer: httpx.Response, send: SendCall) -> int:
    """Send SuperLink's answer to the caller in pieces; the bytes of its body."""
    headers = [(name.encode(), value.encode("latin-1")) for name, value in passed_on(answer.headers.multi_items())]
    await _deliver(send, {"type": "http.response.start", "status": answer.status_code, "headers": headers})
    size = 0
    async for piece in answer.aiter_raw():
        size += len(piece)
        await _deliver(send, {"type": "http.response.body", "body": piece, "more_body": True})
    await _deliver(send, {"type": "http.response.body", "body": b"", "more_body": False})
    return size


async def _deliver(send: SendCall, message: MutableMapping[str, Any]) -> None:
    """Send, but do not wait for ever for a caller that does not read."""
    async with asyncio.timeout(STALL_S):
        await send(message)
