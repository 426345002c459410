"""A federation with two sites, its gateway in a thread, and a SuperLink that says what reached it."""

import base64
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from fedretrain.membership import Kit, read
from fedretrain.processes import free_port
from server import provision
from server.federation import Federation, Limits, Settings
from server.gateway import Process

PULL = "/v1/fleet/pull-messages"
PUSH = "/v1/fleet/push-object"
ACTIVATE = "/v1/fleet/activate-node"
SITES = ("hospital-a", "hospital-b")

Answer = Callable[[str, bytes], tuple[int, bytes]]


def make_federation(folder: Path, names: tuple[str, ...] = (), **limits: Any) -> tuple[Federation, dict[str, Path]]:
    """A federation on a free port of this machine, and a complete kit for each of ``SITES``."""
    folder.mkdir(exist_ok=True)
    address = f"127.0.0.1:{free_port()}"
    settings = Settings(name="trial", address=address, names=names, listen=address, limits=Limits(**limits))
    federation = provision.init(folder / "federation", settings)
    (folder / "kits").mkdir()
    kits = provision.make_kits(federation, SITES, folder / "kits")
    return federation, dict(zip(SITES, kits, strict=True))


def node_key(kit: Path) -> EllipticCurvePrivateKey:
    """The private node key in a complete kit."""
    secrets = read(kit, Kit).secrets
    assert secrets is not None
    key = load_ssh_private_key(secrets.node_key.encode(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    return key


def signed(key: EllipticCurvePrivateKey, ahead_s: float = 0.0) -> dict[str, str]:
    """The three headers of a SuperNode whose clock is that far ahead."""
    timestamp = (datetime.now(UTC) + timedelta(seconds=ahead_s)).isoformat()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = key.sign(timestamp.encode(), ECDSA(hashes.SHA256()))
    return {
        "flwr-public-key": base64.b64encode(public).decode(),
        "flwr-timestamp": timestamp,
        "flwr-signature": base64.b64encode(signature).decode(),
    }


@contextlib.contextmanager
def running(server: uvicorn.Server) -> Iterator[None]:
    """The server in a thread, accepting when the block begins and ended with it."""
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.started
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@dataclass
class StubSuperLink:
    """Takes every request over TLS as the federation's SuperLink would, remembers it, and answers as told."""

    federation: Federation
    answer: Answer = lambda path, _: (200, path.encode())
    seen: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    async def _app(
        self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        if scope["path"] != "/health":
            self.seen.append((scope["path"], headers, bytes(body)))
        status, content = self.answer(scope["path"], bytes(body))
        fields = [(b"content-type", b"application/protobuf"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": content})

    @contextlib.contextmanager
    def running(self) -> Iterator["StubSuperLink"]:
        port = free_port()
        config = uvicorn.Config(
            self._app,
            port=port,
            ssl_certfile=self.federation.loopback_certificate,
            ssl_keyfile=self.federation.loopback_key,
            interface="asgi3",
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        with running(uvicorn.Server(config)):
            self.federation.superlink_port.write_text(str(port))
            yield self


@contextlib.contextmanager
def gateway(federation: Federation) -> Iterator[httpx.Client]:
    """The federation's gateway, and a client that trusts what its sites trust."""
    with running(Process(federation)), client(federation) as caller:
        yield caller


def client(federation: Federation) -> httpx.Client:
    """A client of the gateway."""
    return httpx.Client(
        base_url=f"https://{federation.settings.address}", verify=trusting(federation), timeout=30, trust_env=False
    )


def wait_for(holds: Callable[[], bool], within_s: float = 10) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def trusting(federation: Federation) -> ssl.SSLContext:
    """TLS as a site has it."""
    return ssl.create_default_context(cafile=str(federation.ca))


def plain(federation: Federation) -> socket.socket:
    """A TCP connection to the gateway."""
    return socket.create_connection((federation.settings.host, federation.settings.port), timeout=10)


def raw(federation: Federation) -> ssl.SSLSocket:
    """A TLS connection to the gateway."""
    return trusting(federation).wrap_socket(plain(federation), server_hostname="127.0.0.1")


def ends(connection: socket.socket) -> bool:
    """Whether the other side closes the connection within ten seconds."""
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def served_certificate(federation: Federation) -> bytes:
    """The gateway's certificate, DER."""
    with raw(federation) as connection:
        return connection.getpeercert(binary_form=True) or b""


def drips_for(connection: socket.socket, seconds: float) -> bool:
    """Whether the other side bears a request that comes in a byte at a time for so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            connection.sendall(b"G")
        except OSError:
            return False
        time.sleep(0.1)
    return True


def served(federation: Federation) -> bool:
    """Whether another connection is taken."""
    try:
        with raw(federation) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            return b"200 OK" in connection.recv(1000)
    except OSError:
        return False


def until_refused(ask: Callable[[], int]) -> list[int]:
    """The statuses of questions that are asked until one is too many."""
    statuses = [ask()]
    while statuses[-1] != 429:
        assert len(statuses) < 500
        statuses.append(ask())
    return statuses
