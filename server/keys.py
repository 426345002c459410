"""The registry's signing keys: Ed25519, one file per role, made on first use.

Invariants: a private key is readable by its owner alone and never lies in the registry; the folder is apart from the
releases, so that a copy of the registry carries no key; which keys count is said by the root metadata, never by the
files that happen to lie here, so that keys can be replaced without an instant at which nothing can be signed.

Layout of the folder (mode 0700; private keys as ``server.keyfile`` writes them, with the passphrase it finds)::

    <role>-<first 16 digits of the key's TUF id>.pem     role: targets, snapshot, timestamp
    offline/root-<...>.pem                               the root role's keys, one or several
    root.json                                            root metadata to hand to whoever is to trust this registry
    trust/                                               what was verified last (``fedretrain.trust``)

Root keys are needed to replace keys and to renew the root only. Kept on another medium, and brought back for
``releases rotate``, they are out of reach of whoever takes over the server. With a threshold of several, each can be
kept by another person; so many have to be brought back together.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.exceptions import KeyMismatchError
from securesystemslib.signer import (  # type: ignore[attr-defined]  # public, though its __all__ is computed
    CryptoSigner,
    SSlibKey,
)
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]  # public, though not in an __all__

from fedretrain import atomic
from fedretrain.errors import ConfigurationError, UntrustedRelease

from .keyfile import passphrase, read_key, write_key

ROLES: Final = ("root", "targets", "snapshot", "timestamp")
ONLINE: Final = ("targets", "snapshot", "timestamp")
Signers = dict[str, tuple[CryptoSigner, ...]]  # by role; one each, but for the root


class KeyStore:
    """The keys in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.anchor = folder / "root.json"
        self.memory = folder / "trust"

    def generate(self, roles: Iterable[str], root_keys: int = 1) -> Signers:
        """Make a key for each role (``root_keys`` for the root) and write them down; raises MachineError."""
        for folder in (self.folder, self._offline):
            atomic.make_folder(folder, mode=0o700)
            with atomic.disk_errors(folder, "restrict to its owner"):
                folder.chmod(0o700)
            atomic.remove_leftovers(folder)
        secret, made = passphrase(), {}
        for role in roles:
            keys = [Ed25519PrivateKey.generate() for _ in range(root_keys if role == "root" else 1)]
            made[role] = tuple(CryptoSigner(key) for key in keys)
            for key, signer in zip(keys, made[role], strict=True):
                write_key(self._place(role) / _file_name(role, signer.public_key.keyid), key, secret)
        return made

    def root(self) -> tuple[bytes, Root]:
        """The root metadata to hand out, as bytes and read; raises UntrustedRelease where they cannot be read."""
        try:
            data = self.anchor.read_bytes()
            return data, Metadata[Root].from_bytes(data).signed
        except OSError as error:
            raise UntrustedRelease(f"{self.anchor}: {error.strerror or error}; restore it from a backup") from None
        except RepositoryError as error:
            raise UntrustedRelease(f"{self.anchor}: not readable as root metadata: {error.__cause__}") from None

    def signers(self, root: Root, roles: Iterable[str]) -> Signers:
        """The key of each role that ``root`` names; of the root, as many as its threshold asks for.

        Raises:
            ConfigurationError: It is not here, readable by others, or not the key that ``root`` names.
        """
        return {role: self._signers(root, role) for role in roles}

    def present(self, root: Root, role: str) -> bool:
        """Whether as many of the role's keys as its threshold asks for lie here, usable or not."""
        found = [keyid for keyid in root.roles[role].keyids if self._find(role, keyid).is_file()]
        return len(found) >= root.roles[role].threshold

    def available(self, root: Root, roles: Iterable[str]) -> Signers:
        """Those of ``signers`` that are here; a role whose key is lost or unusable is left out."""
        found: Signers = {}
        for role in roles:
            with suppress(ConfigurationError):
                found[role] = self._signers(root, role)
        return found

    def remove_unused(self, root: Root) -> None:
        """Delete private keys that ``root`` does not name; raises MachineError."""
        used = {_file_name(role, keyid) for role in ROLES for keyid in root.roles[role].keyids}
        with atomic.disk_errors(self.folder, "remove replaced keys"):
            for role in ROLES:
                for folder in {self.folder, self._place(role)}:
                    for file in folder.glob(f"{role}-*.pem"):
                        if file.name not in used:
                            file.unlink()

    def _signers(self, root: Root, role: str) -> tuple[CryptoSigner, ...]:
        """The first so many usable keys of a role; the last failure says why there are too few."""
        threshold, keyids = root.roles[role].threshold, root.roles[role].keyids
        found: list[CryptoSigner] = []
        failures: list[ConfigurationError] = []
        for keyid in keyids:
            try:
                found.append(self._signer(root, role, keyid))
            except ConfigurationError as error:
                failures.append(error)
        if len(found) >= threshold:
            return tuple(found[:threshold])
        if threshold == 1:
            raise failures[0]
        raise ConfigurationError(
            f"role {role}: expected {threshold} of {len(keyids)} private keys, got {len(found)}; {failures[0]}"
        )

    def _signer(self, root: Root, role: str, keyid: str) -> CryptoSigner:
        file, public = self._find(role, keyid), root.keys[keyid]
        if not file.is_file():
            cure = "bring it back from where it is kept" if role == "root" else "restore it, or run 'releases rotate'"
            raise ConfigurationError(f"{file}: expected the private key of role {role}, it is missing; {cure}")
        private = read_key(file, passphrase())
        with suppress(KeyMismatchError):
            if isinstance(private, Ed25519PrivateKey) and isinstance(public, SSlibKey):
                return CryptoSigner(private, public)
        raise ConfigurationError(f"{file}: not the private key of role {role} that root.json names; restore it")

    @property
    def _offline(self) -> Path:
        return self.folder / "offline"

    def _place(self, role: str) -> Path:
        return self._offline if role == "root" else self.folder

    def _find(self, role: str, keyid: str) -> Path:
        """Where the key lies; a root key may also lie with the others."""
        name = _file_name(role, keyid)
        beside = self.folder / name
        return beside if beside.is_file() else self._place(role) / name


def _file_name(role: str, keyid: str) -> str:
    return f"{role}-{keyid[:16]}.pem"
