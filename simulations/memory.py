"""Memory that the engine and its workers see alike: the global values go out through it, sums come back.

Invariants:

- It has no name: nothing is left behind however a process ends, and nobody else can open it. Workers inherit its file
  descriptor.
- The engine alone changes its size, and never makes it smaller. What lies where is said in frames
  (``simulations.frames``); nobody writes to what another may be reading.

(``multiprocessing.shared_memory`` would start a process beside each worker, and leave its blocks behind after SIGKILL.)
"""

import math
import mmap
import os
import tempfile
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.errors import MachineError

Arrays = list[NDArray[Any]]
Shape = tuple[tuple[int, ...], np.dtype[Any]]
ALIGNMENT = 64  # bytes; a cache line, and what TensorFlow likes


class Memory:
    """The bytes behind one file descriptor.

    Args:
        handle: The descriptor, from ``Memory.create`` in the process that began.

    Attributes:
        handle: As given.
    """

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self._map: mmap.mmap | None = None
        self._size = 0

    @classmethod
    def create(cls) -> "Memory":
        """Memory of no size; raises MachineError where the machine has none to give."""
        try:
            if hasattr(os, "memfd_create"):  # Linux
                return cls(os.memfd_create("fedretrain"))
            with tempfile.TemporaryFile() as file:
                return cls(os.dup(file.fileno()))
        except OSError as error:
            raise MachineError(f"cannot share memory with worker processes: {error}") from error

    def close(self) -> None:
        """Give it up in this process; arrays made of it stay valid."""
        self._map = None
        os.close(self.handle)

    def reserve(self, size: int) -> None:
        """Make it at least ``size`` bytes large; raises MachineError."""
        if size <= self._size:
            return
        try:
            os.ftruncate(self.handle, size)
        except OSError as error:
            raise MachineError(f"cannot share {size} bytes with worker processes: {error}") from error
        self._size = size

    def arrays(self, at: int, shapes: Sequence[Shape]) -> Arrays:
        """Arrays over the bytes from ``at`` on, one behind the other as ``extent`` counts them.

        Raises:
            MachineError: The machine cannot map them.
        """
        end = at + extent(shapes)
        if self._map is None or len(self._map) < end:
            try:
                self._map = mmap.mmap(self.handle, os.fstat(self.handle).st_size)
            except (OSError, ValueError) as error:
                raise MachineError(f"cannot map the memory shared with worker processes: {error}") from error
        return [
            np.ndarray(shape, dtype, buffer=self._map, offset=at + offset)
            for (shape, dtype), offset in zip(shapes, _offsets(shapes), strict=False)
        ]


def extent(shapes: Sequence[Shape]) -> int:
    """Bytes that arrays of these shapes and dtypes take, each aligned."""
    return _offsets(shapes)[-1]


def shapes_of(arrays: Iterable[NDArray[Any]]) -> list[Shape]:
    """Shape and dtype of each."""
    return [(array.shape, array.dtype) for array in arrays]


def _offsets(shapes: Sequence[Shape]) -> list[int]:
    sizes = (math.prod(shape) * dtype.itemsize for shape, dtype in shapes)
    return [0, *accumulate(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)]
