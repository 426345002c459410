"""A site's folder for tests, its processes, and a coordinator that asks it over a SuperLink; no TensorFlow anywhere."""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest

from client import flowerside, identity, wire
from client.home import Home
from fedretrain import parcel
from fedretrain.contract import Contract, InputSpec, OutputSpec, VariableSpec, keys
from fedretrain.digest import sha256, weights_digest
from fedretrain.job import NamedConfig, TrainSection
from fedretrain.membership import Kit, public_key, public_text
from fedretrain.messages import BASE, PREPARE, TRAIN, BaseRequest, PrepareRequest, TrainRequest, pack
from fedretrain.processes import Child, clean_environment, module_command
from fedretrain.seal import About, request_claims, sealed, unsealed
from tests.server.fleet import Link, eventually

ROOT = Path(__file__).parents[2]
FEDERATION = "test"
SITE_TOML = """[data]
format = "npz"
path = "data.npz"
validation_fraction = 0.0

[trainer]
backend = "tests.client.numpy_backend:Backend"
nice = 0
"""


@dataclass(frozen=True)
class Job:
    """What the coordinator wants trained: one weight matrix [4, width] and a bias."""

    width: int = 1
    run: str = "run-1"
    coordinator: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def base(self) -> list[np.ndarray]:
        return [np.zeros((4, self.width), "float32"), np.zeros((self.width,), "float32")]

    @property
    def contract(self) -> Contract:
        return Contract(
            inputs=(InputSpec(name="x", shape=(4,), dtype="float32"),),
            outputs=(OutputSpec(name="y", shape=(1,), kind="regression", loss="mse"),),
            preprocessing=None,
            architecture=sha256(b"{}"),
            base=weights_digest(self.base),
            variables=tuple(VariableSpec(shape=a.shape, dtype="float32", rule="train") for a in self.base),
        )

    def request(self, kind: str, round_: int = 1) -> RecordDict:
        """An unsigned request."""
        arrays = dict(zip(keys(range(2)), self.base, strict=True))
        if kind == PREPARE:
            train = TrainSection(optimizer=NamedConfig(name="sgd"), loss="mse", metrics=())
            strategy = NamedConfig(name="fedavg")
            return pack(
                PrepareRequest(run=self.run, contract=self.contract, architecture="{}", train=train, strategy=strategy)
            )
        if kind == BASE:
            return pack(BaseRequest(run=self.run, base=self.contract.base), arrays)
        digest = weights_digest(self.base)
        order = TrainRequest(run=self.run, round=round_, contract=self.contract.digest, globals_digest=digest)
        return pack(order, arrays)

    def signed(self, kind: str, site: str, round_: int = 1, lifetime_s: float = 60) -> RecordDict:
        """The request as it comes from the network."""
        return parcel.parcelled(self.message(kind, site, round_, lifetime_s))

    def message(self, kind: str, site: str, round_: int = 1, lifetime_s: float = 60) -> RecordDict:
        """The signed request, in no parcel."""
        number = round_ if kind == TRAIN else 0
        about = About(federation=FEDERATION, message_type=kind, run=self.run, round=number, site=site)
        claims = request_claims(about, lifetime_s)
        return sealed(self.request(kind, round_), claims, self.coordinator)


def joined(folder: Path, link: Link | None, job: Job, bundle: str = "0" * 64) -> Home:
    """The folder of the site "north" after ``join``, with 20 examples."""
    home = Home.at(folder)
    asked = identity.request(home, "north")
    kit = Kit(
        federation=FEDERATION,
        site="north",
        address=link.address if link else "localhost:1",
        ca=link.ca.decode() if link else "",
        coordinator=public_text(job.coordinator),
        root="{}",
        node_key=asked.node_key,
        signing_key=asked.signing_key,
        bundle=bundle,
    )
    kit.write(home.kit)
    home.site.write_text(SITE_TOML)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 4)).astype("float32")
    np.savez(folder / "data.npz", x=x, y=(x @ np.ones((4, 1))).astype("float32"))
    home.make()
    return home


def process(home: Home, module: str, **env: str) -> Child:
    """One of a site's processes, not started."""
    name = module.rpartition(".")[2]
    path = clean_environment(PYTHONPATH=str(ROOT), **env)
    return Child(name, module_command(module, "--home", home.root), home.log / f"{name}.log", path)


@contextmanager
def started(*children: Child) -> Iterator[None]:
    """Children that run within the block."""
    try:
        for child in children:
            child.start()
        yield
    finally:
        for child in reversed(children):
            child.ask_to_stop()
        for child in reversed(children):
            child.stop(3.0)


