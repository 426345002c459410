"""Makes a federation and says who belongs to it: ``init``, ``admit``, ``revoke`` and complete kits.

Invariants: ``federation.toml`` is written last, so that where it lies everything else does; private keys are 0600 in
folders that are 0700; a site is on the roster only once its kit is written; a key that was ever on the roster is never
admitted for another site or, once revoked, at all; who is revoked is out at the next look at the roster.

Certificates and TUF roles are renewed in ``server.renewal``.
"""

import difflib
import shutil
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_public_key,
)

from fedretrain import __version__, atomic
from fedretrain.errors import ConfigurationError, MachineError
from fedretrain.membership import JoinRequest, Kit, KitSecrets, public_text, read

from .certificates import authority_certificate, new_key, pem
from .federation import Federation, Member, Settings
from .keyfile import passphrase, write_key
from .metadata import utc
from .registry import Registry
from .renewal import renew_bundle, renew_certificates, renew_public

_UNFINISHED: Final = ".init"  # marks a folder that `init` is still filling
_PRIVATE: Final = ("keys", "runs", "state")
_OPEN: Final = ("tls", "public", "bundle", "registry")


def guessed_names() -> tuple[str, ...]:
    """What this machine is called, the most public name first, and by itself."""
    names = [socket.getfqdn(), socket.gethostname(), "localhost", "127.0.0.1"]
    found = dict.fromkeys(name.lower() for name in names if name and not name.endswith(".arpa"))
    return tuple(sorted(found, key=lambda name: name.startswith("localhost") or name == "127.0.0.1"))


def init(folder: Path, settings: Settings, *, root_keys: int = 1, root_threshold: int = 1) -> Federation:
    """Make a federation in a folder that is empty or not there; keys are encrypted where there is a passphrase.

    Args:
        folder: Where; an ``init`` that was interrupted there is begun anew.
        settings: See ``Settings``.
        root_keys: How many keys the TUF root role has.
        root_threshold: How many of them it takes to replace keys.

    Raises:
        ConfigurationError: The folder holds something, a name cannot stand in a certificate, or the threshold cannot be
            reached.
        MachineError: The disk is full or failed; nothing is left.
    """
    passphrase()  # an unreadable one is said before anything is made
    federation = Federation(folder.resolve(), settings)
    _claim(federation.folder)
    try:
        _fill(federation, root_keys, root_threshold)
    except BaseException:
        with suppress(OSError, MachineError):
            _clear(federation.folder)
            (federation.folder / _UNFINISHED).unlink()
        raise
    with atomic.disk_errors(federation.folder):
        (federation.folder / _UNFINISHED).unlink()
    return Federation.open(federation.folder)


def admit(federation: Federation, request_path: Path, kit_path: Path, now: datetime | None = None) -> Kit:
    """Take a site's request, write its kit, and put it on the roster.

    The same request again is no second admission: the kit is written again.

    Args:
        federation: The federation.
        request_path: What the site sent.
        kit_path: Where the kit goes; it holds no secret.
        now: Time of admission, UTC; default is the clock's.

    Raises:
        ConfigurationError: The request is damaged or its proof does not hold, its name is not expected or taken, or one
            of its keys belongs to another site or was revoked.
        MachineError: The disk is full or failed; the site is not on the roster.
    """
    request = read(request_path, JoinRequest)
    request.verify(str(request_path))
    member = _member(federation, request, str(request_path), now)
    kit = _kit(federation, member)
    _enrol(federation, member, kit, kit_path, str(request_path))
    return kit


def make_kits(federation: Federation, sites: Iterable[str], folder: Path, now: datetime | None = None) -> list[Path]:
    """Make keys for sites, admit them and write complete kits, mode 0600; the keys are kept nowhere else.

    Returns:
        The kits, one per site, in ``folder``.

    Raises:
        ConfigurationError: As ``admit``; sites before the one that failed are admitted.
        MachineError: As ``admit``.
    """
    atomic.make_folder(folder, mode=0o700)
    made = []
    for site in sites:
        node, signing = generate_private_key(SECP384R1()), Ed25519PrivateKey.generate()
        text = node.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        request = _request(site, text, signing)
        secrets = KitSecrets(
            node_key=node.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode(),
            signing_key=signing.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        )
        path = folder / f"{site}.kit"
        member = _member(federation, request, str(path), now)
        _enrol(federation, member, _kit(federation, member, secrets), path, str(path))
        made.append(path)
    return made


def revoke(federation: Federation, site: str, now: datetime | None = None) -> Member:
    """Shut a site out: its keys count for nothing from here on.

    Raises:
        ConfigurationError: There is no such site, or it was revoked before.
        MachineError: The disk is full or failed; the roster is as it was.
    """
    with atomic.locked(federation.roster_lock):
        entries, known = federation.entries(), federation.members()
        member = known.get(site)
        if member is None:
            raise ConfigurationError(f"{site}: no such site{_nearest(site, known)}")
        if member.revoked is not None:
            raise ConfigurationError(f"{site}: revoked since {member.revoked}; nothing is left to do")
        gone = replace(member, revoked=utc(now or datetime.now(UTC)))
        federation.write_roster(tuple(gone if entry == member else entry for entry in entries))
        return gone


