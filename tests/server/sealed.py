"""A federation on disk whose sites are ``NumpySite``s with keys of their own, behind a scripted grid.

``SealedSite`` opens requests as a site does, and seals what a ``NumpySite`` answers; its ``forge`` function changes the
sealed reply, as ``tamper`` changes what is in it. Parcels are opened before and made after all that.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import RecordDict

from fedretrain.membership import public_text
from fedretrain.parcel import opened, parcelled
from fedretrain.seal import Claims, sealed, unsealed
from server.federation import Federation, Member, Settings
from server.flowerside import key_bytes
from server.keyfile import write_key
from server.messenger import SealedMessenger

from .grid import Answer, NumpySite, ScriptedGrid
from .parts import Loop

ADMITTED = "2026-01-01T00:00:00Z"
Forge = Callable[[Claims, RecordDict], Answer]


class SealedSite(NumpySite):
    """A member: what it needs to know of the coordinator it gets from ``Hospitals``."""

    coordinator: Any = None

    def __init__(self, name: str, *args: Any, forge: Forge | None = None, **kwargs: Any) -> None:
        super().__init__(name, *args, **kwargs)
        self.forge = forge or (lambda _claims, reply: reply)
        self.signing = Ed25519PrivateKey.generate()
        node = ec.generate_private_key(ec.SECP384R1()).public_key()
        self.node_key = node.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        self.claims: list[Claims] = []

    def answer(self, message_type: str, content: RecordDict) -> Answer:
        claims, inner = unsealed(opened(content), self.coordinator.public_key())
        assert (claims.kind, claims.site, claims.message_type) == ("request", self.name, message_type)
        assert claims.timely()
        self.claims.append(claims)
        reply = self.reply(message_type, inner)
        if not isinstance(reply, RecordDict):
            return reply
        forged = self.forge(claims, sealed(reply, claims.answered(), self.signing))
        return parcelled(forged) if isinstance(forged, RecordDict) else forged

    def reply(self, message_type: str, content: RecordDict) -> Answer:
        """The answer before it is sealed."""
        return super().answer(message_type, content)


class Hospitals(ScriptedGrid):
    """The sites of one federation; ``offline`` are the names of those that are not connected."""

    def __init__(self, folder: Path, sites: Sequence[SealedSite]) -> None:
        super().__init__(sites)
        self.offline: set[str] = set()
        self.federation = Federation(folder, Settings(name="clinics", address="server.example:8443"))
        folder.mkdir(parents=True, exist_ok=True)
        self.federation.config.write_text('name = "clinics"\naddress = "server.example:8443"\n')
        for made in (self.federation.keys, self.federation.state):
            made.mkdir(parents=True, exist_ok=True)
        self.coordinator = Ed25519PrivateKey.generate()
        write_key(self.federation.coordinator_key, self.coordinator)
        self.enroll(sites)

    def enroll(self, sites: Iterable[SealedSite], revoked: Iterable[str] = ()) -> None:
        """Write the roster."""
        gone = set(revoked)
        members = [
            Member(s.name, s.node_key, public_text(s.signing), "0", ADMITTED, ADMITTED if s.name in gone else None)
            for s in sites
        ]
        self.federation.write_roster(tuple(members))
        for site in sites:
            site.coordinator = self.coordinator

    def revoke(self, *names: str) -> None:
        """Shut sites out."""
        self.enroll(list(self.sites.values()), names)

    def node_keys(self) -> dict[int, bytes]:
        return {n: key_bytes(s.node_key) for n, s in self.sites.items() if s.name not in self.offline}

    def get_node_ids(self) -> list[int]:
        raise NotImplementedError("a federation's nodes are known by their keys")

    def loop(self, out: Path, run: str = "r1", **job: Any) -> Loop:
        """A run of the round loop over these sites."""
        loop = Loop(out, [], self, messenger=SealedMessenger(self.federation, self, run), run=run, **job)
        members = tuple(sorted(self.federation.active()))
        object.__setattr__(loop.plan, "expected", members)
        return loop


def clinics(n: int = 3, **first: Any) -> list[SealedSite]:
    """Sites a, b, c, ..., the first with these settings."""
    return [SealedSite(name, 10 * (i + 1), **(first if i == 0 else {})) for i, name in enumerate("abcdef"[:n])]
