"""Ties a process's life to the thread that started it, so that a SIGKILL of ours leaves nobody behind (Linux).

Use, for a command that is not ours: ``python -m simulations.lifeline PARENT_PID COMMAND ARGUMENT...``; the command
takes this process's place and keeps the tie. Elsewhere than on Linux the command is simply run.
"""

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with(parent: int, sent: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send ``sent`` when the thread of process ``parent`` that started this process ends."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, sent)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(0)


if __name__ == "__main__":
    end_with(int(sys.argv[1]), signal.SIGTERM)
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606  # the command stands on our own command line
