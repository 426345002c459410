"""float16: half precision, scaled by a power of two so that small updates do not vanish and large ones do not overflow.

Of a variable with n values v and largest magnitude m > 0, written m = f * 2^x with f in [1/2, 1)::

    int16       k = 15 - x, which brings m into [2^14, 2^15); 0 where m is 0
    float16     n values v * 2^k, rounded to nearest, ties to even

Bytes: 2 n + 2. Error: the decoded v' has |v' - v| <= 2^-11 |v| + 2^-39 m + 2^-150; the second term is where a half is
subnormal, the third where a float32 is.
"""

import math
from typing import ClassVar

import numpy as np

from .base import CHUNK, Bytes, Codec, Floats, broken, largest

_LEAST = -113  # exponent that goes with the largest float32
_LARGEST = np.float32(32_752)  # largest half below 2^15
_FURTHEST = 256  # of an exponent; float32 needs up to 163
_NORMAL = 126  # exponent of the smallest normal float32, without its sign


class Float16(Codec):
    """Settings: none."""

    name: ClassVar[str] = "float16"

    def _size(self, count: int) -> int:
        return 2 * count + 2

    def _pack(self, values: Floats, payload: Bytes, seed: int) -> None:  # noqa: ARG002 - rounds to nearest
        most = largest(values)
        exponent = 15 - math.frexp(most)[1] if most else 0
        payload[:2] = np.array([exponent], "<i2").view(np.uint8)
        halves = payload[2:].view("<f2")
        for i in range(0, values.size, CHUNK):
            scaled = _scaled(values[i : i + CHUNK], exponent)
            # Rounded up to 2^15, a float32 next to the largest would overflow where it is decoded.
            halves[i : i + CHUNK] = np.clip(scaled, -_LARGEST, _LARGEST) if exponent == _LEAST else scaled

    def _unpack(self, payload: Bytes, values: Floats) -> None:
        exponent = int(payload[:2].view("<i2")[0])
        if abs(exponent) > _FURTHEST:
            broken(self, f"expected an exponent of at most {_FURTHEST}, got {exponent}")
        halves = payload[2:].view("<f2")
        for i in range(0, values.size, CHUNK):
            values[i : i + CHUNK] = _scaled(halves[i : i + CHUNK].astype(np.float32), -exponent)


def _scaled(values: Floats, exponent: int) -> Floats:
    """``values`` times 2 ** ``exponent``; by a multiplication, which is quicker, where that factor is a float32."""
    if abs(exponent) <= _NORMAL:
        return values * np.float32(2.0**exponent)
    return np.asarray(np.ldexp(values, exponent), np.float32)
