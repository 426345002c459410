"""X.509 certificates of a federation: an authority of its own, and the servers it vouches for (RFC 5280).

Invariants: keys are ECDSA P-256, which every TLS stack takes; the authority can vouch for servers but for no further
authority; a server's certificate is good for TLS servers alone and names every host it is reached by. Whoever trusts
the authority notices nothing when a certificate is renewed.
"""

import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedretrain.errors import ConfigurationError

AUTHORITY_LIFETIME: Final = timedelta(days=3652)
SERVER_LIFETIME: Final = timedelta(days=365)
BACKDATED: Final = timedelta(hours=24)  # for machines whose clock is behind
Key = ec.EllipticCurvePrivateKey


def new_key() -> Key:
    """A private key for an authority or a server."""
    return ec.generate_private_key(ec.SECP256R1())


def authority_certificate(name: str, key: Key, now: datetime) -> x509.Certificate:
    """The self-signed certificate of the authority of the federation ``name``, valid for ten years."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name[:46]} federation")])
    builder = (
        _builder(subject, subject, key.public_key(), now, AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
    )
    return builder.sign(key, hashes.SHA256())


def server_certificate(
    names: Iterable[str],
    key: ec.EllipticCurvePublicKey,
    authority: x509.Certificate,
    authority_key: Key,
    now: datetime,
) -> x509.Certificate:
    """A TLS server's certificate, valid for a year, or as long as its authority.

    Args:
        names: Host names and IP addresses it is reached by.
        key: The server's.
        authority: Issuer.
        authority_key: The issuer's key.
        now: Start of its life.

    Raises:
        ConfigurationError: A name that cannot stand in a certificate, or none.
    """
    alternatives = [_general_name(name) for name in dict.fromkeys(names)]
    if not alternatives:
        raise ConfigurationError("a server's certificate: expected at least one host name or IP address")
    life = min(SERVER_LIFETIME, authority.not_valid_after_utc - now)
    issuer_id = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedretrain server")])
    builder = (
        _builder(subject, authority.subject, key, now, life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id), critical=False)
    )
    return builder.sign(authority_key, hashes.SHA256())


def pem(certificate: x509.Certificate) -> bytes:
    """The certificate's text form."""
    return certificate.public_bytes(Encoding.PEM)


def load(data: bytes, where: str) -> x509.Certificate:
    """The certificate in PEM ``data``; raises ConfigurationError naming ``where``."""
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError:
        raise ConfigurationError(f"{where}: expected a certificate, PEM; restore it from a backup") from None


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The host names and IP addresses a certificate is for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = found.get_values_for_type(x509.IPAddress)
    return (*found.get_values_for_type(x509.DNSName), *(str(address) for address in addresses))


def canonical_name(name: str) -> str:
    """The name as it stands in a certificate; raises ConfigurationError where it cannot."""
    return str(_general_name(name).value)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        host = name.rstrip(".").encode("idna").decode("ascii").lower()
    except UnicodeError:
        host = ""
    if not host or not all(c.isalnum() or c in "-_.*" for c in host):
        raise ConfigurationError(f"{name!r}: expected a host name or an IP address for the server's certificate")
    return x509.DNSName(host)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    start = now.astimezone(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - BACKDATED)
        .not_valid_after(start + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
