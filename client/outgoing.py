"""A site's update on its way to the disk: variable by variable, a large variable in pieces.

Invariants: the bytes, the arrays and the digest are those that ``fedretrain.messages.pack`` and ``weights_digest`` make
of the same values in memory; what is not finite never leaves.
"""

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fedretrain.digest import WeightsHash, weights_digest
from fedretrain.errors import DeclinedRequest
from fedretrain.parcel import array_of

from .bulk import Bulk

PIECE = 2**20  # elements
LARGE_BYTES = 16 * 2**20  # of an update; a smaller one is always made at once

Arrays = list[NDArray[Any]]


class Difference:
    """After minus before, of one variable, made when it is asked for.

    Args:
        after: Values.
        before: Values of the same shape and dtype.
    """

    def __init__(self, after: NDArray[Any], before: NDArray[Any]) -> None:
        self._after, self._before = after, before
        self.shape, self.dtype = after.shape, after.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All of it; raises DeclinedRequest ``training-diverged`` where a value is not finite."""
        flat = np.concatenate(list(self.pieces())) if math.prod(self.shape) else np.empty(0, self.dtype)
        return flat.reshape(self.shape).astype(dtype or self.dtype, copy=bool(copy))

    def pieces(self) -> Iterator[NDArray[Any]]:
        """All of it in C order, piece by piece, each flat; raises as above."""
        after, before = self._after.reshape(-1), self._before.reshape(-1)
        for start in range(0, after.size, PIECE):
            with np.errstate(over="ignore", invalid="ignore"):
                piece = after[start : start + PIECE] - before[start : start + PIECE]
            _check_finite(piece)
            yield piece


Update = Sequence[NDArray[Any] | Difference]


def is_large(arrays: Arrays) -> bool:
    """Whether these are too large to be in memory twice where that can be helped."""
    return sum(array.nbytes for array in arrays) > LARGE_BYTES


def difference(after: Arrays, before: Arrays) -> list[Difference]:
    """The update of all variables, made when it is used; until then both are as they are."""
    return [Difference(a, b) for a, b in zip(after, before, strict=True)]


def finite(update: Arrays) -> Arrays:
    """The update; raises DeclinedRequest ``training-diverged`` where a value is not finite."""
    for array in update:
        _check_finite(array)
    return update


def written(payloads: Iterable[tuple[str, NDArray[Any] | Difference]], bulk: Bulk) -> tuple[ArrayRecord, str]:
    """Arrays written one after the other, as they travel; the record of them, and their weights digest.

    Args:
        payloads: By key.
        bulk: Where they go; the record's arrays are views of it.

    Raises:
        MachineError: The disk does not take them.
        DeclinedRequest: As ``difference``.
    """
    digest, places = WeightsHash(), []
    for key, payload in payloads:
        start = bulk.size
        bulk.write(_header(payload))
        digest.begin(payload.dtype.name, payload.shape)
        for piece in payload.pieces() if isinstance(payload, Difference) else _cut(payload):
            digest.add(piece)
            bulk.write(piece.view(np.uint8).data)
        places.append((key, payload.dtype.name, tuple(payload.shape), start, bulk.size))
    view, arrays = bulk.view(), ArrayRecord()
    for key, dtype, shape, start, end in places:
        arrays[key] = array_of(dtype, shape, "numpy.ndarray", view[start:end])
    return arrays, digest.hexdigest()


def packed(payloads: Iterable[tuple[str, NDArray[Any] | Difference]]) -> tuple[ArrayRecord, str]:
    """As ``written``, in memory."""
    arrays = {key: np.asarray(payload, order="C") for key, payload in payloads}
    return ArrayRecord({key: Array(array) for key, array in arrays.items()}), weights_digest(arrays.values())


def _cut(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    flat = np.ascontiguousarray(array).reshape(-1)
    return (flat[start : start + PIECE] for start in range(0, flat.size, PIECE))


def _header(array: NDArray[Any] | Difference) -> bytes:
    """As ``numpy.save`` writes it."""
    text = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(text, described)
    return text.getvalue()


def _check_finite(values: NDArray[Any]) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(values.sum())  # finite only where every value is; one that is not may be a sum that overflows
    if not math.isfinite(total) and not np.isfinite(values).all():
        expected = "finite loss and weights; a lower learning rate may help"
        raise DeclinedRequest("training-diverged", "train", expected)
