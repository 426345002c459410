"""The way to the server, step by step: address, port, TLS, clock, roster, SuperLink, bundle.

Invariants: each step is taken once the one before succeeded, so that the first finding that is a problem is the cause;
nothing the server says is believed before its certificate was verified; nothing is sent but what a SuperNode sends to
say who it is.
"""

import http.client
import socket
from collections.abc import Callable, Iterator
from typing import Any

from client.home import Home
from client.policy import Policy, bundle_accepted
from fedretrain import __version__
from fedretrain.errors import ConfigurationError
from fedretrain.membership import Kit

from .finding import Finding, Stop, problem
from .place import ASK, TIMEOUT_S, Place, reason, utc
from .tls import handshake

AHEAD_S = 4.0  # a node further ahead is refused
BEHIND_S = 300.0  # so is one further behind


def examine_server(home: Home, clock: Callable[[], float], policy: Policy | None = None) -> Iterator[Finding]:
    """Everything between this machine and SuperLink; ends with the first problem, and says what was not looked at."""
    try:
        kit = home.load_kit()
    except ConfigurationError:
        yield Finding("server", "skipped", "not looked at: the site has joined no federation")
        return
    place = Place.of(kit, clock)
    steps: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("address", lambda: _resolve(place)),
        ("port", lambda: _connect(place)),
        ("certificate", lambda: handshake(place)),
        ("clock", lambda: _compare_clocks(place)),
        ("admission", lambda: _say_hello(place, home, policy or Policy())),
    ]
    for i, (_, step) in enumerate(steps):
        try:
            yield from step()
        except Stop as stop:
            yield stop.finding
            if left := [subject for subject, _ in steps[i + 1 :]]:
                yield Finding(left[0], "skipped", f"not looked at because of the problem above: {', '.join(left)}")
            return


def _resolve(place: Place) -> Iterator[Finding]:
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Stop(
            problem(
                "address",
                "unknown-host",
                f"the name {place.host!r} of the kit's address {place} is not known: {reason(error)}",
                "without an address there is nothing to connect to",
                "look whether this machine's name service (DNS) works; if it does, the name in the kit is wrong: "
                f"{ASK} for a kit with the right address",
            )
        ) from None
    numbers = ", ".join(dict.fromkeys(str(entry[4][0]) for entry in found))
    yield Finding("address", "ok", f"{place.host} is {numbers}" if numbers != place.host else place.host)


def _connect(place: Place) -> Iterator[Finding]:
    why = "the SuperNode makes one connection, from here to this address and port; no port is opened at the site"
    try:
        socket.create_connection((place.host, place.port), TIMEOUT_S).close()
    except ConnectionRefusedError:
        raise Stop(
            problem(
                "port",
                "port-closed",
                f"nothing listens on port {place.port} of {place.host}: the connection was refused",
                why,
                f"{ASK} whether {place} is the right address and port, and whether 'fedretrain server up' is "
                "running; if both are so, a firewall on the way refuses the connection",
            )
        ) from None
    except OSError as error:
        raise Stop(
            problem(
                "port",
                "no-answer",
                f"no connection to {place}: {reason(error)}",
                why,
                f"let outgoing connections to port {place.port} of {place.host} through this site's firewall; if they "
                f"are, {ASK} whether the server is on and the address and port are right",
            )
        ) from None
    yield Finding("port", "ok", f"{place} takes connections")


def _compare_clocks(place: Place) -> Iterator[Finding]:
    before = place.clock()
    status, answer = _get(place, "/time", {})
    after = place.clock()
    there = answer.get("time") if isinstance(answer, dict) else None
    if status != http.client.OK or not isinstance(there, int | float):
        raise Stop(
            problem(
                "clock",
                "not-a-gateway",
                f"what answers on {place} is not a fedretrain gateway: GET /time gave status {status}",
                "the port or the address is another service's, though its certificate is the federation's",
                f"{ASK} for the gateway's port",
            )
        )
    ahead = (before + after) / 2 - there
    said = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    if -AHEAD_S <= ahead <= AHEAD_S:
        yield Finding("clock", "ok", f"this machine's clock is {said}")
        return
    refused = ahead > 0 or ahead < -BEHIND_S
    found = problem(
        "clock",
        "clock",
        f"this machine's clock is {said}: here {utc(after)}, there {utc(there)}",
        f"the server takes a node that is at most {AHEAD_S:.0f} s ahead or {BEHIND_S:.0f} s behind"
        + (", so this one is refused" if refused else "; a clock that drifts does not stay within that"),
        "set this machine's clock, best by NTP (for example 'timedatectl set-ntp true')",
    )
    if refused:
        raise Stop(found)
    yield found