UP = (
    "import sys, pathlib, client.home, client.up; sys.exit(client.up.main(client.home.Home(pathlib.Path(sys.argv[1]))))"
)


def up(home: Home, **env: str) -> Child:
    """``client up`` as a child, not started."""
    path = clean_environment(PYTHONPATH=str(ROOT), **env)
    return Child("up", [sys.executable, "-P", "-c", UP, str(home.root)], home.log / "up.log", path)


class Coordinator:
    """Asks one site over a SuperLink and reads its answers."""

    def __init__(self, link: Link, home: Home, job: Job, bundle: bytes, node: int) -> None:
        self._home, self._job, self._node = home, job, node
        self._grid = link.grid(bundle)
        self._grid.limit(200_000_000)
        self._over = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def close(self) -> None:
        """Let the run die."""
        self._over.set()

    def online(self) -> bool:
        """Whether the SuperLink takes the site for connected."""
        return self._node in self._grid.get_node_ids()

    def ask(self, kind: str, round_: int = 1, within_s: float = 60.0) -> str:
        """Put a request; returns the message's id."""
        content = self._job.signed(kind, self._home.load_kit().site, round_, within_s)
        message = Message(content, self._node, kind, ttl=within_s, group_id=str(round_))
        [sent] = list(self._grid.push_messages([message]))
        return sent

    def answer(self, message_id: str, within_s: float = 60.0) -> dict[str, Any]:
        """The body of the answer, its seal checked, and "metrics"."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            for reply in self._grid.pull_messages([message_id]):
                return self._read(reply)
            time.sleep(0.05)
        raise AssertionError(f"no answer in {within_s} s\n{self.logs()}")

    def put(self, kind: str, round_: int = 1, within_s: float = 60.0) -> dict[str, Any]:
        """Ask and wait for the answer."""
        return self.answer(self.ask(kind, round_, within_s), within_s)

    def logs(self) -> str:
        """What the site's processes printed."""
        return "\n".join(f"== {f.name}\n{f.read_text()}" for f in sorted(self._home.log.glob("*.log")))

    def _beat(self) -> None:
        """Keep the run alive: Flower gives it up after a minute without."""
        while not self._over.wait(10):
            with suppress(httpx.HTTPError, RuntimeError):
                self._grid._grid._runtime_client.SendTaskHeartbeat(SendTaskHeartbeatRequest())

    def _read(self, reply: Message) -> dict[str, Any]:
        if reply.has_error():
            return {"kind": "error", "code": int(reply.error.code)}
        return opened(reply.content, self._home)


def pieces(content: RecordDict, **about: Any) -> Iterator[bytes]:
    """A question about this message, as the executor sends it; ``about`` are fields of its header."""
    head, arrays = parcel.split(content)
    records = flowerside.to_bytes(head)
    header = wire.Question(size=len(records), bulk=sum(map(len, arrays)), **about)
    return wire.pieces(header, records, arrays)


def message_in(letter: wire.Letter) -> RecordDict:
    """The message that a letter brings."""
    return parcel.joined(flowerside.from_bytes(letter.records), letter.bulk.view())


def opened(content: RecordDict, home: Home) -> dict[str, Any]:
    """The body of a site's answer, and "metrics"; "unsigned" where it has no seal."""
    content = parcel.opened(content)
    signed = "seal" in content
    rest = unsealed(content, public_key(home.load_kit().signing_key))[1] if signed else content
    return opened_unsigned(rest) | {"unsigned": not signed, "metrics": dict(rest.get("metrics", {}))}


def opened_unsigned(content: RecordDict) -> dict[str, Any]:
    """The body of a message."""
    body = content["body"]
    assert isinstance(body, ConfigRecord)
    found: dict[str, Any] = json.loads(str(body["json"]))
    return found


def wait_until_online(coordinator: Coordinator, within_s: float = 60.0) -> None:
    """Wait for the site; fails with its logs."""
    assert eventually(coordinator.online, within_s), coordinator.logs()


def federation(folder: Path, link: Link, job: Job, bundle: bytes, pinned: str = "") -> tuple[Home, Coordinator]:
    """A joined site and a coordinator in the middle of a run with this bundle; the site pins it, or ``pinned``."""
    home = joined(folder, link, job, pinned or sha256(bundle))
    node = link.control().register(identity.request(home, "north").node_key, "north")
    return home, Coordinator(link, home, job, bundle, node)


def environment(**values: object) -> Mapping[str, str]:
    """Settings of the numpy backend."""
    return {f"BACKEND_{name.upper()}": str(value) for name, value in values.items()} | {"HOME": os.environ["HOME"]}
