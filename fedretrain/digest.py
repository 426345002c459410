"""Canonical bytes and their SHA-256: what digests and signatures are taken over.

``canonical_json`` sorts keys, writes no white space and refuses NaN, so that equal values have equal bytes.
``weights_digest`` hashes arrays in order with dtype and shape in front of each one's little-endian bytes: the same
numbers have the same digest however they were stored (``.keras`` files differ at every save).
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no white space; raises ValueError on NaN or infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def sha256(data: bytes) -> str:
    """Lower-case hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of ``canonical_json(value)``."""
    return sha256(canonical_json(value))


class WeightsHash:
    """``weights_digest`` of arrays that come one after the other, each in one piece or in several."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def begin(self, dtype: str, shape: Sequence[int]) -> None:
        """The next array; its elements follow in C order."""
        self._hash.update(f"{dtype}{list(shape)};".encode())

    def add(self, elements: "NDArray[Any]") -> None:
        """Elements of the array that was begun."""
        import numpy as np

        little = np.ascontiguousarray(elements, dtype=elements.dtype.newbyteorder("<"))
        self._hash.update(little.reshape(-1).view(np.uint8).data)

    def hexdigest(self) -> str:
        """Of all that was added."""
        return self._hash.hexdigest()


def weights_digest(arrays: "Iterable[NDArray[Any]]") -> str:
    """SHA-256 over dtype, shape and little-endian C-order bytes of each array, in order."""
    found = WeightsHash()
    for array in arrays:
        found.begin(array.dtype.name, array.shape)
        found.add(array)
    return found.hexdigest()
