"""Which run folders are of checks; apart from ``run``, so that commands that only look need no Flower."""

from fedretrain import atomic
from fedretrain.runfolder import RunFolder

MARKER = "check"
"""File in a run folder whose run is a check."""


def mark_check(folder: RunFolder) -> None:
    """Make the run of this folder a check, before anything starts it; raises MachineError where the disk fails."""
    atomic.write_bytes(folder.root / MARKER, b"")


def is_check(folder: RunFolder) -> bool:
    """Whether the run of this folder is a check."""
    return (folder.root / MARKER).is_file()
