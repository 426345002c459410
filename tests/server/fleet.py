"""A SuperLink of its own for tests, a run on it, and sites whose replies are written by hand, byte by byte."""

import hashlib
import io
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto, run_from_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node as ProtoNode
from flwr.proto.runtime_pb2 import PullTaskInputRequest
from flwr.supercore.constant import HEAD_BODY_DIVIDER, HEAD_VALUE_DIVIDER
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedretrain.processes import Child, module_command
from server.certificates import authority_certificate, new_key, pem, server_certificate
from server.federation import Federation
from server.flowerside import Control, Runtime
from server.guarded import GuardedGrid
from server.keyfile import write_key
from server.superlink import superlink_address

PATIENCE_S = 120.0  # for a process to start on a busy machine
APP = """from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    {body}
"""
SETTINGS = """[project]
name = "{name}"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "test"
[tool.flwr.app.components]
serverapp = "{module}:app"
clientapp = "{module}:app"
[tool.flwr.app.config]
word = ""
"""


def eventually(check: Callable[[], bool], within_s: float = PATIENCE_S) -> bool:
    """Whether the check comes true in time."""
    deadline = time.monotonic() + within_s
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def make_federation(folder: Path) -> Federation:
    """As much of a federation's folder as its SuperLink and executor need."""
    for name in ("keys", "tls", "state/log"):
        (folder / name).mkdir(parents=True)
    (folder / "federation.toml").write_text('name = "test"\naddress = "localhost:8443"\n')
    (folder / "roster.json").write_text('{"format": "fedretrain.roster/1", "members": []}')
    federation = Federation.open(folder)
    now, key, authority_key = datetime.now(UTC), new_key(), new_key()
    authority = authority_certificate("test", authority_key, now)
    federation.ca.write_bytes(pem(authority))
    certificate = server_certificate(("127.0.0.1", "localhost"), key.public_key(), authority, authority_key, now)
    federation.loopback_certificate.write_bytes(pem(certificate))
    write_key(federation.loopback_key, key)
    return federation


def make_bundle(folder: Path, body: str, name: str = "probe", module: str = "probe_app") -> bytes:
    """A Flower app bundle whose ServerApp does what ``body`` says."""
    from flwr.cli.build import build_fab_from_disk

    source = folder / f"{module.replace('.', '/')}.py"
    source.parent.mkdir(parents=True, exist_ok=True)
    if source.parent != folder:
        (source.parent / "__init__.py").touch()
    (folder / "pyproject.toml").write_text(SETTINGS.format(name=name, module=module))
    source.write_text(APP.format(body=body))
    (folder / "LICENSE").write_text("none")
    return build_fab_from_disk(folder)


class Link:
    """The SuperLink's process."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        command = module_command("server.superlink", "--folder", federation.folder)
        self.child = Child("superlink", command, federation.log / "superlink.log")

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.child.start()
        if not eventually(self._answers):
            raise AssertionError((self.federation.log / "superlink.log").read_text())

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        assert self.child.pid
        os.killpg(self.child.pid, signal.SIGKILL)
        self.child.stop()

    @property
    def ca(self) -> bytes:
        return self.federation.ca.read_bytes()

    @property
    def address(self) -> str:
        return superlink_address(self.federation)

    def control(self) -> Control:
        """A client of the Control API."""
        return Control(self.address, self.ca)

    def runtime(self) -> Runtime:
        """A client of the Runtime API, with the secret."""
        return Runtime(self.address, self.ca, self.federation.secret.read_bytes())

    def grid(self, bundle: bytes) -> GuardedGrid:
        """Start a run and be its ServerApp."""
        control, runtime = self.control(), self.runtime()
        run_id = control.start_run(bundle, {})
        task = runtime.acquire()
        assert task is not None
        assert task.run_id == run_id
        grid = HttpGrid(self.address, root_certificates=self.ca, token=task.token)
        given = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        grid.set_run(run_from_proto(given.run))
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, run_id
        TaskIdentity.node_id = given.context.node_id
        return GuardedGrid(grid)

    def _answers(self) -> bool:
        if not self.child.alive:
            return True  # a person reads the log sooner than that
        return self.federation.superlink_port.exists() and self.control().answers()


@contextmanager
def running(federation: Federation) -> Iterator[Link]:
    """A SuperLink for the block."""
    link = Link(federation)
    try:
        link.start()
        yield link
    finally:
        link.child.stop(3.0)


@dataclass(frozen=True)
class Raw:
    """An object as it travels: a kind, children, and any bytes one likes."""

    kind: str
    body: bytes
    children: Sequence["Raw"] = field(default=())

    @property
    def content(self) -> bytes:
        ids = ",".join(dict.fromkeys(child.id for child in self.children))
        head = HEAD_VALUE_DIVIDER.join([self.kind, ids, str(len(self.body))])
        return head.encode() + HEAD_BODY_DIVIDER + self.body

    @property
    def id(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def tree(self) -> ObjectTree:
        children = {child.id: child.tree() for child in self.children}
        return ObjectTree(object_id=self.id, children=children.values())

    def all(self) -> dict[str, bytes]:
        """Contents by id, children first, as sites send them."""
        found: dict[str, bytes] = {}
        for child in self.children:
            found.update(child.all())
        return {**found, self.id: self.content}


def raw_array(data: bytes, *, repeated: int = 1, dtype: str = "float32", stype: str = "numpy.ndarray") -> Raw:
    """An array of three elements in one piece, which is named as often as one likes."""
    meta = {"dtype": dtype, "shape": [3], "stype": stype, "arraychunk_ids": [0] * repeated}
    return Raw("Array", json.dumps(meta).encode(), [Raw("ArrayChunk", data)])


def raw_records(arrays: Mapping[str, Raw], others: Mapping[str, Raw] | None = None) -> Raw:
    """A RecordDict with one ArrayRecord, "arrays"."""
    names = {name: array.id for name, array in arrays.items()}
    record = Raw("ArrayRecord", json.dumps(names).encode(), list({a.id: a for a in arrays.values()}.values()))
    records = {"arrays": record, **(others or {})}
    return Raw("RecordDict", json.dumps({n: r.id for n, r in records.items()}).encode(), list(records.values()))


def npy(array: np.ndarray) -> bytes:
    """An npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


