"""Gives certificates, TUF roles and the app bundle new life, and says what expires when.

Invariants: the authority, the root role's chain and the coordinator's key stay, so that no kit is issued again; each
file is replaced in one step and works with what lies beside it, so that an interrupted renewal is harmless; keys that
are kept elsewhere are asked for only where something cannot last without them.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from fedretrain import atomic
from fedretrain.bundle import build_bundle
from fedretrain.errors import ConfigurationError
from fedretrain.trust import SignedState

from .certificates import canonical_name, load, names_of, new_key, pem, server_certificate
from .federation import Federation, is_federation
from .keyfile import passphrase, read_key, write_key
from .metadata import ROOT_LIFETIME, utc
from .registry import Registry

WARNING: Final = timedelta(days=14)
AGE: Final = timedelta(days=30)  # a root younger than that stays: sites follow every one there was
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Expiry:
    """What expires and when (UTC)."""

    what: str
    when: datetime
    cure: str = "fedretrain server renew"


@dataclass(frozen=True)
class Renewed:
    """What ``renew`` did. ``skipped`` says what it could not do and why; ``bundle`` is the new digest if it changed."""

    expiries: tuple[Expiry, ...]
    skipped: tuple[str, ...] = ()
    bundle: str | None = None


def renew(federation: Federation, now: datetime | None = None) -> Renewed:
    """Renew everything for which the keys are here: certificates, TUF root and roles, and the bundle if it changed.

    Raises:
        ConfigurationError: A key cannot be used, or something that could not be renewed expires within 14 days.
        UntrustedRelease: The registry's metadata do not verify.
        MachineError: The disk is full or failed; run it again.
    """
    at = now or datetime.now(UTC)
    registry = Registry.open(federation.folder, lambda: at)
    skipped: dict[str, str] = {}
    if federation.authority_key.exists():
        renew_certificates(federation, at)
    else:
        skipped["certificate"] = f"certificates not renewed: that takes {federation.authority_key}"
    root = registry.keys.root()[1]
    if not registry.keys.present(root, "root"):
        needed = root.roles["root"].threshold
        skipped["root"] = f"TUF root not renewed: that takes {needed} root key(s) in {federation.offline}"
    elif root.expires - at < ROOT_LIFETIME - AGE:
        registry.renew_root()
    if registry.exists:
        registry.renew()
    renew_public(federation)
    bundle = renew_bundle(federation)
    found = tuple(expiries(federation, at))
    for expiry in found:
        for part, reason in skipped.items():
            if part in expiry.what and expiry.when - at < WARNING:
                raise ConfigurationError(f"{expiry.what} expires on {utc(expiry.when)}. {reason}; bring them back")
    return Renewed(found, tuple(skipped.values()), bundle)


def expiries(federation: Federation, now: datetime | None = None) -> list[Expiry]:
    """When certificates and TUF roles expire, or did, the first one first.

    Raises:
        ConfigurationError: A certificate is missing or damaged.
        UntrustedRelease: The registry's metadata do not verify.
        MachineError: The disk failed.
    """
    at = now or datetime.now(UTC)
    certificates = {
        "the server's certificate": federation.certificate,
        "the SuperLink's certificate": federation.loopback_certificate,
    }
    found = [Expiry(what, _certificate(path).not_valid_after_utc) for what, path in certificates.items()]
    authority = _certificate(federation.ca).not_valid_after_utc
    found.append(Expiry("the federation's certificate authority", authority, "a new federation, and new kits"))
    roles = Registry.open(federation.folder, lambda: at).expiries()
    found += [Expiry(f"TUF {role} metadata", when) for role, when in roles.items()]
    return sorted(found, key=lambda expiry: expiry.when)


def warnings(federation: Federation, now: datetime | None = None) -> list[str]:
    """What the operator should renew: whatever expires within 14 days, and names that the certificate lacks.

    Raises:
        ConfigurationError: As ``expiries``, or a name in ``federation.toml`` is not possible.
    """
    at = now or datetime.now(UTC)
    lines = []
    for expiry in expiries(federation, at):
        left = expiry.when - at
        if left < WARNING:
            state = f"expires in {left.days} days" if left > timedelta(0) else "expired"
            lines.append(f"{expiry.what} {state} ({utc(expiry.when)}): {expiry.cure}")
    wanted = {canonical_name(name) for name in federation.settings.server_names}
    lacking = sorted(wanted - set(names_of(_certificate(federation.certificate))))
    if lacking:
        lines.append(f"the server's certificate does not name {', '.join(lacking)}: fedretrain server renew")
    return lines


def renew_certificates(federation: Federation, now: datetime) -> None:
    """Certificates for the gateway and the SuperLink, with the keys they have, or new ones where these are missing.

    Raises:
        ConfigurationError: The authority's key or certificate is missing or unusable, or a name is not possible.
        MachineError: The disk is full or failed.
    """
    authority = _certificate(federation.ca)
    authority_key = _key(federation.authority_key)
    if authority_key.public_key() != authority.public_key():
        raise ConfigurationError(
            f"{federation.authority_key}: not the key of {federation.ca}; bring back the right one"
        )
    secret = passphrase()
    for names, key_file, file, protection in (
        (federation.settings.server_names, federation.private_key, federation.certificate, secret),
        (LOOPBACK, federation.loopback_key, federation.loopback_certificate, None),
    ):
        if not key_file.exists():
            write_key(key_file, new_key(), protection)
        certificate = server_certificate(names, _key(key_file).public_key(), authority, authority_key, now)
        atomic.write_bytes(file, pem(certificate))


def rotate(folder: Path, *, with_root: bool = False, accept_older: bool = False) -> tuple[SignedState, Path]:
    """Replace the registry's keys (``Registry.rotate``), and the root that a federation shows its auditors.

    Returns:
        The state, and the file to hand to who is to trust this registry from now on.
    """
    registry = Registry.open(folder)
    state = registry.rotate(with_root=with_root, accept_older=accept_older)
    if not is_federation(folder):
        return state, registry.keys.anchor
    federation = Federation.open(folder)
    renew_public(federation)
    return state, federation.public_anchor


def renew_public(federation: Federation) -> None:
    """Copy what anybody may have to where anybody can read it; raises MachineError."""
    for source in (federation.ca, federation.anchor):
        with atomic.disk_errors(source, "read"):
            data = source.read_bytes()
        atomic.write_bytes(federation.public / source.name, data)


def renew_bundle(federation: Federation) -> str | None:
    """Build the app bundle of the software installed here; its digest if it is another one than before."""
    path, digest = build_bundle(federation.bundle)
    marker = federation.bundle / "sha256"
    before = marker.read_text(encoding="ascii").strip() if marker.is_file() else None
    if before == digest:
        return None
    atomic.write_bytes(marker, f"{digest}\n".encode())
    with atomic.disk_errors(federation.bundle):
        for other in federation.bundle.glob("*.fab"):
            if other != path:
                other.unlink()
    return digest


def _certificate(path: Path) -> x509.Certificate:
    try:
        return load(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigurationError(f"{path}: expected a certificate: {error.strerror or error}") from None


def _key(path: Path) -> EllipticCurvePrivateKey:
    key = read_key(path, passphrase())
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ConfigurationError(f"{path}: expected an ECDSA key; restore it from a backup")
    return key
