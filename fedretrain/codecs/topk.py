"""topk: of each variable the values of largest magnitude; what is left out is kept and added to the next update.

Of a variable with n values, k = ceil(share * n)::

    uint32      k positions in C order, ascending
    float32     the k values there

Bytes: 8 k. Ties at the k-th magnitude go to the lowest positions. Error of one message: the values sent are exact, and
those left out are no larger than any of them, so ||v' - v||^2 <= (1 - k / n) ||v||^2. Over the rounds nothing is lost:
a site adds what it left out to its next update (error feedback), and what it has yet to send is the last round's rest.

S. U. Stich, J.-B. Cordonnier, M. Jaggi: Sparsified SGD with Memory. NeurIPS 2018, https://arxiv.org/abs/1809.07599
"""

from fractions import Fraction
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from .base import Bytes, Codec, Floats, broken, largest

_MOST_VALUES = 2**32  # that a position can name


class TopK(Codec):
    """The setting ``share`` decides the bytes: 2 * share of what float32 takes."""

    name: ClassVar[str] = "topk"
    feedback: ClassVar[bool] = True
    share: float = Field(0.01, gt=0, lt=0.5, description="share of each variable's values that travels")

    def kept(self, count: int) -> int:
        """How many of ``count`` values travel; ``share`` is read as the decimal it is written as."""
        return -int(-Fraction(str(self.share)) * count // 1)

    def _size(self, count: int) -> int:
        return 8 * (self.kept(count) if count <= _MOST_VALUES else count)

    def _pack(self, values: Floats, payload: Bytes, seed: int) -> None:  # noqa: ARG002 - nothing is drawn
        largest(values)
        kept = self.kept(values.size)
        positions = _largest_positions(values, kept)
        payload[: 4 * kept].view("<u4")[:] = positions
        payload[4 * kept :].view("<f4")[:] = values[positions]

    def _unpack(self, payload: Bytes, values: Floats) -> None:
        kept = self.kept(values.size)
        positions = payload[: 4 * kept].view("<u4")
        if positions[-1] >= values.size or not (positions[1:] > positions[:-1]).all():
            broken(self, f"expected ascending positions below {values.size}")
        values[:] = 0
        values[positions] = payload[4 * kept :].view("<f4")


def _largest_positions(values: Floats, kept: int) -> NDArray[np.intp]:
    """Where the ``kept`` largest magnitudes are, ascending; one copy of the values is made and no more."""
    copy = np.abs(values)
    copy.partition(-kept)
    least = copy[-kept]  # a value is the same on every machine; which of equal ones come first is not
    del copy
    chosen = (values > least) | (values < -least)
    equal = np.flatnonzero((values == least) | (values == -least))
    chosen[equal[: kept - np.count_nonzero(chosen)]] = True
    return np.flatnonzero(chosen)
