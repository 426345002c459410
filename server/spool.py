"""Updates of one round on disk, for what needs all of them at once.

One file per site, in the run folder's ``spool``: the arrays' bytes one after the other, as they are in memory on this
machine. Nothing outlives the round: files are removed when it ends, and those of a killed process when the next round
begins. Reading goes through memory maps, so that memory stays bounded by what the reader takes at a time.

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

CHUNK_BYTES = 256 << 20  # of updates in memory at a time


class Spool:
    """A place for the updates of one round.

    Args:
        folder: Exists, and holds nothing else.
        specs: The variables of every update, in order.
        chunk_bytes: Bound on what ``stacks`` holds in memory at a time; default ``CHUNK_BYTES``.

    Raises:
        MachineError: What an earlier process left cannot be removed.
    """

    def __init__(self, folder: Path, specs: Sequence[VariableSpec], chunk_bytes: int | None = None) -> None:
        self._folder = folder
        self._specs = tuple(specs)
        self._offsets = [0, *accumulate(spec.nbytes for spec in specs)]
        self._chunk_bytes = chunk_bytes or CHUNK_BYTES
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

    def stacks(self, sites: Sequence[str], position: int) -> Iterator[NDArray[Any]]:
        """One variable of several sites, flat, in pieces: [sites, k] with the sites in the order given.

        Raises:
            MachineError: A file cannot be read.
        """
        flats = [self._flat(site, position) for site in sites]
        width = max(1, self._chunk_bytes // (len(sites) * flats[0].itemsize))
        for start in range(0, flats[0].size, width):
            yield np.stack([flat[start : start + width] for flat in flats])

    def _flat(self, site: str, position: int) -> NDArray[Any]:
        spec, path = self._specs[position], self._files[site]
        dtype = numpy_dtype(spec.dtype)
        if spec.nbytes == 0:
            return np.empty(0, dtype)
        with atomic.disk_errors(path, "read"):
            raw = np.memmap(path, np.uint8, "r", offset=self._offsets[position], shape=(spec.nbytes,))
        return np.asarray(raw).view(dtype)
