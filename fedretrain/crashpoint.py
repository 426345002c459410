"""Named places where a process can be told to die, so that recovery is tested by real deaths and not by mocks.

Invariant: without the environment variable ``FAULT_AT`` a crash point does nothing.
"""

import os
import signal

CRASH_POINTS = (
    "aggregated",  # the round's result exists in memory only
    "checkpoint-written",  # the temporary file is complete, the checkpoint is not in place
    "checkpoint-committed",
    "gate-started",
    "gate-finished",  # the verdict is written down, nothing is released
    "release-staged",
    "release-moved",
    "metadata-written",
    "timestamp-swapped",
    "trust-recorded",
    "result-written",
)


def crash_point(name: str) -> None:
    """Kill this process with SIGKILL where ``FAULT_AT`` equals ``name``, one of ``CRASH_POINTS``."""
    if os.environ.get("FAULT_AT") == name:
        os.kill(os.getpid(), signal.SIGKILL)
