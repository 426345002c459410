"""What a run folder is of where it is not a retraining: a file in it says so.

Apart from what does the work, so that commands that only look need no Flower.
"""

from typing import Final

from fedretrain import atomic
from fedretrain.runfolder import RunFolder

_CHECK: Final = "check"
_TRIAL: Final = "trial"


def mark_check(folder: RunFolder) -> None:
    """Make the run of this folder a check, before anything starts it; raises MachineError where the disk fails."""
    atomic.write_bytes(folder.root / _CHECK, b"")


def is_check(folder: RunFolder) -> bool:
    """Whether the run of this folder is a check (``server.checking``)."""
    return (folder.root / _CHECK).is_file()


def mark_trial(folder: RunFolder) -> None:
    """Make the run of this folder a trial, before anything starts it; raises MachineError where the disk fails."""
    atomic.write_bytes(folder.root / _TRIAL, b"")


def is_trial(folder: RunFolder) -> bool:
    """Whether the run of this folder is a trial of a search (``server.trial``)."""
    return (folder.root / _TRIAL).is_file()
