r"""Who sent a message, and for whom and when it was meant: an Ed25519 signature (RFC 8032) that travels inside it.

Invariants:

- The signature covers what the message is about (federation, run, round, site, type, time) and, through hashes, its
  body and its metrics; the body names the digest of every array that comes with it. Nothing else is believed.
- A reply carries the nonce of the request it answers, so that it counts once and nowhere else.
- What ``unsealed`` returns has no seal left in it: nobody can forget to check one.

A sealed message has one record more::

    "seal"     ConfigRecord {"json": canonical JSON of the claims, "signature": 64 bytes}

The signature is over ``b"fedretrain.seal/1\n"`` and the bytes of ``json``.
"""

import json
import math
import secrets
import time
from typing import Annotated, Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from . import __version__
from .digest import canonical_json, json_digest, sha256
from .errors import FedretrainError
from .messages import record

CONTEXT = b"fedretrain.seal/1\n"
LIMIT = 4096  # characters of the claims
SKEW_S = 300  # by how much two clocks may differ
RECORD = "seal"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class About(BaseModel):
    """What a message is about; ``round`` is 0 outside rounds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    federation: str = Field(max_length=64)
    message_type: str = Field(max_length=64)
    run: str = Field(max_length=64)
    round: int = Field(ge=0)
    site: str = Field(max_length=64)


class Claims(About):
    """What a signature says. ``issued`` and ``expires`` are Unix seconds; the hashes are filled in by ``sealed``."""

    kind: Literal["request", "reply"]
    body: Digest | Literal[""] = ""
    metrics: Digest | Literal[""] = ""
    nonce: str = Field(pattern=r"^[0-9a-f]{32}$")
    issued: int
    expires: int
    software: str = Field(__version__, max_length=64)

    def answered(self) -> "Claims":
        """Claims of the reply to this request, valid for as long from now."""
        issued = int(time.time())
        expires = issued + self.expires - self.issued
        return Claims(**self._about(), kind="reply", nonce=self.nonce, issued=issued, expires=expires)

    def timely(self, at: float | None = None) -> bool:
        """Whether the message is neither expired nor from the future, give or take ``SKEW_S``."""
        now = time.time() if at is None else at
        return self.issued - SKEW_S <= now <= self.expires + SKEW_S

    def is_about(self, about: About) -> bool:
        """Whether it is about exactly this."""
        return self._about() == about.model_dump()

    def _about(self) -> dict[str, Any]:
        return self.model_dump(include=set(About.model_fields))


class BrokenSeal(FedretrainError):
    """A message without a seal that holds; the text says what is wrong and repeats nothing of the message."""


def request_claims(about: About, lifetime_s: float) -> Claims:
    """Claims of a new request, valid from now for ``lifetime_s`` seconds."""
    issued, nonce = int(time.time()), secrets.token_hex(16)
    expires = issued + max(1, math.ceil(lifetime_s))
    return Claims(**about.model_dump(), kind="request", nonce=nonce, issued=issued, expires=expires)


def sealed(content: RecordDict, claims: Claims, key: Ed25519PrivateKey) -> RecordDict:
    """The message with its seal; the records of ``content`` are shared with it, not copied."""
    complete = claims.model_copy(update={"body": _body_hash(content), "metrics": _metrics_hash(content)})
    text = canonical_json(complete.model_dump(mode="json"))
    signature = key.sign(CONTEXT + text)
    whole = RecordDict(dict(content.items()))
    whole[RECORD] = ConfigRecord({"json": text.decode(), "signature": signature})
    return whole


def unsealed(content: RecordDict, key: Ed25519PublicKey) -> tuple[Claims, RecordDict]:
    """The claims of a message and its content without the seal.

    The caller compares the claims with what it expects; what is checked here is that the owner of ``key`` made them
    about this body and these metrics.

    Raises:
        BrokenSeal: No seal, an unreadable one, one by another key, or one of another message.
    """
    text, signature = _seal(content)
    try:
        key.verify(signature, CONTEXT + text.encode())
    except InvalidSignature:
        raise BrokenSeal("the signature is not by the key that was expected") from None
    try:
        claims = Claims.model_validate_json(text)
    except ValidationError:
        raise BrokenSeal("the signed claims are not of this version") from None
    if canonical_json(json.loads(text)) != text.encode():
        raise BrokenSeal("the signed claims are not canonical")
    rest = RecordDict({name: value for name, value in content.items() if name != RECORD})
    if claims.body != _body_hash(rest) or claims.metrics != _metrics_hash(rest):
        raise BrokenSeal("the signature belongs to another message")
    return claims, rest


def _seal(content: RecordDict) -> tuple[str, bytes]:
    found = record(content, RECORD, ConfigRecord)
    if found is None:
        raise BrokenSeal("the message is not signed")
    text, signature = found.get("json"), found.get("signature")
    if set(found) != {"json", "signature"} or not isinstance(text, str) or not isinstance(signature, bytes):
        raise BrokenSeal("the seal is malformed")
    if len(text) > LIMIT or len(signature) != 64:
        raise BrokenSeal("the seal is malformed")
    return text, signature


def _body_hash(content: RecordDict) -> str:
    found = record(content, "body", ConfigRecord)
    text = found.get("json") if found is not None else None
    if not isinstance(text, str):
        raise BrokenSeal("the message has no body")
    return sha256(text.encode(errors="surrogatepass"))


def _metrics_hash(content: RecordDict) -> str:
    """Of names and numbers; repr keeps NaN and 1 apart from 1.0, which canonical JSON would not take."""
    found = record(content, "metrics", MetricRecord)
    return "" if found is None else json_digest({name: repr(found[name]) for name in found})
