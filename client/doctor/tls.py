"""TLS with the gateway: who issued its certificate, for which name, until when; and if it is refused, why.

Invariants: a certificate is judged by the authority of the kit alone; what is read from a connection that was not
verified only describes what was refused, and settles one question: whether it is the certificate or this machine's
clock that is wrong.
"""

import http.client
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from cryptography import x509

from .finding import Finding, Stop, problem
from .place import ASK, TIMEOUT_S, Place, reason

_SOON = timedelta(days=14)
_EXPIRED, _NOT_YET = 10, 9  # OpenSSL's X509_V_ERR_*
_NAMES = frozenset({62, 64})


def handshake(place: Place) -> Iterator[Finding]:
    """Open a verified connection; raises Stop with the cause where that is not possible."""
    _check_authority(place)
    try:
        with (
            socket.create_connection((place.host, place.port), TIMEOUT_S) as plain,
            place.context().wrap_socket(plain, server_hostname=place.host) as secure,
        ):
            certificate = x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")
            version = secure.version()
    except ssl.SSLCertVerificationError as error:
        raise Stop(_untrusted(place, error)) from None
    except OSError as error:  # ssl.SSLError is one
        raise Stop(
            problem(
                "certificate",
                "not-tls",
                f"what listens on {place} does not speak TLS as the gateway does: {reason(error)}",
                "it is another service, so the port or the address is wrong; or something on the way cuts TLS off",
                f"{ASK} for the gateway's port ('listen' and 'address' in federation.toml)",
            )
        ) from None
    until = certificate.not_valid_after_utc
    yield Finding("certificate", "ok", f"by the authority of the kit, for {place.host}, until {_day(until)}; {version}")
    if until - place.now < _SOON:
        yield Finding(
            "certificate",
            "note",
            f"it expires on {_day(until)}",
            "from then on no site can connect",
            "remind the server's operator of 'fedretrain server renew'; nothing is to be done here",
        )


def _check_authority(place: Place) -> None:
    until = min(c.not_valid_after_utc for c in x509.load_pem_x509_certificates(place.kit.ca.encode()))
    if until < place.now:
        raise Stop(
            problem(
                "certificate",
                "authority-expired",
                f"the kit's authority expired on {_day(until)}; this machine's clock says {_day(place.now)}",
                "no certificate of the server can be verified with it",
                f"if the clock is right, {ASK} for a new kit and run 'fedretrain client join' with it",
            )
        )


def _untrusted(place: Place, error: ssl.SSLCertVerificationError) -> Finding:
    shown = _peek(place)
    if error.verify_code in {_EXPIRED, _NOT_YET} and shown is not None:
        return _untimely(place, shown, expired=error.verify_code == _EXPIRED)
    if error.verify_code in _NAMES:
        names = ", ".join(_names(shown)) or "no name"
        return problem(
            "certificate",
            "wrong-name",
            f"the server's certificate is for {names}, not for {place.host}, which is the kit's address",
            "a certificate for another name may be another machine's",
            f"{ASK} to add {place.host} to 'names' in federation.toml and run 'fedretrain server renew', or for a kit "
            "with an address that the certificate names",
        )
    issuer = f" by {_text(shown.issuer)!r}" if shown is not None else ""
    return problem(
        "certificate",
        "wrong-ca",
        f"the server's certificate was issued{issuer}, not by the authority of the kit ({error.verify_message})",
        "this is another server, a device on the way that opens encrypted connections, or a federation that was set "
        "up anew since the kit was made",
        f"do not go on before this is known: {ASK} whether {place} is the gateway and the kit is the present one; "
        "have this network's operators except the address from TLS inspection",
    )


def _untimely(place: Place, shown: x509.Certificate, *, expired: bool) -> Finding:
    """Expired or not valid yet; which is also how a wrong clock looks from here."""
    date = shown.not_valid_after_utc if expired else shown.not_valid_before_utc
    what = f"the server's certificate {'expired on' if expired else 'is not valid before'} {_day(date)}"
    there = _server_time_unverified(place)
    if there is not None and not shown.not_valid_before_utc <= there <= shown.not_valid_after_utc:
        there = None  # the server agrees that it is the certificate
    if there is not None:
        return problem(
            "clock",
            "clock",
            f"{what}; this machine's clock says {_minute(place.now)}, the server's {_minute(there)}",
            "with a clock that is wrong no certificate can be verified and no message be timely",
            "set this machine's clock, best by NTP; if it is right, the server's is wrong",
        )
    return problem(
        "certificate",
        "certificate-expired" if expired else "certificate-not-yet-valid",
        f"{what}; this machine's clock says {_minute(place.now)}",
        "no site can connect until it is renewed",
        f"{ASK} to run 'fedretrain server renew'; kits stay as they are, nothing is to be done here",
    )


def _unverified() -> ssl.SSLContext:
    """TLS that believes anybody: only to describe what was just refused."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _peek(place: Place) -> x509.Certificate | None:
    """The certificate that was just refused."""
    try:
        with (
            socket.create_connection((place.host, place.port), TIMEOUT_S) as plain,
            _unverified().wrap_socket(plain, server_hostname=place.host) as secure,
        ):
            return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")
    except (OSError, ValueError):
        return None


def _server_time_unverified(place: Place) -> datetime | None:
    """What a server whose certificate was refused for its date says the time is; a hint."""
    try:
        _, answer = place.get("/time", {}, _unverified())
        return datetime.fromtimestamp(float(answer["time"]), UTC)
    except (OSError, http.client.HTTPException, TypeError, KeyError, ValueError):
        return None


def _names(certificate: x509.Certificate | None) -> list[str]:
    if certificate is None:
        return []
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    addresses = found.get_values_for_type(x509.IPAddress)
    return [*found.get_values_for_type(x509.DNSName), *map(str, addresses)]


def _text(name: x509.Name) -> str:
    return name.rfc4514_string()[:100]


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"


def _minute(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
