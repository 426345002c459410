"""A site's two keys, and how it joins: the request it sends and the kit it takes in.

Invariants: private keys are made here, readable by their owner alone, and never replaced; a kit that does not name
these keys is refused; a site takes part in one federation under one name; ``kit.json`` is written last and holds no
secret, so that where it lies everything else is there.

The node key is P-384 in OpenSSH's form, which is what Flower's SuperNode reads; the signing key is Ed25519 in PKCS#8.
"""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509 import load_pem_x509_certificates
from pydantic import TypeAdapter, ValidationError

from fedretrain import __version__, atomic
from fedretrain.errors import ConfigurationError
from fedretrain.job import Name
from fedretrain.membership import JoinRequest, Kit, KitSecrets, public_text, read
from fedretrain.tomlfile import said

from .home import Home


def load_node_key(home: Home) -> EllipticCurvePrivateKey:
    """The SuperNode's private key; raises ConfigurationError where it is missing, open to others, or no such key."""
    return _node_key(_private(home.node_key), home.node_key)


def load_signing_key(home: Home) -> Ed25519PrivateKey:
    """The trainer's private key; raises ConfigurationError as ``load_node_key``."""
    return _signing_key(_private(home.signing_key), home.signing_key)


def node_text(key: EllipticCurvePrivateKey) -> str:
    """A node key's public half in OpenSSH's text form, as requests, kits and the roster have it."""
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def names(kit: Kit, node: EllipticCurvePrivateKey, signing: Ed25519PrivateKey) -> bool:
    """Whether the kit was made for these keys."""
    try:
        same = load_ssh_public_key(kit.node_key.encode()) == node.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return False
    return same and kit.signing_key == public_text(signing)


def request(home: Home, name: str) -> JoinRequest:
    """The site's request to join; makes the keys that are missing, so that asking again gives the same request.

    Raises:
        ConfigurationError: The name is not possible, the site has joined under another one, or a key is not usable.
        MachineError: The disk does not take the keys.
    """
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise ConfigurationError(f"--name: {said(error.errors()[0])}; for example hospital-a") from None
    if home.kit.is_file() and (kit := home.load_kit()).site != name:
        raise ConfigurationError(
            f"{home.root}: takes part in {kit.federation} as {kit.site}; for another site use another --home"
        )
    home.make()
    if not home.node_key.exists():
        _write_node_key(home, generate_private_key(SECP384R1()))
    if not home.signing_key.exists():
        _write_signing_key(home, Ed25519PrivateKey.generate())
    node, signing = load_node_key(home), load_signing_key(home)
    unsigned = JoinRequest(
        name=name, node_key=node_text(node), signing_key=public_text(signing), software=__version__, proof=""
    )
    return unsigned.proven(signing)


def join(home: Home, path: Path) -> Kit:
    """Take in a kit: everything that the site needs to take part, but its own ``site.toml``.

    A kit of the same federation for the same site replaces the one before, as after a change of the server's address.

    Returns:
        The kit, without secrets.

    Raises:
        ConfigurationError: It is damaged, for other keys, or of another federation than the one joined before.
        MachineError: The disk does not take it.
    """
    from .sitefile import template

    kit = read(path, Kit)
    _check_contents(kit, path)
    if home.kit.is_file():
        known = home.load_kit()
        if (known.federation, known.site) != (kit.federation, kit.site):
            raise ConfigurationError(
                f"{path}: is for {kit.site} of {kit.federation}; {home.root} takes part in {known.federation} as "
                f"{known.site}. For another federation use another --home"
            )
    home.make()
    if kit.secrets is not None:
        _take_keys(home, kit.secrets, path)
    if not names(kit, load_node_key(home), load_signing_key(home)):
        raise ConfigurationError(
            f"{path}: made for {kit.site}, with other keys than those in {home.keys}. If this site is another, so is "
            f"its kit: delete this one and ask for yours. Otherwise send the server's operator its request "
            f"('fedretrain client request --name {kit.site}' writes it again) and ask for a kit made from that"
        )
    atomic.write_bytes(home.ca, kit.ca.encode())
    atomic.write_bytes(home.anchor, kit.root.encode())
    if not home.site.exists():
        atomic.write_bytes(home.site, template(kit.site).encode())
    public = kit.model_copy(update={"secrets": None})
    public.write(home.kit)
    return public


def _check_contents(kit: Kit, path: Path) -> None:
    """Raise where the certificate or the root metadata cannot be read: now, and not when the first release arrives."""
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]  # public, though not in an __all__

    try:
        load_pem_x509_certificates(kit.ca.encode())
        root = Metadata[Root].from_bytes(kit.root.encode())
        root.signed.verify_delegate(Root.type, root.signed_bytes, root.signatures)
    except (ValueError, RepositoryError, AttributeError):  # metadata of another role verify no delegate
        raise ConfigurationError(
            f"{path}: damaged: its certificate authority or root metadata cannot be read; get it again from its sender"
        ) from None


def _take_keys(home: Home, secrets: KitSecrets, path: Path) -> None:
    """Write the keys of a complete kit where there are none; a key that is there has to be the same."""
    node, signing = _node_key(secrets.node_key.encode(), path), _signing_key(secrets.signing_key.encode(), path)
    if not home.node_key.exists():
        _write_node_key(home, node)
    if not home.signing_key.exists():
        _write_signing_key(home, signing)
    kept = (load_node_key(home).public_key(), load_signing_key(home).public_key())
    if kept != (node.public_key(), signing.public_key()):
        raise ConfigurationError(f"{path}: brings other keys than those that lie in {home.keys}; use another --home")


def _write_node_key(home: Home, key: EllipticCurvePrivateKey) -> None:
    atomic.write_bytes(home.keys / "node.pub", node_text(key).encode() + b"\n")
    data = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    atomic.write_bytes(home.node_key, data, mode=0o600)


def _write_signing_key(home: Home, key: Ed25519PrivateKey) -> None:
    data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    atomic.write_bytes(home.signing_key, data, mode=0o600)


def _private(path: Path) -> bytes:
    if not path.is_file():
        raise ConfigurationError(
            f"{path}: expected this site's private key, it is missing; run 'fedretrain client request --name NAME', "
            f"or join with a complete kit"
        )
    with atomic.disk_errors(path, "read"):
        if path.stat().st_mode & 0o077:
            raise ConfigurationError(f"{path}: a private key that others can read; check who had it, then chmod 600")
        return path.read_bytes()


def _node_key(data: bytes, where: Path) -> EllipticCurvePrivateKey:
    key = _loaded(data, where)
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP384R1):
        raise ConfigurationError(f"{where}: expected a P-384 private key for the SuperNode, got another kind of key")
    return key


def _signing_key(data: bytes, where: Path) -> Ed25519PrivateKey:
    key = _loaded(data, where)
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{where}: expected an Ed25519 private key for the trainer, got another kind of key")
    return key


def _loaded(data: bytes, where: Path) -> object:
    """A private key in either form; the text of what is wrong with it is left out, it may quote the key."""
    load = load_ssh_private_key if b"OPENSSH" in data[:64] else load_pem_private_key
    try:
        return load(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigurationError(f"{where}: not readable as a private key without passphrase; restore it") from None
