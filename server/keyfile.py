"""Private keys as files: PKCS#8 PEM, readable by their owner alone, encrypted where there is a passphrase.

Invariants: a key that others can read is not used; a passphrase comes from the file that FEDRETRAIN_PASSPHRASE_FILE
names, or from a person who was asked (``use_passphrase``), and never from a command line or the environment itself; no
error repeats it.
"""

import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from fedretrain import atomic
from fedretrain.errors import ConfigurationError

VARIABLE: Final = "FEDRETRAIN_PASSPHRASE_FILE"
ENCRYPTED: Final = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
LIMIT: Final = 1023  # bytes; the most OpenSSL takes


_given: dict[str, bytes] = {}  # what a person typed; for this process only


def use_passphrase(secret: bytes) -> None:
    """Let this process use ``secret`` for every key, whatever the environment names."""
    _given[VARIABLE] = _checked(secret, "the passphrase")


def passphrase() -> bytes | None:
    """The passphrase of the keys; None where nothing gives one. Raises ConfigurationError as ``read_passphrase``."""
    name = os.environ.get(VARIABLE)
    return _given.get(VARIABLE) or (read_passphrase(Path(name)) if name else None)


def read_passphrase(path: Path) -> bytes:
    """The first line of a file that only its owner can read, or that systemd passes on; raises ConfigurationError."""
    try:
        if path.stat().st_mode & 0o077 and path.is_file() and not _credential(path):
            raise ConfigurationError(f"{path}: a passphrase that others can read; check who had it, then chmod 600")
        with path.open("rb") as file:
            line = file.readline(LIMIT + 3).rstrip(b"\r\n")
    except OSError as error:
        raise ConfigurationError(f"{path}: expected a file with the passphrase: {error.strerror or error}") from None
    return _checked(line, str(path))


def _credential(path: Path) -> bool:
    """Whether systemd made the file for this service alone; what it grants by access lists looks like a group's."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    return bool(folder) and path.resolve().is_relative_to(Path(folder).resolve())


def _checked(secret: bytes, where: str) -> bytes:
    if not 0 < len(secret) <= LIMIT:
        raise ConfigurationError(f"{where}: expected 1 to {LIMIT} bytes in the first line, got {len(secret)}")
    return secret


def write_key(path: Path, key: PrivateKeyTypes, secret: bytes | None = None) -> None:
    """Write a private key with mode 0600, encrypted where there is a secret; raises MachineError."""
    protection = BestAvailableEncryption(secret) if secret else NoEncryption()
    atomic.write_bytes(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection), mode=0o600)


def read_key(path: Path, secret: bytes | None = None) -> PrivateKeyTypes:
    """Read a private key; the secret is used where the key is encrypted.

    Raises:
        ConfigurationError: Missing, readable by others, damaged, encrypted without or with another secret.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigurationError(f"{path}: a private key that others can read; check who had it, then chmod 600")
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: expected a private key: {error.strerror or error}") from None
    encrypted = data.lstrip().startswith(ENCRYPTED)
    if encrypted and secret is None:
        raise ConfigurationError(
            f"{path}: encrypted; write the passphrase into a file that only you can read and name it in {VARIABLE}"
        )
    try:
        return load_pem_private_key(data, secret if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        cause = "not a private key, or the passphrase is another one" if encrypted else "not a private key"
        raise ConfigurationError(f"{path}: {cause}; restore it from a backup") from None
