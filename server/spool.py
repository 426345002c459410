"""Updates of one round on disk, for what needs all of them at once.

One file per site, in the run folder's ``spool``: the arrays' bytes one after the other, as they are in memory on this
machine. Nothing outlives the round: files are removed when it ends, and those of a killed process when the next round
begins. A whole update is read through a memory map; pieces of all updates are read into memory, within a bound.

Use::

    with Spool(folder.spool, specs) as spool:
        spool.put("a", update)
        for array in spool.arrays("a"): ...
        for stack in spool.stacks(["a", "b"], position=0): ...      # [sites, k]
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain import atomic
from fedretrain.contract import VariableSpec
from strategies.base import Arrays, numpy_dtype
from strategies.coordinates import width

CHUNK_BYTES = 256 << 20  # of updates in memory at a time, where the reader allows as much


class Spool:
    """A place for the updates of one round.

    Args:
        folder: Exists, and holds nothing else.
        specs: The variables of every update, in order.

    Raises:
        MachineError: What an earlier process left cannot be removed.
    """

    def __init__(self, folder: Path, specs: Sequence[VariableSpec]) -> None:
        self._folder = folder
        self._specs = tuple(specs)
        self._offsets = [0, *accumulate(spec.nbytes for spec in specs)]
        self._files: dict[str, Path] = {}
        self.clear()

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove everything; raises MachineError."""
        with atomic.disk_errors(self._folder, "clear away updates"):
            for file in self._folder.glob("*.update"):
                file.unlink(missing_ok=True)
        self._files.clear()

    def put(self, site: str, update: Arrays) -> None:
        """Write one site's update; raises MachineError where the disk is full."""
        path = self._folder / f"{len(self._files):06d}.update"
        with atomic.disk_errors(path), path.open("wb") as file:
            for array in update:
                file.write(np.asarray(array, order="C").reshape(-1).view(np.uint8).data)
        self._files[site] = path

    def arrays(self, site: str) -> Arrays:
        """One site's update as read-only views of its file; raises MachineError."""
        return [self._flat(site, i).reshape(spec.shape) for i, spec in enumerate(self._specs)]

    def stacks(self, sites: Sequence[str], position: int, memory_bytes: int = CHUNK_BYTES) -> Iterator[NDArray[Any]]:
        """One variable of several sites, flat, in pieces: [sites, k] with the sites in the order given.

        k is a multiple of ``strategies.coordinates.width``, but for the last piece. A piece is overwritten by the next.

        Args:
            sites: Whose.
            position: Which variable.
            memory_bytes: Bound on a piece, unless that is less than a block of coordinates takes.

        Raises:
            MachineError: A file cannot be read, or is cut short.
        """
        spec = self._specs[position]
        dtype = numpy_dtype(spec.dtype)
        size, block = spec.nbytes // dtype.itemsize, width(len(sites))
        blocks = max(1, min(memory_bytes, CHUNK_BYTES) // (len(sites) * dtype.itemsize * block))
        wide = min(blocks * block, size)
        memory = np.empty(len(sites) * wide, dtype)
        for start in range(0, size, max(1, wide)):
            end = min(start + wide, size)
            piece = memory[: len(sites) * (end - start)].reshape(len(sites), end - start)
            for row, site in zip(piece, sites, strict=True):
                self._read(self._files[site], self._offsets[position] + start * dtype.itemsize, row)
            yield piece

    def _read(self, path: Path, offset: int, into: NDArray[Any]) -> None:
        """Fill ``into`` from a file; no memory map, whose pages would count as memory in use."""
        free = into.view(np.uint8).data
        with atomic.disk_errors(path, "read"), path.open("rb", buffering=0) as file:
            file.seek(offset)
            while free:
                read = file.readinto(free)
                if not read:
                    raise OSError(f"expected {len(free)} more bytes")
                free = free[read:]

    def _flat(self, site: str, position: int) -> NDArray[Any]:
        spec, path = self._specs[position], self._files[site]
        dtype = numpy_dtype(spec.dtype)
        if spec.nbytes == 0:
            return np.empty(0, dtype)
        with atomic.disk_errors(path, "read"):
            raw = np.memmap(path, np.uint8, "r", offset=self._offsets[position], shape=(spec.nbytes,))
        return np.asarray(raw).view(dtype)
