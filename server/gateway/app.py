"""What the gateway answers: the only part of the server that sites, and everybody else, can reach.

Invariants:

- Of SuperLink's interface the Fleet calls of ``FLEET`` pass, and nothing else: who holds no private key of a member
  gets not one byte to SuperLink, whose other calls know no authentication.
- A revoked member is shut out with its next request.
- A caller costs a bounded amount of memory, time and connections, member or not.
- Bodies stream through; their bytes are counted (``server.gateway.counters``).

Own pages, JSON, ``GET``::

    /health   {"alive": true}                                    the gateway runs
    /ready    {"ready": true}, or 503 {"code", "message"}        SuperLink answers too
    /time     {"time": 1760000000.0}                             the server's clock, seconds since 1970
    /hello    {"site", "time", "bundle", "ready", "software"}    signed like a Fleet call; for members

What is refused, and how that looks, stands in ``server.gateway.refusal``.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import httpx
from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from fedretrain import __version__
from fedretrain.errors import ConfigurationError
from server.federation import Federation

from .counters import Counters
from .forward import Body, ReceiveCall, SendCall, SuperLink, pass_back, passed_on, too_large
from .identity import KEY, Caller, Roster, claimed, prove
from .limits import Buckets
from .refusal import ACTIVATE, Refused

PREFIX: Final = "/v1/fleet/"
DEACTIVATE: Final = "deactivate-node"
FLEET: Final = frozenset(
    {
        ACTIVATE,
        DEACTIVATE,
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    }
)
_STRANGERS_PER_S, _STRANGERS_AT_ONCE = 5.0, 50  # per address, for whatever no member signed
_PATIENCE_S = 5.0  # a member's request that comes too soon waits so long at most
_LAPSE_S = 60  # after which SuperLink forgets a node that is silent
_log = logging.getLogger(__name__)

Scope = dict[str, Any]


@dataclass(frozen=True)
class _Origin:
    """Where a request comes from, and its headers."""

    address: str
    headers: Headers


class Gateway:
    """The ASGI application.

    Args:
        federation: Whose members may pass, and what limits they have.
        superlink: Where Fleet calls go.
        counters: Where everything is counted.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        federation: Federation,
        superlink: SuperLink,
        counters: Counters,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._limits = limits = federation.settings.limits
        self._roster = Roster(federation.settings.name, federation.roster, federation.entries)
        self._bundle = federation.bundle_digest
        self._superlink = superlink
        self._counters = counters
        self._clock = clock
        self._members = Buckets(limits.requests_per_second, limits.burst, _PATIENCE_S, time.monotonic)
        self._strangers = Buckets(_STRANGERS_PER_S, _STRANGERS_AT_ONCE, 0.0, time.monotonic)
        self._holders: dict[str, tuple[str, float]] = {}  # site: address and time of what SuperLink last took from it
        self._pages: dict[str, Callable[[_Origin], Awaitable[dict[str, Any]]]] = {
            "/health": self._health,
            "/ready": self._ready,
            "/time": self._time,
            "/hello": self._hello,
        }

    async def __call__(self, scope: Scope, receive: ReceiveCall, send: SendCall) -> None:
        """Serve one request."""
        path, client = scope["path"], scope.get("client")
        origin = _Origin(client[0] if client else "", Headers(scope=scope))
        body = Body(receive, self._limits.body_limit_bytes)
        call = path.removeprefix(PREFIX) if path.startswith(PREFIX) else ""
        try:
            if scope["method"] == "POST" and call in FLEET:
                await self._forward(call, origin, body, send)
            else:
                answer = JSONResponse(await self._page(scope["method"], path, origin))
                await answer(scope, receive, send)
        except Refused as refused:
            await self._refuse(refused, origin, call, body, send)
        except (httpx.HTTPError, TimeoutError) as error:  # the answer has begun; the connection is cut
            _log.warning("%s %s: cut off: %s", origin.address, path, type(error).__name__)

    async def _page(self, method: str, path: str, origin: _Origin) -> dict[str, Any]:
        page = self._pages.get(path)
        if method == "GET" and page is not None:
            return await page(origin)
        self._as_stranger(origin)
        raise Refused("not-found", f"there is no {method} {path[:100]!r} here")

    async def _forward(self, call: str, origin: _Origin, body: Body, send: SendCall) -> None:
        member = self._authenticate(origin)
        await self._wait_for_turn(member.name)
        traffic = self._counters.seen(member.name, origin.address)
        limit = self._limits.body_limit_bytes
        announced = origin.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > limit:
            raise too_large(int(announced), limit).of(member.name)
        sent, start = 0, time.monotonic()
        try:
            async with self._superlink.call(PREFIX + call, passed_on(origin.headers.items()), body.pieces()) as answer:
                self._follow(call, member.name, origin.address, answer)
                sent = await pass_back(answer, send)
        except Refused as refused:
            raise refused.of(member.name) from None
        finally:
            self._counters.moved(traffic, body.size, sent)
            took = time.monotonic() - start
            _log.debug("call %s %s in %d out %d took %.3f", member.name, call, body.size, sent, took)

    def _authenticate(self, origin: _Origin) -> Caller:
        """The member that signed a request; raises Refused."""
        try:
            member = claimed(origin.headers, self._roster)
        except Refused:
            self._as_stranger(origin)
            raise
        forger = (origin.address, origin.headers[KEY])
        if self._strangers.spent(forger):  # or checking signatures would cost more than it costs to invent them
            raise Refused("too-often", "too many requests with a wrong signature; wait a few seconds")
        try:
            prove(origin.headers, member, self._roster.federation, self._clock())
        except Refused:
            self._strangers.take(forger)
            raise
        return member

    async def _wait_for_turn(self, site: str) -> None:
        wait = self._members.take(site)
        if wait is None:
            rate = self._limits.requests_per_second
            raise Refused("too-often", f"site {site} sends more than {rate:g} requests a second; send fewer", site)
        if wait:
            await asyncio.sleep(wait)

    def _as_stranger(self, origin: _Origin) -> None:
        if self._strangers.take(origin.address) is None:
            raise Refused("too-often", "too many requests from this address that no member signed; wait a few seconds")

    def _follow(self, call: str, site: str, address: str, answer: httpx.Response) -> None:
        """Keep in mind who has a site's place at SuperLink, and say so to whoever is refused it."""
        if answer.is_success:
            self._holders[site] = address, self._clock()
            if call == DEACTIVATE:
                del self._holders[site]
        elif call == ACTIVATE and answer.status_code == httpx.codes.PRECONDITION_FAILED:
            raise self._occupied(site)

    def _occupied(self, site: str) -> Refused:
        holder, heard = self._holders.get(site, ("", 0.0))
        ago = self._clock() - heard
        if ago > _LAPSE_S:
            return Refused(
                "not-ready",
                f"the server does not take site {site} yet: it is still registering its key, or an earlier connection "
                f"has not lapsed; try again, it takes at most {_LAPSE_S} s",
                site,
            )
        return Refused(
            "connected",
            f"site {site} is connected already, from {holder}, last heard {ago:.0f} s ago, and one key is for one "
            "SuperNode: if a second one runs with it, stop it; if the first was killed, try again, its place lapses "
            f"after {_LAPSE_S} s of silence",
            site,
        )

    async def _refuse(self, refused: Refused, origin: _Origin, call: str, body: Body, send: SendCall) -> None:
        site, code, text = refused.site, refused.code, refused.text
        if (site or code != "superlink-down") and self._counters.refused(site, origin.address, code, text):
            _log.warning("refused %s (%s): %s: %s", origin.address, site or "no member", code, text)
        status, content = refused.answer(call)
        answer = JSONResponse(content, status, {"connection": "close"})
        await send({"type": "http.response.start", "status": status, "headers": answer.raw_headers})
        await send({"type": "http.response.body", "body": answer.body, "more_body": True})
        await body.discard(refused.site is not None)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _health(self, origin: _Origin) -> dict[str, Any]:
        self._as_stranger(origin)
        return {"alive": True}

    async def _ready(self, origin: _Origin) -> dict[str, Any]:
        self._as_stranger(origin)
        if not await self._superlink.ready():
            raise Refused(
                "superlink-down", "the gateway runs, the server's SuperLink does not answer; try again shortly"
            )
        return {"ready": True}

    async def _time(self, origin: _Origin) -> dict[str, Any]:
        self._as_stranger(origin)
        return {"time": self._clock()}

    async def _hello(self, origin: _Origin) -> dict[str, Any]:
        site = self._authenticate(origin).name
        await self._wait_for_turn(site)
        ready = await self._superlink.ready()
        bundle = None
        try:
            bundle = self._bundle()
        except ConfigurationError as error:
            _log.error("%s", error)
        return {
            "site": site,
            "time": self._clock(),
            "bundle": bundle,
            "ready": ready,
            "software": __version__,
        }
