"""Who sends a request: a member of the roster whose key signed it a moment ago, or nobody.

A SuperNode sends three headers with each request: ``flwr-public-key`` (base64 of the PEM of its P-384 public key),
``flwr-timestamp`` (ISO 8601 with zone) and ``flwr-signature`` (base64 of its ECDSA/SHA-256 signature of the timestamp's
text). SuperLink checks them too, but only after it has read and parsed the body.

Invariants: nothing of a body is read before its sender is known; a member that is revoked is refused from the moment
the roster's file changes; the roster that could be read last stays in force while its file is damaged.
"""

import hashlib
import logging
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from fedretrain.errors import FedretrainError
from server.federation import Member

from .refusal import Refused

KEY, TIMESTAMP, SIGNATURE = "flwr-public-key", "flwr-timestamp", "flwr-signature"
AHEAD_S = 4.0  # SuperLink takes less than 5 seconds
BEHIND_S = 300.0  # SuperLink takes less than 305
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """A member and its key."""

    name: str
    revoked: str | None
    key: EllipticCurvePublicKey


class Roster:
    """Members by node key, read again whenever the file changes.

    Args:
        federation: The federation's name, for messages.
        file: The roster's file.
        entries: Reads it: all entries, oldest first. It may raise FedretrainError.
    """

    def __init__(self, federation: str, file: Path, entries: Callable[[], Iterable[Member]]) -> None:
        self.federation = federation
        self._file = file
        self._entries = entries
        self._state: tuple[int, ...] | None = None
        self._callers: dict[bytes, Caller] = {}

    def find(self, pem: bytes) -> Caller | None:
        """The member with this node key, also when it is revoked."""
        try:
            stat = self._file.stat()
            state: tuple[int, ...] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        except OSError:
            state = ()
        if state != self._state:
            self._state = state
            self._read()
        return self._callers.get(pem)

    def _read(self) -> None:
        try:
            entries = tuple(self._entries())
        except FedretrainError as error:
            _log.error("%s; the roster as it was before stays in force", error)
            return
        callers: dict[bytes, Caller] = {}
        for member in entries:
            key = _load(member)
            if key is not None:
                pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
                callers[pem] = Caller(member.name, member.revoked, key)
        self._callers = callers


def claimed(headers: Mapping[str, str], roster: Roster) -> Caller:
    """The member whose key these headers name, which proves nothing yet; raises Refused."""
    pem = _decode(headers, KEY)
    caller = roster.find(pem)
    if caller is None:
        raise Refused(
            "not-admitted",
            f"the node key {fingerprint(pem)} is not on the roster of federation {roster.federation}: send the site's "
            "request file to the server's operator, who admits it with 'fedretrain server admit'",
        )
    return caller


def prove(headers: Mapping[str, str], caller: Caller, federation: str, now: float) -> None:
    """Check that the caller signed these headers a moment ago and may take part; raises Refused.

    Args:
        headers: The request's.
        caller: Whom they name.
        federation: Its name, for messages.
        now: Seconds since 1970.
    """
    try:
        caller.key.verify(_decode(headers, SIGNATURE), headers[TIMESTAMP].encode("ascii"), ECDSA(hashes.SHA256()))
    except (InvalidSignature, KeyError, UnicodeEncodeError):
        raise Refused(
            "signature",
            f"the request names the node key of site {caller.name} but is not signed with it: use the private key "
            "that belongs to the kit",
        ) from None
    if caller.revoked is not None:
        raise Refused(
            "revoked",
            f"site {caller.name} was revoked at {caller.revoked} and takes no part in federation {federation} "
            "any more: ask the server's operator",
            caller.name,
        )
    _check_clock(headers[TIMESTAMP], caller.name, now)


def fingerprint(pem: bytes) -> str:
    """A short name of a key, the same at the site and at the server."""
    return "SHA256:" + b64encode(hashlib.sha256(pem).digest()).decode().rstrip("=")


def _check_clock(timestamp: str, site: str, now: float) -> None:
    try:
        signed = datetime.fromisoformat(timestamp)
        ahead = (signed - datetime.fromtimestamp(now, UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        raise Refused(
            "unsigned", f"header {TIMESTAMP}: expected a time with its zone, got {timestamp[:40]!r}"
        ) from None
    if -BEHIND_S <= ahead <= AHEAD_S:
        return
    raise Refused(
        "clock",
        f"the clock of site {site} is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the server's: it says "
        f"{_words(signed)}, the server {_words(datetime.fromtimestamp(now, UTC))}; set the site's clock, best by NTP, "
        f"and start again (at most {AHEAD_S:.0f} s ahead and {BEHIND_S:.0f} s behind are taken)",
        site,
    )


def _words(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _decode(headers: Mapping[str, str], name: str) -> bytes:
    try:
        return b64decode(headers[name], validate=True)
    except (KeyError, ValueError):
        raise Refused(
            "unsigned", f"header {name}: expected a SuperNode's authentication in base64, found none"
        ) from None


def _load(member: Member) -> EllipticCurvePublicKey | None:
    try:
        key = load_ssh_public_key(member.node_key.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if isinstance(key, EllipticCurvePublicKey):
        return key
    _log.error("roster: the node key of %s cannot be read; the site is shut out until admitted anew", member.name)
    return None
