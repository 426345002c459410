"""Refusals that the trainer signs on behalf of the executor, which has no key.

Invariant: only what the coordinator asked of this site is refused in the site's name, and nothing of its data is
touched for it.
"""

import logging
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import RecordDict

from fedretrain.errors import MachineError
from fedretrain.membership import Kit, public_key
from fedretrain.messages import Declined, pack
from fedretrain.seal import BrokenSeal, sealed, unsealed

from . import record
from .wire import Decline

log = logging.getLogger(__name__)


class Refuser:
    """Signs refusals.

    Args:
        kit: Whose requests are answered.
        key: The site's signing key.
        written_to: The site's record.
    """

    def __init__(self, kit: Kit, key: Ed25519PrivateKey, written_to: Path) -> None:
        self._kit, self._key, self._record = kit, key, written_to

    def refuse(self, content: RecordDict, decline: Decline) -> RecordDict:
        """The refusal of a request, signed where the coordinator asked for it; never raises."""
        try:
            claims, _ = unsealed(content, public_key(self._kit.coordinator))
        except BrokenSeal as broken:
            log.warning("a request to be refused is not the coordinator's: %s", broken)
            return pack(Declined(run="", site=self._kit.site, code="request-unsigned"))
        body = pack(Declined(run=claims.run, site=self._kit.site, **decline.model_dump()))
        if (claims.federation, claims.site, claims.kind) != (self._kit.federation, self._kit.site, "request"):
            return body
        about = {"type": claims.message_type, "run": claims.run, "round": claims.round}
        try:
            record.append(self._record, "refused", **about, **decline.model_dump())
        except MachineError as error:
            log.warning("%s", error)
        return sealed(body, claims.answered(), self._key)