class Site:
    """A site that speaks Fleet by itself."""

    def __init__(self, link: Link, name: str) -> None:
        self.name = name
        key = ec.generate_private_key(ec.SECP384R1())
        public = key.public_key()
        self.openssh = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        self.pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        signer = NodeAuthHttpInterceptor(key, public)
        self.fleet = FleetHttpClient.from_server_address(link.address, False, link.ca, [signer])
        self.node_id = 0

    def join(self, control: Control) -> "Site":
        """Register and come online."""
        self.node_id = control.register(self.openssh, self.name)
        self.fleet.ActivateNode(ActivateNodeRequest(public_key=self.pem, heartbeat_interval=1000))
        return self

    def asked(self) -> Message:
        """The message that waits for this site."""
        found: list[ProtoMessage] = []

        def pull() -> bool:
            found.extend(self.fleet.PullMessages(PullMessagesRequest(node=self._node)).messages_list)
            return bool(found)

        assert eventually(pull, 10.0)
        return message_from_proto(found[0])

    def answer(self, asked: Message, records: Raw, *, withhold: Callable[[Raw], bool] = lambda _: False) -> Raw:
        """Reply with objects made by hand; those of which ``withhold`` is true are announced and not sent."""
        reply = Message(_nothing(), reply_to=asked)
        body = ProtoMessage(metadata=message_to_proto(remove_content_from_message(reply)).metadata)
        body.metadata.message_id = ""
        root = Raw("Message", body.SerializeToString(deterministic=True), [records])
        self._send(root, reply, {o.id for o in _objects(root) if withhold(o)})
        return root

    def _send(self, root: Raw, reply: Message, withheld: set[str]) -> None:
        proto = message_to_proto(remove_content_from_message(reply))
        proto.metadata.message_id = root.id
        request = PushMessagesRequest(node=self._node, messages_list=[proto], message_object_trees=[root.tree()])
        response = self.fleet.PushMessages(request)
        self.session = response.session_id
        contents = root.all()
        for object_id in contents:
            if object_id in response.objects_to_push and object_id not in withheld:
                self.send_object(reply.metadata.run_id, object_id, contents[object_id])

    def send_object(self, run_id: int, object_id: str, content: bytes) -> bool:
        """Send one object of the last answer; whether it was taken."""
        request = PushObjectRequest(
            node=self._node, run_id=run_id, object_id=object_id, object_content=content, session_id=self.session
        )
        return bool(self.fleet.PushObject(request).stored)

    @property
    def _node(self) -> ProtoNode:
        return ProtoNode(node_id=self.node_id)


def _objects(root: Raw) -> Iterator[Raw]:
    yield root
    for child in root.children:
        yield from _objects(child)


def _nothing() -> "Message":
    from flwr.app import RecordDict

    return RecordDict()
