"""What the gateway says when it does not pass a request on, in the words of the person who has to act.

Invariants:

- Every refusal has a code of ``KINDS`` and one sentence that names what was expected, what was found and what to do.
- On a Fleet path the body is the JSON that Flower's SuperNode prints, ``{"code": number, "detail": sentence}``, with
  our code beside it as ``reason``; everywhere else it is ``{"code": code, "message": sentence}``.
- A SuperNode prints the sentence of what refuses its first call, ``activate-node``, if the status is neither 401 nor
  403; so who may not take part gets SuperLink's own 412 there. On any later call it gets 401, by which a SuperNode ends
  itself in good order, to be told why when it starts again. 403 means "this run is over" to it: we never send that.
  After a 503 it tries again, as often as it takes.
"""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from fedretrain.errors import FedretrainError

ACTIVATE: Final = "activate-node"
# Numbers of Flower's error catalogue; they are part of what it sends over the wire.
_PAYLOAD = 1003  # INVALID_PROTOBUF_PAYLOAD
_UNAVAILABLE = 1005  # LINKSTATE_NOT_INITIALIZED
_ACTIVATION = 2004  # FLEET_NODE_ACTIVATION_FAILED


@dataclass(frozen=True)
class Kind:
    """How one kind of refusal looks: the status on our own pages, and Flower's number."""

    status: int
    number: int = _PAYLOAD

    def on_fleet(self, call: str) -> int:
        """The status on a Fleet call."""
        if self.number != _ACTIVATION:
            return self.status
        return HTTPStatus.PRECONDITION_FAILED if call == ACTIVATE else HTTPStatus.UNAUTHORIZED


KINDS: Final = {
    "unsigned": Kind(HTTPStatus.UNAUTHORIZED, _ACTIVATION),
    "signature": Kind(HTTPStatus.UNAUTHORIZED, _ACTIVATION),
    "clock": Kind(HTTPStatus.UNAUTHORIZED, _ACTIVATION),
    "not-admitted": Kind(HTTPStatus.FORBIDDEN, _ACTIVATION),
    "revoked": Kind(HTTPStatus.FORBIDDEN, _ACTIVATION),
    "connected": Kind(HTTPStatus.CONFLICT, _ACTIVATION),
    "not-ready": Kind(HTTPStatus.SERVICE_UNAVAILABLE, _UNAVAILABLE),
    "not-found": Kind(HTTPStatus.NOT_FOUND),
    "too-large": Kind(HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    "too-often": Kind(HTTPStatus.TOO_MANY_REQUESTS),
    "stalled": Kind(HTTPStatus.REQUEST_TIMEOUT),
    "superlink-down": Kind(HTTPStatus.SERVICE_UNAVAILABLE, _UNAVAILABLE),
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

    def answer(self, call: str) -> tuple[int, dict[str, Any]]:
        """HTTP status and JSON body, on this Fleet call, or on one of our own pages where it is empty."""
        kind = KINDS[self.code]
        if call:
            return kind.on_fleet(call), {"code": kind.number, "detail": self.text, "reason": self.code}
        return kind.status, {"code": self.code, "message": self.text}
