"""Certificates: what they are good for, and that a real TLS handshake agrees."""

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from fedretrain.errors import ConfigurationError
from server.certificates import (
    BACKDATED,
    authority_certificate,
    canonical_name,
    load,
    names_of,
    new_key,
    pem,
    server_certificate,
)
from server.keyfile import write_key

NOW = datetime.now(UTC)
AUTHORITY_KEY = new_key()
AUTHORITY = authority_certificate("trial", AUTHORITY_KEY, NOW)


def handshake(folder: Path, trusted: x509.Certificate, name: str, **server: object) -> str:
    """The protocol that a strict client and a server agree on; raises as the client does."""
    key = new_key()
    issuer, issuer_key = server.get("issuer", AUTHORITY), server.get("issuer_key", AUTHORITY_KEY)
    made = server_certificate(
        ["server.example", "10.0.0.7", "::1"],
        key.public_key(),
        issuer,  # type: ignore[arg-type]
        issuer_key,  # type: ignore[arg-type]
        server.get("now", NOW),  # type: ignore[arg-type]
    )
    (folder / "server.crt").write_bytes(pem(made))
    write_key(folder / "server.key", key, b"secret")
    offering = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    offering.load_cert_chain(folder / "server.crt", folder / "server.key", "secret")
    asking = ssl.create_default_context(cadata=pem(trusted).decode())
    asking.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            with offering.wrap_socket(theirs, server_side=True) as connection:
                connection.recv(1)
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with asking.wrap_socket(ours, server_hostname=name) as connection:
            return connection.version() or ""
    finally:
        ours.close()
        thread.join(10)


@pytest.mark.parametrize("name", ["server.example", "10.0.0.7", "::1"])
def test_tls_takes_every_name(tmp_path: Path, name: str) -> None:
    """A client that trusts the authority alone, and is strict, reaches the server by each of its names."""
    assert handshake(tmp_path, AUTHORITY, name) == "TLSv1.3"


def test_tls_refuses_another_name_authority_or_time(tmp_path: Path) -> None:
    """A name that is not in the certificate, another authority's server and an expired one are refused."""
    other_key = new_key()
    other = authority_certificate("trial", other_key, NOW)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(tmp_path, AUTHORITY, "other.example")
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        handshake(tmp_path, AUTHORITY, "server.example", issuer=other, issuer_key=other_key)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(tmp_path, AUTHORITY, "server.example", now=NOW - timedelta(days=366))


def test_a_server_cannot_vouch_for_others() -> None:
    """The authority stands above servers alone, and a server's certificate is no authority's or client's."""
    made = server_certificate(["a"], new_key().public_key(), AUTHORITY, AUTHORITY_KEY, NOW)
    above = AUTHORITY.extensions.get_extension_for_class(x509.BasicConstraints)
    below = made.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert (above.critical, above.value.ca, above.value.path_length) == (True, True, 0)
    assert (below.critical, below.value.ca) == (True, False)
    assert list(usage.value) == [x509.ExtendedKeyUsageOID.SERVER_AUTH]


def test_lifetimes() -> None:
    """Ten years for the authority, one for a server and never past the authority; from a day ago, for slow clocks."""
    made = server_certificate(["a"], new_key().public_key(), AUTHORITY, AUTHORITY_KEY, NOW)
    late = NOW + timedelta(days=3600)
    last = server_certificate(["a"], new_key().public_key(), AUTHORITY, AUTHORITY_KEY, late)
    second = timedelta(seconds=1)
    assert abs(AUTHORITY.not_valid_after_utc - NOW - timedelta(days=3652)) < second
    assert abs(made.not_valid_after_utc - NOW - timedelta(days=365)) < second
    assert abs(made.not_valid_before_utc - NOW + BACKDATED) < second
    assert last.not_valid_after_utc == AUTHORITY.not_valid_after_utc


def test_names_are_read_back() -> None:
    """Host names in lower case and ASCII, addresses as addresses, each once."""
    wanted = ["Server.Example.", "10.0.0.7", "münchen.example", "::1", "10.0.0.7"]
    made = server_certificate(wanted, new_key().public_key(), AUTHORITY, AUTHORITY_KEY, NOW)
    assert names_of(made) == ("server.example", "xn--mnchen-3ya.example", "10.0.0.7", "::1")
    assert {canonical_name(name) for name in wanted} == set(names_of(made))


@pytest.mark.parametrize("name", ["", "a b", "https://a", "a..b", "a:8443", "x" * 70])
def test_what_is_no_name_is_refused(name: str) -> None:
    """A name that no certificate can hold is said, not signed."""
    with pytest.raises(ConfigurationError, match="expected a host name or an IP address"):
        server_certificate([name], new_key().public_key(), AUTHORITY, AUTHORITY_KEY, NOW)


def test_a_damaged_certificate_is_named() -> None:
    """A file that is no certificate is refused by its name."""
    with pytest.raises(ConfigurationError, match=r"tls/server\.crt: expected a certificate"):
        load(b"", "tls/server.crt")
