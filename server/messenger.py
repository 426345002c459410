"""How messages go out and come back: as they are in a simulation, sealed in a federation (``fedretrain.seal``).

Invariants of ``SealedMessenger``:

- Which site a node is follows from its public key and the roster, never from what a message says.
- Only active members are written to, and only the reply of a member that is still active is opened.
- A reply counts when the member the request went to signed it, for this federation, run, round and request, in time.
  Whatever is wrong with it is said of that member, whoever else it names.
- Requests to many sites share their arrays, in the parts of a parcel (``fedretrain.parcel``); a seal adds some 600
  bytes to each.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from flwr.app import RecordDict
from flwr.serverapp import Grid

from fedretrain.arrays import HEADER_LIMIT, shown
from fedretrain.contract import VariableSpec
from fedretrain.errors import ConfigurationError, RejectedUpdate
from fedretrain.membership import public_key
from fedretrain.parcel import BrokenParcel, Parts, array_parts, opened, parcelled
from fedretrain.seal import RECORD, About, BrokenSeal, Claims, request_claims, sealed, unsealed

from .flowerside import key_bytes

if TYPE_CHECKING:
    from .exchange import Question
    from .federation import Federation, Member


@runtime_checkable
class KnowsNodes(Protocol):
    """A grid that can say whose key each connected node has."""

    def node_keys(self) -> Mapping[int, bytes]:
        """Public keys by node id, in the form of ``server.flowerside.key_bytes``."""


@runtime_checkable
class LimitsReplies(Protocol):
    """A grid that takes replies up to a size."""

    def limit(self, size: int) -> None:
        """Take no reply whose arrays are more than ``size`` bytes."""


@dataclass(frozen=True)
class Letter:
    """One node's message, and the claims it was sealed with."""

    content: RecordDict
    claims: Claims | None = None


class Messenger:
    """Sends messages as they are: a simulation's sites are processes of this machine."""

    def online(self) -> dict[int, str] | None:
        """Names of the members that are connected by node; None where names are what sites say of themselves."""
        return None

    def name(self, node: int) -> str | None:
        """The member whose node that is, None where it is not known."""
        return self.names([node]).get(node)

    def names(self, nodes: Iterable[int]) -> dict[int, str]:  # noqa: ARG002 - of the subclass
        """Members by node, as far as they are known."""
        return {}

    def seal(self, nodes: Sequence[int], question: "Question") -> dict[int, Letter]:
        """The message for each node; nodes that must not be written to are left out."""
        return {node: Letter(question.content) for node in nodes}

    def open(self, letter: Letter, reply: RecordDict) -> RecordDict:  # noqa: ARG002 - of the subclass
        """The content of the reply to a letter; raises RejectedUpdate where it is not what it should be."""
        return reply


PLAIN = Messenger()


class SealedMessenger(Messenger):
    """Seals requests with the coordinator's key and opens replies with the members'.

    Args:
        federation: Whose roster and key.
        grid: Knows the nodes' keys.
        run: The run's id.
    """

    def __init__(self, federation: "Federation", grid: KnowsNodes, run: str) -> None:
        self._federation = federation
        self._grid = grid
        self._run = run
        self._key = federation.coordinator()
        self._names: dict[int, str] = {}

    def online(self) -> dict[int, str]:
        """Names of the active members that are connected, by node; asks the grid."""
        names = {key_bytes(member.node_key): name for name, member in self._federation.active().items()}
        keys = self._grid.node_keys()
        self._names = {node: names[key] for node, key in sorted(keys.items()) if key in names}
        return dict(self._names)

    def names(self, nodes: Iterable[int]) -> dict[int, str]:
        """As of the last ``online``."""
        return {node: self._names[node] for node in nodes if node in self._names}

    def seal(self, nodes: Sequence[int], question: "Question") -> dict[int, Letter]:
        """See ``Messenger``."""
        active = self._federation.active()
        named = {node: name for node, name in self.names(nodes).items() if name in active}
        parts = array_parts(question.content)
        return {node: self._sealed(name, question, parts) for node, name in named.items()}

    def open(self, letter: Letter, reply: RecordDict) -> RecordDict:
        """See ``Messenger``; the code is ``malformed``, ``signature``, ``site`` or ``stale``."""
        if letter.claims is None:
            raise RejectedUpdate("signature", "expected the answer to a sealed request")
        asked = letter.claims
        try:
            reply = opened(reply)
            claims, content = unsealed(reply, public_key(self._member(asked.site).signing_key))
        except BrokenParcel as broken:
            raise RejectedUpdate("malformed", f"the reply cannot be unpacked: {broken}") from None
        except BrokenSeal as broken:
            hint = "" if RECORD in reply else "; is the site's trainer, which signs, down? Its own log says why"
            raise RejectedUpdate("signature", f"expected the signature of {asked.site}: {broken}{hint}") from None
        _answers(asked, claims)
        return content

    def _sealed(self, name: str, question: "Question", parts: Parts) -> Letter:
        about = About(
            federation=self._federation.settings.name,
            message_type=question.message_type,
            run=self._run,
            round=question.round,
            site=name,
        )
        claims = request_claims(about, question.deadline_s)
        return Letter(parcelled(sealed(question.content, claims, self._key), parts), claims)

    def _member(self, name: str) -> "Member":
        member = self._federation.active().get(name)
        if member is None:
            raise RejectedUpdate("site", f"{name} was revoked after it had been asked")
        return member


def messenger_of(federation: "Federation | None", grid: Grid, run: str) -> Messenger:
    """The messenger for a run; raises ConfigurationError where the coordinator's key cannot be used."""
    if federation is None:
        return PLAIN
    if not isinstance(grid, KnowsNodes):
        raise ConfigurationError(
            "expected sites behind a SuperLink, whose keys are known; simulate without a federation"
        )
    return SealedMessenger(federation, grid, run)


def limit_replies(grid: Grid, *allowed: Iterable[VariableSpec]) -> None:
    """Have a grid that can do so refuse replies that are larger than each of these lists of arrays is together."""
    if isinstance(grid, LimitsReplies):
        grid.limit(max(sum(spec.nbytes + HEADER_LIMIT for spec in specs) for specs in allowed))


def _answers(asked: Claims, claims: Claims) -> None:
    """Raises RejectedUpdate where signed claims are not of the reply to the request with the claims ``asked``."""
    if (claims.kind, claims.federation, claims.message_type) != ("reply", asked.federation, asked.message_type):
        raise RejectedUpdate("signature", f"signed as something else than a reply to {asked.message_type}")
    if claims.site != asked.site:
        raise RejectedUpdate("site", f"expected the name {asked.site}, signed as {shown(claims.site)}")
    if (claims.run, claims.round) != (asked.run, asked.round):
        got = f"run {shown(claims.run)}, round {claims.round}"
        raise RejectedUpdate("stale", f"expected run {asked.run}, round {asked.round}, signed for {got}")
    if claims.nonce != asked.nonce:
        raise RejectedUpdate("stale", "signed in answer to another request")
    if not claims.timely():
        raise RejectedUpdate("stale", "signed for another time; compare the clocks of site and server")
