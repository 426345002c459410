"""The site's SuperNode: ``python -m client.supernode --home DIR``. The only process of a site that uses the network.

Invariants: it reads no data and no site.toml; whatever keeps it from taking part stands as one line in its log and in
``home.run/problem``, and is gone from there as soon as the server answers again.
"""

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fedretrain.errors import FedretrainError, MachineError
from fedretrain.processes import QUIET_FLOWER, die_with_parent, return_memory

from . import runfiles
from .home import Home

if TYPE_CHECKING:
    from fedretrain.membership import Kit

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 30.0  # between two attempts to be let in
STEADY_S = 60.0  # a SuperNode that was connected for so long tries again at once
ATTEMPTS = 20
_CHECK = "run 'fedretrain client check'"
_CERTIFICATE = {
    "hostname mismatch": "the certificate of the server at {address} is for another name; ask its operator to renew it"
    " with this name, or for a kit with the right address",
    "ip address mismatch": "the certificate of the server at {address} is for another address; ask its operator to"
    " renew it with this one, or for a kit with the right address",
    "has expired": "the certificate of the server at {address} has expired (this machine's time is {time}); ask its"
    " operator to renew it",
    "not yet valid": "the certificate of the server at {address} is not valid yet: this machine's time is {time};"
    " set its clock",
    "certificate": "what answers at {address} is not the server of this site's kit: its certificate is by another"
    f" authority; {_CHECK}, and do not go on before you know who answers there",
}
_NETWORK = (
    (
        ("name or service not known", "nodename", "getaddrinfo", "name resolution"),
        "the name {host} is not known to DNS",
    ),
    (("refused",), "nothing listens at {address}"),
    (("timed out", "timeout"), "{address} does not answer in time"),
    (("unreachable", "no route"), "this machine has no way to {address}"),
    (("wrong version number", "record layer"), "what answers at {address} does not speak TLS; wrong port?"),
)


class Reporter:
    """Tells ``home.run`` and the log how the SuperNode fares."""

    def __init__(self, home: Home, address: str) -> None:
        self._home, self._address, self._problem = home, address, runfiles.read_problem(home)

    def listening(self, port: int) -> None:
        """Where the executor finds it."""
        runfiles.write_port(self._home, port)

    def connected(self, node: int) -> None:
        """Admitted."""
        runfiles.remember_node(self._home, node)
        log.info("connected to %s as node %d", self._address, node)

    def answered(self) -> None:
        """Whatever was wrong is over."""
        self._say("")

    def refused(self, status: int, text: str) -> None:
        """One line with the server's words."""
        self._say(refusal(self._address, status, text))

    def unreachable(self, error: Exception) -> None:
        """One line with the likely cause."""
        self._say(f"{network_problem(self._address, str(error))}; tried again until it works")

    def _say(self, line: str) -> None:
        if line == self._problem:
            return
        self._problem = line
        runfiles.write_problem(self._home, line)
        if line:
            log.error("%s", line)
        else:
            log.info("the server answers")


def refusal(address: str, status: int, text: str) -> str:
    """What a refusal means and what to do; ``text`` is the server's, empty where it gave none."""
    said = f": {text}" if text else ""
    if status in {502, 503, 504}:
        why = text or "the server behind it does not answer"
        return f"the gateway at {address} cannot pass the site's requests on: {why}; tried again until it can"
    if status == 413:
        return f"the server takes no message of that size{said}; its operator can raise body_limit_bytes"
    if status == 429:
        return f"the server finds the requests of this site too many{said}; tried again after a while"
    if status == 401 and not text:
        return (
            f"the server at {address} does not accept this site's signature: the site is not admitted, or this"
            f" machine's clock ({_time()}) is more than 4 s ahead of the server's; {_CHECK}"
        )
    if "activat" in text.lower():
        return (
            f"the server at {address} does not let this site in{said} It may still count it as connected, which ends"
            " within 60 s of an unclean stop; or another machine uses this site's key; or the site is not admitted."
            " Tried again until it is let in"
        )
    return f"the server at {address} refused this site: {text or f'HTTP status {status}'}"


def network_problem(address: str, text: str) -> str:
    """The likely cause of a request that did not arrive, from the text of its error."""
    low = text.lower()
    facts = {"address": address, "host": address.rpartition(":")[0], "time": _time()}
    if "certificate" in low:
        return next(words for sign, words in _CERTIFICATE.items() if sign in low).format(**facts)
    for signs, words in _NETWORK:
        if any(sign in low for sign in signs):
            return words.format(**facts)
    return f"{address} cannot be reached ({' '.join(text.split()) or 'no reason given'})"


def run(home: Home) -> None:
    """Run until a signal comes; where the server refuses the site, try again, at longer and longer intervals.

    Raises:
        ConfigurationError: The site has not joined, or its key is damaged.
        MachineError: The disk does not take what must be written; or it was tried ``ATTEMPTS`` times and is for a
            fresh process to try again, as each attempt leaves some memory behind.
    """
    pause = FIRST_PAUSE_S
    for _ in range(ATTEMPTS):
        started = time.monotonic()
        try:
            _attempt(home)
        except MachineError as error:
            runfiles.write_problem(home, runfiles.read_problem(home) or str(error))
            log.error("%s", error)  # noqa: TRY400 - its text says it all
        if time.monotonic() - started > STEADY_S:
            pause = FIRST_PAUSE_S
        time.sleep(pause)
        pause = min(2 * pause, LAST_PAUSE_S)
    raise MachineError(f"not let in after {ATTEMPTS} attempts; a new process tries again")


def _attempt(home: Home) -> None:
    from .identity import load_node_key

    kit: Kit = home.load_kit()
    key = load_node_key(home)
    home.make()
    os.environ.update({**QUIET_FLOWER, "FLWR_HOME": str(home.run / "flwr")})
    from flwr.supercore.logger import update_console_handler

    from .flowerside.node import Node, run_supernode

    update_console_handler(timestamps=True, colored=False)
    objects = home.run / runfiles.OBJECTS
    node = Node(kit.address, kit.ca.encode(), key, runfiles.secret(home), runfiles.last_node(home), objects)
    try:
        run_supernode(node, Reporter(home, kit.address))
    finally:
        home.port.unlink(missing_ok=True)


def main() -> None:
    """The process."""
    die_with_parent()
    return_memory()
    home = home_argument("client.supernode", "Run a site's SuperNode.")
    try:
        run(home)
    except FedretrainError as error:
        raise SystemExit(f"SuperNode: {error}") from None


def home_argument(name: str, description: str) -> Home:
    """The site's folder from this process' command line; sets up its log."""
    import argparse

    parser = argparse.ArgumentParser(prog=name, description=description)
    parser.add_argument("--home", type=Path, default=None, help="the site's folder, by default ~/.fedretrain")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for chatty in ("httpx", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("flwr").propagate = False  # it has a handler of its own
    return Home.at(parser.parse_args().home)


def _time() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z")


if __name__ == "__main__":
    main()