def _member(federation: Federation, request: JoinRequest, where: str, now: datetime | None) -> Member:
    """The roster's entry for a request; raises ConfigurationError where its name or its node key cannot be taken."""
    expected = federation.settings.sites
    if expected and request.name not in expected:
        raise ConfigurationError(
            f"{where}: {request.name} is not among the sites of {federation.config}{_nearest(request.name, expected)}; "
            "add it there, or have the site choose that name"
        )
    return Member(
        name=request.name,
        node_key=_node_key(request.node_key, where),
        signing_key=request.signing_key,
        software=request.software,
        admitted=utc(now or datetime.now(UTC)),
    )


def _enrol(federation: Federation, member: Member, kit: Kit, kit_path: Path, where: str) -> None:
    """Write the kit, then the roster; nothing where name or keys are taken."""
    with atomic.locked(federation.roster_lock):
        entries = federation.entries()
        again = _check_new(member, entries, where)
        kit.write(kit_path, mode=0o600 if kit.secrets else 0o644)
        if not again:
            federation.write_roster((*entries, member))


def _check_new(member: Member, entries: Iterable[Member], where: str) -> bool:
    """Whether exactly this site was admitted before; raises ConfigurationError where name or keys are taken."""
    keys = {member.node_key, member.signing_key}
    for entry in entries:
        same_keys = {entry.node_key, entry.signing_key} & keys
        if same_keys and not entry.active:
            raise ConfigurationError(
                f"{where}: its keys were revoked, as those of {entry.name}, on {entry.revoked}; "
                "the site makes new ones in a new home folder and asks again"
            )
        if entry.active and entry.name == member.name and same_keys == keys:
            return True
        if entry.active and entry.name == member.name:
            raise ConfigurationError(
                f"{where}: {entry.name} was admitted with other keys on {entry.admitted}. Ask the site whether it made "
                f"new ones; if so 'fedretrain server revoke {entry.name}' first"
            )
        if same_keys:
            raise ConfigurationError(
                f"{where}: its keys are those of {entry.name}, admitted on {entry.admitted}; "
                "a site's keys are its own: each makes them in its own home folder"
            )
    return False


def _node_key(text: str, where: str) -> str:
    """The key without a comment, so that equal keys are equal texts."""
    key = load_ssh_public_key(text.encode())
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name != SECP384R1.name:
        raise ConfigurationError(f"{where}: its node key: expected an ECDSA key on the curve P-384, got another kind")
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _request(site: str, node_key: str, signing: Ed25519PrivateKey) -> JoinRequest:
    try:
        unsigned = JoinRequest(name=site, node_key=node_key, signing_key=public_text(signing), software=__version__)
    except ValueError:
        raise ConfigurationError(
            f"{site!r}: expected letters, digits, '.', '_', '-', at most 64, beginning with a letter or digit"
        ) from None
    return unsigned.proven(signing)


def _kit(federation: Federation, member: Member, secrets: KitSecrets | None = None) -> Kit:
    public = federation.public
    with atomic.disk_errors(public, "read"):
        return Kit(
            federation=federation.settings.name,
            site=member.name,
            address=federation.settings.address,
            ca=federation.ca.read_text(encoding="ascii"),
            coordinator=(public / "coordinator.pub").read_text(encoding="ascii").strip(),
            root=federation.anchor.read_text(encoding="utf-8"),
            node_key=member.node_key,
            signing_key=member.signing_key,
            bundle=federation.bundle_digest(),
            secrets=secrets,
        )


def _nearest(name: str, known: Iterable[str]) -> str:
    there = sorted(known)
    near = difflib.get_close_matches(name, there, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there are: {', '.join(there) or 'none'}"


def _claim(folder: Path) -> None:
    """An empty folder with the mark of an unfinished ``init`` in it."""
    atomic.make_folder(folder)
    with atomic.disk_errors(folder):
        found = sorted(path.name for path in folder.iterdir())
        if (folder / _UNFINISHED).exists():
            _clear(folder)
        elif found:
            what = "is a federation already" if "federation.toml" in found else f"holds {', '.join(found[:3])}"
            raise ConfigurationError(f"{folder}: expected a folder that is empty or not there; it {what}")
        (folder / _UNFINISHED).touch()
        folder.chmod(0o755)


def _clear(folder: Path) -> None:
    for name in (*_PRIVATE, *_OPEN):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("federation.toml", "roster.json"):
        (folder / name).unlink(missing_ok=True)


def _fill(federation: Federation, root_keys: int, root_threshold: int) -> None:
    settings, secret = federation.settings, passphrase()
    for name, mode in [*((name, 0o700) for name in _PRIVATE), *((name, 0o755) for name in _OPEN)]:
        atomic.make_folder(federation.folder / name, mode=mode)
        with atomic.disk_errors(federation.folder / name):
            (federation.folder / name).chmod(mode)  # whatever the umask
    registry = Registry.open(federation.folder)
    registry.prepare(root_keys, root_threshold)
    for folder in registry.folder.iterdir():
        if folder.is_dir():
            folder.chmod(0o755)
    coordinator, authority = Ed25519PrivateKey.generate(), new_key()
    write_key(federation.coordinator_key, coordinator, secret)
    write_key(federation.authority_key, authority, secret)
    now = datetime.now(UTC)
    atomic.write_bytes(federation.ca, pem(authority_certificate(settings.name, authority, now)))
    renew_certificates(federation, now)
    atomic.write_bytes(federation.public / "coordinator.pub", f"{public_text(coordinator)}\n".encode())
    renew_public(federation)
    renew_bundle(federation)
    federation.write_roster(())
    atomic.write_bytes(federation.config, settings.toml().encode())
