"""Bytes that are written once, one after the other, and then looked at: few of them in memory, many in a file.

Invariants: the file has no name, so that nobody else opens it and nothing of it is left when the process ends, however
it ends; what is looked at is mapped from it, and its pages are the system's to drop and to read again.
"""

import mmap
import os
import tempfile
from pathlib import Path
from typing import IO

from fedretrain import atomic

IN_MEMORY = 4 * 2**20  # bytes


class Bulk:
    """See the module docstring.

    Args:
        folder: Where the file is, if there has to be one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._few = bytearray()
        self._file: IO[bytes] | None = None
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Add bytes at the end; raises MachineError where the disk does not take them."""
        self.size += len(data)
        if self._file is None and self.size <= IN_MEMORY:
            self._few += data
            return
        with atomic.disk_errors(self._folder, "write a large message"):
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - lives as long as this
                _write(self._file, memoryview(self._few))
                self._few = bytearray()
            _write(self._file, memoryview(data))

    def read(self, start: int, count: int) -> bytes:
        """At most so many bytes from there on."""
        if self._file is None:
            return bytes(self._few[start : start + count])
        with atomic.disk_errors(self._folder, "read a large message"):
            return os.pread(self._file.fileno(), count, start)

    def view(self) -> memoryview:
        """All bytes, read-only; nothing is written after that. Valid for as long as anybody has it."""
        if self._file is None:
            return memoryview(self._few).toreadonly()
        with atomic.disk_errors(self._folder, "map a large message"):
            return memoryview(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))


def _write(file: IO[bytes], data: memoryview) -> None:
    """All of it; one call of the system may take less."""
    while len(data):
        data = data[file.write(data) :]
