"""The executor's side of the SuperNode's Runtime API: one task at a time, never the bundle that comes with it.

Invariant: of the parts of a parcel (``fedretrain.parcel``), in which a large message's arrays are, no more than one at
a time is in memory, in either direction.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_body,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, pull_objects
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient

from client.bulk import Bulk
from fedretrain.errors import MachineError
from fedretrain.parcel import PART_BYTES, announced, part_name
from fedretrain.processes import Litter

from . import LONGEST_BACKOFF_S, SHORTEST_BACKOFF_S


class Runtime:
    """The executor's side of the Runtime API: one task at a time.

    Args:
        port: Of the SuperNode on 127.0.0.1.
        secret: Shared with it.
    """

    def __init__(self, port: int, secret: bytes) -> None:
        signing = SuperExecAuthHttpInterceptor(
            master_secret=secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"}
        )
        self._token: Any = None
        self._client = RuntimeHttpClient.from_server_address(
            server_address=f"127.0.0.1:{port}",
            insecure=True,
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="executor"), signing, self],
        )

    def intercept(self, context: Any, call_next: Any) -> Any:
        """Flower's hook: adds the token of the task in hand."""
        return call_next(context) if self._token is None else self._token.intercept(context, call_next)

    def acquire(self) -> "Task | None":
        """The next task, or None when there was none for a while; raises MachineError when the SuperNode is away."""
        self._token = None
        with _runtime_errors("ask for a task"):
            response = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        if not response.token:
            return None
        self._token = RuntimeTokenHttpInterceptor(response.token)
        return Task(self._client)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


@dataclass(frozen=True)
class Incoming:
    """A message for this site.

    Attributes:
        metadata: Of Flower.
        records: All but the parts of its parcel.
        size: Bytes of arrays that the parcel's head announces.
        parts: Pulls their bytes, part by part; may be called again.
    """

    metadata: Metadata
    records: RecordDict
    size: int
    parts: Callable[[], Iterator[bytes]]


