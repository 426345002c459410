"""On PYTHONPATH, this has processes of a running federation die at named steps, each once (``fedretrain.crashpoint``).

``DYING`` names a folder; its file ``MODULE`` lists the steps at which processes that run that module are to die, one
after the other. A step leaves the list when somebody died at it.
"""

import os
import sys
from pathlib import Path


def arm(orders: Path) -> None:
    """Have this process die at the first step of the list."""
    first, *others = orders.read_text(encoding="utf-8").split() or [""]
    end = os.kill

    def end_once(pid: int, number: int) -> None:
        if first and pid == os.getpid():
            orders.write_text("\n".join(others), encoding="utf-8")
        end(pid, number)

    if first:
        os.environ["FAULT_AT"] = first
        os.kill = end_once


if "DYING" in os.environ and "-m" in sys.orig_argv[:-1]:
    named = Path(os.environ["DYING"]) / sys.orig_argv[sys.orig_argv.index("-m") + 1]
    if named.is_file():
        arm(named)
