"""int8: one byte for each value and a scale for each block of values, rounded at random so that nothing is biased.

Of a variable with n values, cut into blocks of ``block`` values in C order, the last one shorter::

    float32     ceil(n / block) scales s = m / 127, m the block's largest magnitude; 0 where m < 127 * 2^-126
    int8        n values q = floor(v / s + u), u uniform in [0, 1), held within [-127, 127]; 0 where s is 0

Bytes: n + 4 ceil(n / block). Error: the decoded v' = q s has |v' - v| <= (1 + 2^-15) s, where s is the block's, and
its mean over u is v but for float32's rounding; where s is 0, v' is 0. One scale for a whole variable would let its
largest value decide how coarse all the others are, at a third of the length and more of a heavy-tailed update.

D. Alistarh and others: QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding. NeurIPS 2017,
https://arxiv.org/abs/1610.02132 (stochastic rounding, and scales for buckets of values)
"""

from typing import ClassVar

import numpy as np
from pydantic import Field

from .base import CHUNK, Bytes, Codec, Floats, broken, largest

_STEPS = np.float32(127)


class Int8(Codec):
    """The setting ``block`` trades bytes, 4 / block of a value more, for precision."""

    name: ClassVar[str] = "int8"
    block: int = Field(256, ge=16, le=65_536, description="values that share a scale")

    def _size(self, count: int) -> int:
        return count + 4 * self._blocks(count)

    def _blocks(self, count: int) -> int:
        return -(-count // self.block)

    def _pack(self, values: Floats, payload: Bytes, seed: int) -> None:
        largest(values)
        start = 4 * self._blocks(values.size)
        scales, steps = payload[:start].view("<f4"), payload[start:].view(np.int8)
        random = np.random.default_rng(seed)
        blocks = max(1, CHUNK // self.block)
        for first in range(0, scales.size, blocks):
            at = slice(first * self.block, (first + blocks) * self.block)
            piece = self._rows(values[at])
            scale = _scales(np.abs(piece).max(axis=1))
            scales[first : first + blocks] = scale
            divisor = np.where(scale > 0, scale, np.float32(np.inf))[:, None]
            rounded = np.floor(piece / divisor + random.random(piece.shape, np.float32))
            steps[at] = np.clip(rounded, -_STEPS, _STEPS).reshape(-1)[: values[at].size]

    def _unpack(self, payload: Bytes, values: Floats) -> None:
        start = 4 * self._blocks(values.size)
        scales, steps = payload[:start].view("<f4"), payload[start:].view(np.int8)
        if not (np.isfinite(scales).all() and (scales >= 0).all()):
            broken(self, "expected scales that are finite and not negative")
        if (steps == np.int8(-128)).any():
            broken(self, "expected steps from -127 to 127")
        blocks = max(1, CHUNK // self.block)
        for first in range(0, scales.size, blocks):
            at = slice(first * self.block, (first + blocks) * self.block)
            whole = values[at].size // self.block
            np.multiply(
                steps[at][: whole * self.block].reshape(whole, self.block),
                scales[first : first + whole, None],
                out=values[at][: whole * self.block].reshape(whole, self.block),
            )
        rest = values.size % self.block
        if rest:
            values[-rest:] = steps[-rest:] * scales[-1]

    def _rows(self, values: Floats) -> Floats:
        """[blocks, block], filled up with zeros."""
        missing = -values.size % self.block
        return np.pad(values, (0, missing)).reshape(-1, self.block) if missing else values.reshape(-1, self.block)


def _scales(most: Floats) -> Floats:
    """The scale of each block from its largest magnitude; never so large that 127 of it overflow."""
    scale = most / _STEPS
    scale[scale < np.finfo(np.float32).tiny] = 0
    with np.errstate(over="ignore"):
        return np.where(np.isinf(scale * _STEPS), np.nextafter(scale, np.float32(0)), scale)
