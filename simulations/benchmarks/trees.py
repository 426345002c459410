"""Processes to be measured: each started with all below it, its CPU time read, and ended as a whole.

CPU time is that of every process below, the ended ones included, from ``/proc``; so this is for Linux.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from simulations.supervisor import below

_TICKS = os.sysconf("SC_CLK_TCK")
_PATIENCE_S = 30.0


class Tree:
    """A command and everything that comes of it.

    Args:
        command: What to run.
        folder: Where, with its output in ``NAME.log``.
        name: What it is called.
        environment: Its environment.
    """

    def __init__(self, command: Sequence[str], folder: Path, name: str, environment: Mapping[str, str]) -> None:
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            self._root = subprocess.Popen(
                [sys.executable, "-P", "-m", "simulations.supervisor", *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=dict(environment),
                process_group=0,
            )

    @property
    def pid(self) -> int:
        """Of the process above all of them."""
        return self._root.pid

    @property
    def alive(self) -> bool:
        """Whether the command runs."""
        return self._root.poll() is None

    def cpu_seconds(self) -> float:
        """CPU time so far, of the living and of those that have ended."""
        total = 0.0
        for pid in (self._root.pid, *below(self._root.pid)):
            with contextlib.suppress(OSError):  # it ended meanwhile, and is in its parent's sum
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += sum(map(int, fields[11:15])) / _TICKS
        return total

    def end(self) -> None:
        """End it and everything below it."""
        if self._root.stdin is not None:
            self._root.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._root.wait(_PATIENCE_S)
        self._root.kill()
        self._root.wait()
