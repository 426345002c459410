"""What a site's processes leave for each other in ``home.run``.

::

    secret     shared by SuperNode and executor, made by whichever starts first
    port       of the SuperNode's Runtime API, while it answers
    problem    one line while something keeps the site from taking part, for ``up`` and ``log``
    node.json  the number the server knows this SuperNode by, and on which machine; outlives a start
    objects/   what large messages are made of, while the SuperNode has them
    up.lock    held by ``client up``; has its process id

Invariant: a file is there whole or not at all, readable by this user alone.
"""

import json
import os
import secrets
import shutil
import socket
from contextlib import suppress
from pathlib import Path

from fedretrain import atomic
from fedretrain.errors import MachineError

from .home import Home

LOCK = "up.lock"
OBJECTS = "objects"
_NODE = "node.json"
_PROBLEM = "problem"
_KEPT = (LOCK, _NODE)
_OWN = 0o600


def clear(home: Home) -> None:
    """Remove what processes that no longer run left behind; raises MachineError."""
    with atomic.disk_errors(home.run, "clear away what an earlier start left"):
        for path in home.run.iterdir():
            if path.name in _KEPT:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def secret(home: Home) -> bytes:
    """The shared secret, made where there is none; raises MachineError."""
    with atomic.disk_errors(home.secret, "make the secret of SuperNode and executor"):
        with suppress(FileExistsError):
            fresh = home.run / f".secret.{os.getpid()}"
            fresh.touch(_OWN)
            fresh.write_text(secrets.token_hex(32), encoding="ascii")
            try:
                home.secret.hardlink_to(fresh)
            finally:
                fresh.unlink()
        return home.secret.read_bytes().strip()


def write_port(home: Home, port: int) -> None:
    """Say where the Runtime API answers; raises MachineError."""
    atomic.write_bytes(home.port, f"{port}\n".encode(), mode=_OWN)


def read_port(home: Home) -> int | None:
    """Where the Runtime API answers, None where no SuperNode has said so."""
    try:
        return int(home.port.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def write_problem(home: Home, line: str) -> None:
    """Say what keeps the site from taking part; nothing does where ``line`` is empty. Never raises."""
    with suppress(OSError, MachineError):
        if line:
            atomic.write_bytes(home.run / _PROBLEM, f"{line}\n".encode(), mode=_OWN)
        else:
            (home.run / _PROBLEM).unlink(missing_ok=True)


def read_problem(home: Home) -> str:
    """What keeps the site from taking part, empty where nothing does."""
    try:
        return (home.run / _PROBLEM).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def remember_node(home: Home, node: int) -> None:
    """Keep the number the server gave this SuperNode; raises MachineError."""
    atomic.write_json(home.run / _NODE, {"machine": _machine(), "node": str(node)}, mode=_OWN)


def last_node(home: Home) -> int:
    """The number of the SuperNode that ran here last; 0 where unknown, or where this folder was copied from elsewhere.

    A copy of a site's folder must not sign off the original.
    """
    try:
        found = json.loads((home.run / _NODE).read_text(encoding="utf-8"))
        return int(found["node"]) if found["machine"] == _machine() else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _machine() -> str:
    """What tells this machine from others."""
    with suppress(OSError):
        return Path("/etc/machine-id").read_text(encoding="ascii").strip()
    return socket.gethostname()