class Task:
    """One message for this site, in the hands of the executor until ``reply`` or ``give_up``; not pulled yet."""

    def __init__(self, client: Any) -> None:
        self._client, self._litter = client, Litter()
        self._message: Message | None = None
        self._context: Any = None

    def pull(self) -> Incoming:
        """The message, and ``bundle``; it stays with the SuperNode until it is replied to, for the next executor.

        Raises:
            MachineError: The SuperNode is away, or has no message that belongs to the task, or one that is damaged.
        """
        with _runtime_errors("take the task over"):
            given = self._client.PullTaskInput(PullTaskInputRequest())
            self.bundle = hashlib.sha256(given.fab.content).hexdigest()
            self._context = context_from_proto(given.context)
            pulled = self._client.PullMessages(PullAppMessagesRequest())
            if not pulled.messages_list:
                raise MachineError("the SuperNode has no message for its task")
            self._tree = pulled.message_object_trees[0]
            return self._opened()

    def _opened(self) -> Incoming:
        """As ``pull``; ``_message`` keeps what a reply is made to."""
        [inner] = self._tree.children
        whole, content = self._fetched(self._tree.object_id), self._fetched(inner.object_id)
        trees = {tree.object_id: tree for tree in inner.children}
        ids: dict[str, str] = json.loads(get_object_body(content, RecordDict))
        parts = [ids.pop(part_name(i)) for i in range(len(ids)) if part_name(i) in ids]
        records = RecordDict()
        for name, object_id in ids.items():
            records[name] = self._inflated(trees[object_id])
        message = Message.inflate(whole, {inner.object_id: RecordDict()})
        message.metadata.__dict__["_message_id"] = self._tree.object_id  # as Flower's own executor does
        self._message = message

        def read() -> Iterator[bytes]:
            for object_id in parts:
                yield ConfigRecord.inflate(self._fetched(object_id))["bytes"]  # type: ignore[misc]  # or TypeError

        return Incoming(message.metadata, records, announced(records), read)

    def _pull(self) -> Callable[[str], bytes]:
        node, run = Node(node_id=self._context.node_id), self._context.run_id
        return make_pull_object_fn_protobuf(self._client.PullObject, node, run)

    def _inflated(self, tree: Any) -> Any:
        """One record, in memory."""
        return pull_and_inflate_object_from_tree(
            tree,
            self._pull(),
            lambda _: None,
            return_type=InflatableObject,
            initial_backoff=SHORTEST_BACKOFF_S,
            backoff_cap=LONGEST_BACKOFF_S,
        )

    def _fetched(self, object_id: str) -> bytes:
        """One object, waited for where it is still on its way."""
        found = pull_objects(
            [object_id], self._pull(), initial_backoff=SHORTEST_BACKOFF_S, backoff_cap=LONGEST_BACKOFF_S
        )
        self._litter.left(len(found[object_id]))
        return found[object_id]

    def beat(self) -> bool:
        """Say that it is being worked on; False where the SuperNode has given it to another, or is gone."""
        try:
            with _runtime_errors("report the task"):
                return bool(self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success)
        except MachineError:
            return False

    def reply(self, records: RecordDict, bulk: Bulk | None = None) -> None:
        """Answer the message; raises MachineError where the SuperNode does not take it.

        Args:
            records: What is answered, in full or as the head of a parcel.
            bulk: The bytes that the parcel's parts are cut from, if it is a head.
        """
        if self._message is None:
            raise MachineError("the task was not pulled")
        whole = RecordDict(dict(records.items()))
        if bulk is not None:
            for start in range(0, bulk.size, PART_BYTES):
                whole[part_name(start // PART_BYTES)] = _Part(partial(bulk.read, start, PART_BYTES))
        with _runtime_errors("hand the reply over"):
            self._push(Message(whole, reply_to=self._message))
            node, run = Node(node_id=self._context.node_id), self._context.run_id
            asked = ConfirmMessageReceivedRequest(node=node, run_id=run, message_object_id=self._tree.object_id)
            self._client.ConfirmMessageReceived(asked)
        self._finish(SubStatus.COMPLETED, "")

    def _push(self, message: Message) -> None:
        """As Flower's ``push_message``, one object after the other instead of all of them in memory."""
        with no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            bare, tree = message_to_proto(remove_content_from_message(message)), get_object_tree(message)
            told = self._client.PushMessages(PushAppMessagesRequest(messages_list=[bare], message_object_trees=[tree]))
            node, run = Node(node_id=self._context.node_id), self._context.run_id
            push = make_push_object_fn_protobuf(self._client.PushObject, node, run, told.session_id)
            wanted = set(told.objects_to_push)
            for object_id, each in get_all_nested_objects(message).items():
                if object_id in wanted:
                    content = each.deflate()
                    push(object_id, content)
                    self._litter.left(len(content))

    def give_up(self, why: str) -> None:
        """End the task without a reply."""
        self._finish(SubStatus.FAILED, why)

    def _finish(self, sub_status: str, details: str) -> None:
        with _runtime_errors("finish the task"):
            self._client.PushTaskOutput(PushTaskOutputRequest(sub_status=sub_status, details=details))


class _Part(ConfigRecord):
    """A ``ConfigRecord`` {"bytes": ...} that is made when it is needed, from bytes that are read then."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        super().__init__()
        self._read = read
        self._id = super().object_id

    @property
    def object_id(self) -> str:
        """Computed once."""
        return self._id

    def deflate(self) -> bytes:
        """As Flower's, of the record that this one stands for."""
        return ConfigRecord({"bytes": self._read()}).deflate()


@contextmanager
def _runtime_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise MachineError(f"cannot {doing}: the SuperNode does not answer as expected: {error}") from None
    except Exception as error:
        if isinstance(error, MachineError):
            raise
        # putting a message together raises all sorts of errors where its objects are damaged
        raise MachineError(f"cannot {doing}: {type(error).__name__}: {error}") from None