def _say_hello(place: Place, home: Home, policy: Policy) -> Iterator[Finding]:
    from client.flowerside import auth_headers
    from client.identity import load_node_key

    try:
        key = load_node_key(home)
    except ConfigurationError as error:
        yield Finding("admission", "skipped", f"not looked at: {error}")
        return
    status, answer = _get(place, "/hello", auth_headers(key))
    if not isinstance(answer, dict):
        answer = {}
    if status != http.client.OK:
        raise Stop(_refused(place, status, answer))
    yield Finding("admission", "ok", f"the server knows this key as {answer.get('site')} of {place.kit.federation}")
    yield _superlink(answer.get("ready") is True)
    yield from _bundle(place.kit, policy, answer.get("bundle"))
    software = str(answer.get("software"))
    if software == __version__:
        yield Finding("software", "ok", f"version {__version__}, as the server's")
    else:
        yield Finding(
            "software",
            "note",
            f"version {__version__} here, {software[:40]} at the server",
            "messages of versions that differ are refused where their format changed",
            "install the same version as the server's when there is time",
        )


_ADMISSION = {
    "not-admitted": (
        "the server lets only nodes in whose keys are on its roster",
        "send the server's operator the request ('fedretrain client request --name NAME') and join with their kit",
    ),
    "revoked": (
        "the server's operator has shut this site out; no message is passed on",
        f"{ASK} why; coming back takes new keys: a new --home, 'fedretrain client request', and being admitted again",
    ),
    "clock": ("a node's messages count only while they are fresh", "set this machine's clock, best by NTP"),
    "signature": (
        "the server knows the public key, but the private key here is another one",
        "restore keys/node.pem from a backup, or request and join anew",
    ),
}


def _refused(place: Place, status: int, answer: dict[str, Any]) -> Finding:
    code, said = str(answer.get("code", "")), str(answer.get("message", ""))[:600]
    if code in _ADMISSION:
        why, do = _ADMISSION[code]
        return problem("clock" if code == "clock" else "admission", code, f"the server says: {said}", why, do)
    if code == "superlink-down" or status in {502, 503, 504}:
        return _superlink(ready=False)
    return problem(
        "admission",
        code[:40] or "not-a-gateway",
        f"{place} answered with status {status}: {said or 'without a reason'}",
        "the server did not say who this site is to it",
        "try again in a minute; if it stays so, tell the server's operator",
    )


def _superlink(ready: bool) -> Finding:
    if ready:
        return Finding("SuperLink", "ok", "the server's SuperLink answers")
    return problem(
        "SuperLink",
        "superlink-down",
        "the gateway answers, but the server's SuperLink behind it does not",
        "no work reaches any site until it is back; this site is not the cause",
        "tell the server's operator ('fedretrain server up' starts it again by itself); nothing is to be done here",
    )


def _bundle(kit: Kit, policy: Policy, running: object) -> Iterator[Finding]:
    if not isinstance(running, str):
        yield Finding("bundle", "note", "the server does not say which app bundle it runs", do=f"{ASK} if it stays so")
    elif bundle_accepted(policy, kit.bundle, running):
        yield Finding("bundle", "ok", f"the server runs the bundle {running[:12]}, which this site accepts")
    else:
        yield problem(
            "bundle",
            "bundle",
            f"the server runs the app bundle {running[:64]}, the kit pins {kit.bundle}",
            "tasks of a bundle that is not pinned are refused, although none of its code runs here",
            f"{ASK} what has changed; then join with a new kit, or add it to 'bundles' in site.toml's [policy]",
        )


def _get(place: Place, path: str, headers: dict[str, str]) -> tuple[int, Any]:
    try:
        return place.get(path, headers, place.context())
    except (OSError, http.client.HTTPException) as error:
        raise Stop(
            problem(
                "gateway",
                "not-a-gateway",
                f"{place} speaks TLS with the federation's certificate but did not answer GET {path}: {reason(error)}",
                "this is not the gateway, or the gateway is in trouble",
                f"{ASK} for the gateway's port and whether it is running",
            )
        ) from None
