"""Arrays in files that only who holds a key can read or change unnoticed: AES-256-GCM, the key in a file of its own.

Invariants:

- Nothing is on the disk in the clear, not for a moment: what is written is encrypted in memory.
- Every file has a nonce of its own, 96 random bits for each time it is written. With one key that is safe for far more
  files than a site ever writes (NIST SP 800-38D, 8.3: 2^32).
- What is read is what was written under that name for that purpose, bit for bit, or it counts as damaged. That a whole
  older file was put back in place of a newer one cannot be seen.

Format of a file: the line ``fedretrain.vault/1``, 12 bytes nonce, ciphertext and tag of an npz; the line and what the
file is bound to are authenticated with it. The key is 32 random bytes in a file with mode 0600.
"""

import io
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from fedretrain import atomic

MAGIC = b"fedretrain.vault/1\n"
_KEY_BYTES = 32
_NONCE_BYTES = 12
_OWN = 0o600

Arrays = dict[str, NDArray[Any]]


class DamagedVault(Exception):
    """A file that is not what was written, or that another key encrypted."""


class Vault:
    """Files under one key.

    Args:
        key: The key's file; made when something is first written. Without it everything written before is lost.
    """

    def __init__(self, key: Path) -> None:
        self._key = key

    def put(self, path: Path, arrays: Mapping[str, NDArray[Any]], bound: str) -> None:
        """Write a file, all or nothing.

        Args:
            path: The file; its folder exists.
            arrays: Its content.
            bound: What the file is bound to; ``get`` has to be asked with the same.

        Raises:
            MachineError: The disk does not take it.
        """
        plain = io.BytesIO()
        np.savez(plain, allow_pickle=False, **arrays)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        cipher = AESGCM(self._made_key()).encrypt(nonce, plain.getbuffer(), MAGIC + bound.encode())
        atomic.write_bytes(path, MAGIC + nonce + cipher, mode=_OWN)

    def get(self, path: Path, bound: str) -> Arrays | None:
        """The arrays of a file; None where there is no such file.

        Raises:
            DamagedVault: It was changed, or encrypted with another key or for something else.
        """
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DamagedVault(error.strerror) from None
        start = len(MAGIC) + _NONCE_BYTES
        try:
            key = self._key.read_bytes()
            about = content[: len(MAGIC)] + bound.encode()
            plain = AESGCM(key).decrypt(content[len(MAGIC) : start], content[start:], about)
            with np.load(io.BytesIO(plain), allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except (OSError, ValueError, InvalidTag):  # ValueError: no key of 32 bytes, or no nonce
            raise DamagedVault("not what was written, or the key is another") from None

    def _made_key(self) -> bytes:
        """The key; a new one where there is none, or none that can be one."""
        with atomic.disk_errors(self._key, "read or write the key"):
            with suppress(FileNotFoundError):
                key = self._key.read_bytes()
                if len(key) == _KEY_BYTES:
                    return key
            key = secrets.token_bytes(_KEY_BYTES)
            atomic.make_folder(self._key.parent, mode=0o700)
            atomic.write_bytes(self._key, key, mode=_OWN)
            return key
