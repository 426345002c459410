"""One run's ServerApp, as a process of its own: ``python -m server.serverapp --folder FOLDER``, the token on stdin.

Started by ``server.executor``. Invariants: the token is on no command line and in no log; the app that runs is the
one of the run's bundle; nothing is installed for it.
"""

import argparse
import sys
from pathlib import Path

from fedretrain.errors import FedretrainError
from fedretrain.processes import die_with_parent, flower_home

from .federation import Federation
from .superlink import superlink_address

TOKEN_LIMIT = 4096


def main() -> None:
    """Run the app and exit."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="server.serverapp", description="Run the ServerApp of one task.")
    parser.add_argument("--folder", type=Path, default=Path("federation"))
    token = sys.stdin.readline(TOKEN_LIMIT).strip()
    try:
        federation = Federation.open(parser.parse_args().folder)
        address = superlink_address(federation)
        ca = federation.ca.read_bytes()
    except (FedretrainError, OSError) as error:
        raise SystemExit(str(error)) from None
    if not token:
        raise SystemExit("expected a task's token on the standard input; this is started by server.executor alone")
    flower_home(federation.flower_home)
    from .flowerside import run_serverapp

    run_serverapp(address, ca, token)


if __name__ == "__main__":
    main()
