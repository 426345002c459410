"""The federation's SuperLink, as a process of its own: ``python -m server.superlink --folder FOLDER``.

Invariants:

- It listens on 127.0.0.1 alone, with TLS, and lets SuperNodes in by their keys: sites reach it through the gateway.
- A task is given to whoever has FOLDER/state/secret (0600) and to nobody else.
- It comes back on the port it had, with all it knew, as long as nobody else took that port meanwhile: ServerApps and
  SuperNodes that are running go on.
"""

import argparse
import os
import random
import secrets
import socket
from contextlib import suppress
from pathlib import Path

from fedretrain import atomic
from fedretrain.errors import FedretrainError, MachineError
from fedretrain.processes import die_with_parent, flower_home

from .federation import Federation

HOST = "127.0.0.1"
PORTS = range(20_000, 32_000)  # below those that systems give to outgoing connections


def superlink_address(federation: Federation) -> str:
    """host:port of the SuperLink; raises MachineError where it was never started."""
    try:
        return f"{HOST}:{int(federation.superlink_port.read_text(encoding='ascii'))}"
    except (OSError, ValueError):
        raise MachineError(
            f"{federation.superlink_port}: the SuperLink has no port yet; start it with 'fedretrain server up'"
        ) from None


def choose_port(path: Path) -> int:
    """The port that ``path`` names, another one where that is taken, written to ``path``; raises MachineError."""
    with suppress(OSError, ValueError):
        last = int(path.read_text(encoding="ascii"))
        if _is_free(last):
            return last
    for port in random.sample(PORTS, 100):
        if _is_free(port):
            atomic.write_bytes(path, f"{port}\n".encode())
            return port
    raise MachineError(
        f"no free port between {PORTS.start} and {PORTS.stop} on {HOST}; stop what does not belong there"
    )


def ensure_secret(path: Path) -> None:
    """Make the secret of SuperLink and executor where there is none; raises MachineError."""
    if not path.is_file():
        atomic.write_bytes(path, secrets.token_hex(32).encode(), mode=0o600)


def arguments(federation: Federation, port: int) -> list[str]:
    """Flower's command line."""
    f = federation
    return [
        *("--host", HOST, "--port", str(port), "--database", str(f.database)),
        *("--ssl-certfile", str(f.loopback_certificate), "--ssl-keyfile", str(f.loopback_key)),
        *("--ssl-ca-certfile", str(f.ca), "--enable-supernode-auth"),
        *("--isolation", "process", "--superexec-auth-secret-file", str(f.secret)),
        "--disable-runtime-dependency-installation",
    ]


def main() -> None:
    """Run until a signal comes."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="server.superlink", description="Run a federation's SuperLink.")
    parser.add_argument("--folder", type=Path, default=Path("federation"))
    try:
        federation = Federation.open(parser.parse_args().folder)
        atomic.make_folder(federation.flower_home, mode=0o700)
        ensure_secret(federation.secret)
        port = choose_port(federation.superlink_port)
    except FedretrainError as error:
        raise SystemExit(str(error)) from None
    os.umask(0o077)
    os.chdir(federation.state)
    flower_home(federation.flower_home, FLWR_LOG_LEVEL=os.environ.get("FLWR_LOG_LEVEL", "WARNING"))
    from .flowerside import run_superlink

    run_superlink(arguments(federation, port))


def _is_free(port: int) -> bool:
    """As a server sees it: connections that a killed one left behind do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except (OSError, OverflowError):
            return False
    return True


if __name__ == "__main__":
    main()
