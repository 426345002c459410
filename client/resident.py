"""What an update needs on the device, kept from one update to the next: a site's examples and the global values.

Invariants:

- What is kept changes no result. It belongs to one object, is known by that object's identity, and goes with it; so
  what was passed to ``train`` must not be written to for as long as it is passed again.
- Examples take at most the budget. What fits is resident, the least recently used goes first; what is larger than the
  whole budget is streamed: two pieces of it are in memory at a time.
"""

import weakref
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fedretrain.contract import Contract
from fedretrain.dataset import Dataset
from fedretrain.job import TrainSection

from .graph import Parts, Piece, examples_signature
from .labelled import incomplete, labels_and_weights, lacking
from .sampling import MIN_COUNT, Indices
from .selection import parted

Arrays = list[NDArray[Any]]


@dataclass
class Examples:
    """A site's examples, by the rows an update asks for; ``weighted``: whether they have sample weights."""

    data: "weakref.ref[Dataset]"
    contract: Contract
    tensors: Parts | None
    _filled: Parts | None = None
    splits: dict[tuple[int, float, float | None, str], tuple[Indices, Indices]] = field(default_factory=dict)

    def split(self, train: TrainSection, site: str) -> tuple[Indices, Indices]:
        """Rows to train on and rows to validate on, as ``selection.parted``, found out once; int32."""
        since = train.since.timestamp() if train.since else None
        key = (train.seed, train.validation_fraction, since, site)
        if key not in self.splits:
            parts = parted(self._data(), train, site)
            self.splits[key] = parts.mine.astype(np.int32), parts.held.astype(np.int32)
        return self.splits[key]

    def pieces(self, rows: Iterator[Indices]) -> Iterator[Piece]:
        """The examples of each array of rows, int32, in the order of the rows."""
        if self.tensors is not None:
            tensors = self.tensors
            return (Piece(tensors, chosen) for chosen in rows)
        return self._streamed(rows)

    @property
    def lacking(self) -> frozenset[str]:
        """Names of the outputs for which the site has no labels at all."""
        return self._labels[1]

    def unjudged(self, rows: Indices) -> frozenset[str]:
        """Names of the outputs for which too few of these rows have a label for a number about them to leave."""
        return lacking(self._data(), self.contract, rows, MIN_COUNT) if self._labels[0] else frozenset()

    def filled(self, rows: Iterator[Indices]) -> Iterator[Piece]:
        """As ``pieces``, to train and to evaluate on: a label that is missing is 0, and weighs nothing."""
        if not self._labels[0]:
            return self.pieces(rows)
        if self.tensors is None:
            return self._streamed(rows, each=True)
        if self._filled is None:
            parts = labels_and_weights(self._data(), self.contract, each=True)
            y, weights = ([tf.convert_to_tensor(array) for array in part] for part in parts)
            self._filled = self.tensors[0], y, weights
        tensors = self._filled
        return (Piece(tensors, chosen) for chosen in rows)

    @cached_property
    def _labels(self) -> tuple[bool, frozenset[str]]:
        """Whether any label is missing, and outputs that have none."""
        data = self._data()
        return incomplete(data, self.contract), lacking(data, self.contract)

    def _streamed(self, rows: Iterator[Indices], *, each: bool = False) -> Iterator[Piece]:
        data = self._data()
        weights = len(self.contract.outputs) if each else int(data.sample_weight is not None)
        feed = tf.data.Dataset.from_generator(
            lambda: (_parts(data.take(chosen), self.contract, each=each) for chosen in rows),
            output_signature=tuple(map(tuple, examples_signature(self.contract, weighted=weights))),
        )
        for x, y, w in feed.prefetch(1):
            count = int(tf.shape(x[0])[0])
            yield Piece((list(x), list(y), list(w)), np.arange(count, dtype=np.int32))

    def _data(self) -> Dataset:
        data = self.data()
        if data is None:
            raise RuntimeError("a site's examples went while they were used")
        return data


class Partitions:
    """The examples of many sites, the last used ones on the device.

    Args:
        budget: Bytes of examples on the device.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._kept: OrderedDict[int, tuple[Examples, int]] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(size for _, size in self._kept.values())

    def of(self, data: Dataset, contract: Contract) -> Examples:
        """The examples of ``data``, which the contract describes."""
        found = self._kept.get(id(data))
        if found and found[0].data() is data and (found[0].contract is contract or found[0].contract == contract):
            self._kept.move_to_end(id(data))
            return found[0]
        self._kept.pop(id(data), None)
        return self._add(data, contract)

    def _add(self, data: Dataset, contract: Contract) -> Examples:
        parts, key, kept = _parts(data, contract), id(data), self._kept
        size = sum(array.nbytes for part in parts for array in part)
        resident = size <= self._budget
        while resident and kept and self.nbytes + size > self._budget:
            kept.popitem(last=False)
        tensors: Parts | None = None
        if resident:
            x, y, weights = ([tf.convert_to_tensor(array) for array in part] for part in parts)
            tensors = x, y, weights
        found = Examples(weakref.ref(data, lambda gone: self._forget(key, gone)), contract, tensors)
        kept[key] = found, size if resident else 0
        return found

    def _forget(self, key: int, gone: Any) -> None:
        if key in self._kept and self._kept[key][0].data is gone:
            del self._kept[key]


class Received:
    """The global values of a round on the device, for as long as the arrays they came in live."""

    def __init__(self) -> None:
        self._of: list[weakref.ref[Any]] = []
        self._tensors: list[Any] = []

    def tensors(self, arrays: Arrays) -> list[Any]:
        """One tensor for each array, the same ones for the same arrays."""
        same = len(arrays) == len(self._of) and all(r() is a for r, a in zip(self._of, arrays, strict=True))
        if not same:
            self._tensors = [tf.convert_to_tensor(array) for array in arrays]
            self._of = [weakref.ref(array, lambda _: self._forget()) for array in arrays]
        return self._tensors

    def _forget(self) -> None:
        self._of, self._tensors = [], []


def _parts(
    data: Dataset, contract: Contract, *, each: bool = False
) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    x = tuple(data.x[spec.name] for spec in contract.inputs)
    return x, *labels_and_weights(data, contract, each=each)
