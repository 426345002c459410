"""Private keys as files: PKCS#8 PEM, readable by their owner alone, encrypted where there is a passphrase.

Invariants: a key that others can read is not used; a passphrase comes from the file that FEDRETRAIN_PASSPHRASE_FILE
names and never from a command line or the environment itself; no error repeats it.
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


def passphrase() -> bytes | None:
    """The passphrase of the keys; None where FEDRETRAIN_PASSPHRASE_FILE names no file. Raises ConfigurationError."""
    name = os.environ.get(VARIABLE)
    return read_passphrase(Path(name)) if name else None


def read_passphrase(path: Path) -> bytes:
    """The first line of a file that only its owner can read; raises ConfigurationError."""
    try:
        if path.stat().st_mode & 0o077 and path.is_file():
            raise ConfigurationError(f"{path}: a passphrase that others can read; check who had it, then chmod 600")
        with path.open("rb") as file:
            line = file.readline(LIMIT + 3).rstrip(b"\r\n")
    except OSError as error:
        raise ConfigurationError(f"{path}: expected a file with the passphrase: {error.strerror or error}") from None
    if not 0 < len(line) <= LIMIT:
        raise ConfigurationError(f"{path}: expected a passphrase of 1 to {LIMIT} bytes in the first line")
    return line


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
