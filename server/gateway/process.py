"""The gateway's process: TLS, the listening socket, and what has to be done once a second.

Invariants: TLS is at least 1.2; a renewed certificate is used from the next connection on, without a restart; SIGTERM
and SIGINT let what is under way finish for a few seconds. ``state/gateway.json`` says where it listens::

    {"host": "0.0.0.0", "pid": 4711, "port": 8443}

With FEDRETRAIN_LOG_LEVEL=DEBUG in the environment each call is logged: site, name, bytes in and out, seconds taken.

What it answers stands in ``server.gateway.app``, how connections are taken in in ``server.gateway.door``. Use::

    python -m server.gateway --folder FOLDER
"""

import argparse
import asyncio
import logging
import os
import resource
import socket
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import uvicorn

from fedretrain import atomic
from fedretrain.errors import ConfigurationError, FedretrainError, MachineError
from fedretrain.processes import die_with_parent
from server.federation import Federation
from server.keyfile import passphrase, read_key

from .app import Gateway
from .counters import Counters
from .door import IDLE_S, Door, Gone, PatientProtocol
from .forward import SuperLink

_GRACE_S = 3
_BACKLOG = 512
_FILES_BESIDE = 100  # open files other than connections
_log = logging.getLogger(__name__)


class Certificate:
    """The gateway's certificate and key as a TLS context that follows the files.

    Raises:
        ConfigurationError: They are missing, damaged, or the key is encrypted and its passphrase not at hand.
    """

    def __init__(self, federation: Federation) -> None:
        self._files = federation.certificate, federation.private_key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._state: list[int] = []
        self._load()

    def follow(self) -> None:
        """Load the files again if they have changed; the ones before stay in use where that fails."""
        try:
            if self._stamp() != self._state:
                self._load()
                _log.info("the renewed certificate is in use")
        except (ConfigurationError, OSError) as error:
            _log.error("%s; the certificate as it was before stays in use", error)
            with suppress(OSError):
                self._state = self._stamp()  # said once

    def _load(self) -> None:
        certificate, key = self._files
        read_key(key, passphrase())  # says what is wrong with it; OpenSSL would ask the terminal
        try:
            self._state = self._stamp()
            self.context.load_cert_chain(certificate, key, lambda: passphrase() or b"")
        except OSError as error:
            raise ConfigurationError(
                f"{certificate}: expected the gateway's certificate, for the key {key.name}: {error}; run "
                "'fedretrain server renew'"
            ) from None

    def _stamp(self) -> list[int]:
        return [file.stat().st_mtime_ns for file in self._files]


class Process(uvicorn.Server):
    """uvicorn behind our own door.

    Args:
        federation: Whose gateway it is.

    Raises:
        ConfigurationError: A file of the federation is missing or damaged.
        MachineError: The address is not free, or the disk cannot be written to.
    """

    def __init__(self, federation: Federation) -> None:
        limits = federation.settings.limits
        self._certificate = Certificate(federation)
        self._counters = Counters(federation.sites, time.time)
        self._superlink = SuperLink(federation.superlink_port, federation.ca)
        app = Gateway(federation, self._superlink, self._counters)
        self._listener = _listen(federation.settings.host, federation.settings.port)
        self._connections = _allow_files(limits.connections)
        _write_place(federation.gateway, self._listener)
        super().__init__(_configuration(app))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the door."""
        del sockets
        await self.lifespan.startup()

        def protocol(gone: Gone) -> asyncio.Protocol:
            return PatientProtocol(gone, config=self.config, server_state=self.server_state, app_state={})

        door = Door(self._listener, self._certificate.context, protocol, self._connections)
        self.servers = [cast(Any, door)]
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        """What has to be done once a second; uvicorn calls it ten times as often."""
        if counter % 10 == 0:
            self._counters.write()
            self._certificate.follow()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let what is under way finish, then close everything."""
        await super().shutdown(sockets)
        await self._superlink.close()
        self._counters.write()


def _configuration(app: Gateway) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=PatientProtocol,
        interface="asgi3",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=_GRACE_S,
        forwarded_allow_ips="127.0.0.1",  # a proxy on this machine may say for whom it asks
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        raise MachineError(
            f"the gateway cannot listen on {host}:{port}: {error.strerror or error}; end what uses the port, or change "
            "'listen' in federation.toml"
        ) from None


def _allow_files(connections: int) -> int:
    """Raise the limit of open files for so many connections, each with one to SuperLink; how many there is room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + _FILES_BESIDE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    room = connections if soft == resource.RLIM_INFINITY else (soft - _FILES_BESIDE) // 2
    return max(1, min(connections, room))


def _write_place(file: Path, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    atomic.make_folder(file.parent, mode=0o700)
    atomic.write_json(file, {"host": host, "pid": os.getpid(), "port": port})


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; the exit code."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m server.gateway", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the federation's folder")
    folder = parser.parse_args(arguments).folder
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs each request
    if os.environ.get("FEDRETRAIN_LOG_LEVEL") == "DEBUG":
        logging.getLogger(__package__).setLevel(logging.DEBUG)
    try:
        process = Process(Federation.open(folder))
    except FedretrainError as error:
        _log.error("%s", error)
        return error.exit_code
    process.run()
    return 0
