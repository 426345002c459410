"""What the gateway says when it does not pass a request on, in the words of the person who has to act.

Invariants:

- Every refusal has a code of ``KINDS`` and one sentence that names what was expected, what was found and what to do.
- On a Fleet path the body is the JSON that Flower's SuperNode prints, ``{"code": number, "detail": sentence}``, with
  our code beside it as ``reason``; everywhere else it is ``{"code": code, "message": sentence}``.
- On a Fleet path no refusal is a 401 or a 403: to a SuperNode 401 means "stop", 403 means "this run is not running",
  and it prints neither. It prints the sentence of a 412, SuperLink's own answer to a node that it does not know.
"""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from fedretrain.errors import FedretrainError

# Numbers of Flower's error catalogue; they are part of what it sends over the wire.
_PAYLOAD = 1003  # INVALID_PROTOBUF_PAYLOAD
_UNAVAILABLE = 1005  # LINKSTATE_NOT_INITIALIZED
_ACTIVATION = 2004  # FLEET_NODE_ACTIVATION_FAILED


@dataclass(frozen=True)
class Kind:
    """How one kind of refusal looks on the wire: our status, the status on Fleet paths, Flower's number."""

    status: int
    fleet_status: int
    number: int


KINDS: Final = {
    "unsigned": Kind(HTTPStatus.UNAUTHORIZED, HTTPStatus.PRECONDITION_FAILED, _ACTIVATION),
    "signature": Kind(HTTPStatus.UNAUTHORIZED, HTTPStatus.PRECONDITION_FAILED, _ACTIVATION),
    "clock": Kind(HTTPStatus.UNAUTHORIZED, HTTPStatus.PRECONDITION_FAILED, _ACTIVATION),
    "not-admitted": Kind(HTTPStatus.FORBIDDEN, HTTPStatus.PRECONDITION_FAILED, _ACTIVATION),
    "revoked": Kind(HTTPStatus.FORBIDDEN, HTTPStatus.PRECONDITION_FAILED, _ACTIVATION),
    "connected": Kind(HTTPStatus.CONFLICT, HTTPStatus.PRECONDITION_FAILED, _ACTIVATION),
    "not-found": Kind(HTTPStatus.NOT_FOUND, HTTPStatus.NOT_FOUND, _PAYLOAD),
    "too-large": Kind(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, _PAYLOAD),
    "too-often": Kind(HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.TOO_MANY_REQUESTS, _PAYLOAD),
    "stalled": Kind(HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_TIMEOUT, _PAYLOAD),
    "superlink-down": Kind(HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.SERVICE_UNAVAILABLE, _UNAVAILABLE),
}


class Refused(FedretrainError):
    """A request that is not passed on.

    Args:
        code: One of ``KINDS``.
        text: The sentence for whoever sent it.
        site: The member it came from, where that is known.
    """

    def __init__(self, code: str, text: str, site: str | None = None) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text
        self.site = site

    def of(self, site: str) -> "Refused":
        """The same, of a request that came from a member."""
        return Refused(self.code, self.text, site)

    def answer(self, fleet: bool) -> tuple[int, dict[str, Any]]:
        """HTTP status and JSON body, on a Fleet path or on one of ours."""
        kind = KINDS[self.code]
        if fleet:
            return kind.fleet_status, {"code": kind.number, "detail": self.text, "reason": self.code}
        return kind.status, {"code": self.code, "message": self.text}
