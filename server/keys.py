"""The registry's signing keys: Ed25519, one file per role, made on first use.

Invariants: a private key is readable by its owner alone and never lies in the registry; the folder is apart from the
releases, so that a copy of the registry carries no key; which keys count is said by the root metadata, never by the
files that happen to lie here, so that keys can be replaced without an instant at which nothing can be signed.

Layout of the folder (mode 0700; private keys are PKCS#8 PEM, mode 0600)::

    <role>-<first 16 digits of the key's TUF id>.pem     role: root, targets, snapshot, timestamp
    root.json                                            root metadata to hand to whoever is to trust this registry
    trust/                                               what was verified last (``fedretrain.trust``)

The root key is needed to replace keys only. Kept on another medium, and brought back for ``releases rotate``, it is
out of reach of whoever takes over the server.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.exceptions import KeyMismatchError
from securesystemslib.signer import (  # type: ignore[attr-defined]  # public, though its __all__ is computed
    CryptoSigner,
    SSlibKey,
)
from tuf.api.metadata import Root  # type: ignore[attr-defined]  # public, though not in an __all__

from fedretrain import atomic
from fedretrain.errors import ConfigurationError

ROLES: Final = ("root", "targets", "snapshot", "timestamp")
ONLINE: Final = ("targets", "snapshot", "timestamp")
Signers = dict[str, CryptoSigner]  # by role


class KeyStore:
    """The keys in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.anchor = folder / "root.json"
        self.memory = folder / "trust"

    def generate(self, roles: Iterable[str]) -> Signers:
        """Make a key for each role and write it down; raises MachineError."""
        atomic.make_folder(self.folder, mode=0o700)
        with atomic.disk_errors(self.folder, "restrict to its owner"):
            self.folder.chmod(0o700)
        atomic.remove_leftovers(self.folder)
        signers = {role: CryptoSigner.generate_ed25519() for role in roles}
        for role, signer in signers.items():
            atomic.write_bytes(self._file(role, signer.public_key.keyid), signer.private_bytes, mode=0o600)
        return signers

    def signers(self, root: Root, roles: Iterable[str]) -> Signers:
        """The key of each role that ``root`` names.

        Raises:
            ConfigurationError: It is not here, readable by others, or not the key that ``root`` names.
        """
        return {role: self._signer(root, role) for role in roles}

    def available(self, root: Root, roles: Iterable[str]) -> Signers:
        """Those of ``signers`` that are here; a role whose key is lost or unusable is left out."""
        found: Signers = {}
        for role in roles:
            with suppress(ConfigurationError):
                found[role] = self._signer(root, role)
        return found

    def remove_unused(self, root: Root) -> None:
        """Delete private keys that ``root`` does not name; raises MachineError."""
        used = {self._file(role, keyid) for role in ROLES for keyid in root.roles[role].keyids}
        with atomic.disk_errors(self.folder, "remove replaced keys"):
            for file in self.folder.glob("*.pem"):
                if file not in used:
                    file.unlink()

    def _signer(self, root: Root, role: str) -> CryptoSigner:
        keyid = root.roles[role].keyids[0]
        file, public = self._file(role, keyid), root.keys[keyid]
        if not file.is_file():
            cure = "bring it back from where it is kept" if role == "root" else "restore it, or run 'releases rotate'"
            raise ConfigurationError(f"{file}: expected the private key of role {role}, it is missing; {cure}")
        if file.stat().st_mode & 0o077:
            raise ConfigurationError(f"{file}: a private key that others can read; check who had it, then chmod 600")
        try:
            private = load_pem_private_key(file.read_bytes(), None)
            if isinstance(private, Ed25519PrivateKey) and isinstance(public, SSlibKey):
                return CryptoSigner(private, public)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm, KeyMismatchError) as error:
            raise ConfigurationError(
                f"{file}: not the private key of role {role} that root.json names: {error}"
            ) from None
        raise ConfigurationError(f"{file}: expected an Ed25519 key")

    def _file(self, role: str, keyid: str) -> Path:
        return self.folder / f"{role}-{keyid[:16]}.pem"
