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
    "delivered",  # the sites that are connected have the release, or have said why not
    "result-written",
    "release-received",  # at a site: written down, nothing verified
    "release-placed",  # at a site: complete in its folder, the old one in use
    "release-installed",  # at a site: in use, not yet answered
)


def crash_point(name: str) -> None:
    """Kill this process with SIGKILL where ``FAULT_AT`` equals ``name``, one of ``CRASH_POINTS``."""
    if os.environ.get("FAULT_AT") == name:
        os.kill(os.getpid(), signal.SIGKILL)
