"""The two files by which a site joins a federation: its request, and the kit it gets back.

Invariants: a request holds public keys only and is signed with the private half of one; a kit holds no secret unless
its operator asked for a complete one; both are JSON of a named format, refused in one line when damaged.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from . import atomic
from .digest import canonical_json, json_digest
from .errors import ConfigurationError
from .job import Name
from .tomlfile import said

_CONTEXT = b"fedretrain.request/1\n"
_LIMIT = 2**20  # bytes of a file; no request or kit comes near

_TAKEN_FOR = {
    "fedretrain.request/1": "a request, which is for the server: 'fedretrain server admit'",
    "fedretrain.kit/1": "a kit, which is for its site: 'fedretrain client join'",
}

Ed25519Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="a raw Ed25519 public key in hexadecimal")]
FileT = TypeVar("FileT", bound="_File")


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def write(self, path: Path, *, mode: int = 0o644) -> None:
        """Write the file, all or nothing; raises MachineError."""
        atomic.write_json(path, self.model_dump(mode="json"), mode=mode)


class JoinRequest(_File):
    """What a site hands to the server's operator.

    ``node_key`` is the P-384 public key of its SuperNode in OpenSSH's text form; ``signing_key`` verifies its replies;
    ``proof`` is the signing key's signature over all the rest.
    """

    format: Literal["fedretrain.request/1"] = "fedretrain.request/1"
    name: Name
    node_key: str = Field(max_length=1024)
    signing_key: Ed25519Hex
    software: str = Field(pattern=r"^[ -~]{0,64}$", description="printed on the server operator's terminal")
    proof: str = Field("", pattern=r"^([0-9a-f]{128})?$")

    def proven(self, key: Ed25519PrivateKey) -> "JoinRequest":
        """The request with its proof."""
        return self.model_copy(update={"proof": key.sign(self._signed()).hex()})

    @property
    def fingerprint(self) -> str:
        """What two people compare by voice; see ``fingerprint``."""
        return fingerprint(self.name, self.node_key, self.signing_key)

    def verify(self, where: str) -> None:
        """Check the keys and the proof; raises ConfigurationError naming ``where``."""
        try:
            load_ssh_public_key(self.node_key.encode())
            public_key(self.signing_key).verify(bytes.fromhex(self.proof), self._signed())
        except (InvalidSignature, ValueError, UnsupportedAlgorithm):
            raise ConfigurationError(
                f"{where}: damaged or changed on the way: its proof does not hold; ask the site to send it again"
            ) from None

    def _signed(self) -> bytes:
        return _CONTEXT + canonical_json(self.model_dump(mode="json", exclude={"proof"}))


class KitSecrets(_File):
    """Private keys in a complete kit, PEM; a site that made its own keys has none here."""

    node_key: str
    signing_key: str


class Kit(_File):
    """What a site needs to take part, and to know whom to believe."""

    format: Literal["fedretrain.kit/1"] = "fedretrain.kit/1"
    federation: Name
    site: Name
    address: str = Field(pattern=r"^[^\s/]+:\d{1,5}$", description="host:port of the gateway")
    ca: str = Field(description="PEM of the certificate authority of the gateway")
    coordinator: Ed25519Hex = Field(description="verifies requests")
    root: str = Field(description="TUF root metadata, JSON text; verifies releases")
    node_key: str = Field(description="the roster's entry: the site's public keys")
    signing_key: Ed25519Hex
    bundle: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the Flower app bundle")
    secrets: KitSecrets | None = None


def read(path: Path, kind: type[FileT]) -> FileT:
    """Read a request or a kit.

    Raises:
        ConfigurationError: It is missing, unreadable, or not of this format.
    """
    what = "kit" if kind is Kit else "request"
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT)
    except OSError as error:
        raise ConfigurationError(f"{path}: expected a site's {what}: {error.strerror or error}") from None
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        given = _format(data)
        if given in _TAKEN_FOR and given != kind.model_fields["format"].default:
            raise ConfigurationError(f"{path}: expected a site's {what}, got {_TAKEN_FOR[given]}") from None
        first: Any = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "file"
        raise ConfigurationError(
            f"{path}: not a {what} of this version ({place}: {said(first)}); get it again from its sender"
        ) from None


def _format(data: bytes) -> str:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    return str(value.get("format")) if isinstance(value, dict) else ""


def fingerprint(name: str, node_key: str, signing_key: str) -> str:
    """A short name of a site with its keys, the same at the site and at the server: 128 bits, to be read out loud."""
    digest = json_digest({"name": name, "node_key": " ".join(node_key.split()[:2]), "signing_key": signing_key})
    return " ".join(digest[i : i + 4] for i in range(0, 32, 4))


def public_key(text: str) -> Ed25519PublicKey:
    """The key that ``Ed25519Hex`` stands for."""
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))


def public_text(key: Ed25519PrivateKey | Ed25519PublicKey) -> str:
    """A key's public half as ``Ed25519Hex``."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return public.public_bytes_raw().hex()
