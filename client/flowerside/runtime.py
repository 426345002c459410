"""The executor's side of the SuperNode's Runtime API: one task at a time, never the bundle that comes with it."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from flwr.app import Message, RecordDict
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import push_message

from fedretrain.errors import MachineError

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


class Task:
    """One message for this site, in the hands of the executor until ``reply`` or ``give_up``; not pulled yet."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._message: Message | None = None
        self._context: Any = None

    def pull(self) -> Message:
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
            node, run = Node(node_id=self._context.node_id), self._context.run_id
            fetch = make_pull_object_fn_protobuf(self._client.PullObject, node, run)
            message = pull_and_inflate_object_from_tree(
                self._tree,
                fetch,
                lambda _: None,
                return_type=Message,
                initial_backoff=SHORTEST_BACKOFF_S,
                backoff_cap=LONGEST_BACKOFF_S,
            )
        message.metadata.__dict__["_message_id"] = self._tree.object_id  # as Flower's own executor does
        self._message = message
        return message

    def beat(self) -> bool:
        """Say that it is being worked on; False where the SuperNode has given it to another, or is gone."""
        try:
            with _runtime_errors("report the task"):
                return bool(self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success)
        except MachineError:
            return False

    def reply(self, content: RecordDict) -> None:
        """Answer the message; raises MachineError where the SuperNode does not take it."""
        if self._message is None:
            raise MachineError("the task was not pulled")
        with _runtime_errors("hand the reply over"):
            push_message(self._client, Message(content, reply_to=self._message), self._context)
            node, run = Node(node_id=self._context.node_id), self._context.run_id
            asked = ConfirmMessageReceivedRequest(node=node, run_id=run, message_object_id=self._tree.object_id)
            self._client.ConfirmMessageReceived(asked)
        self._finish(SubStatus.COMPLETED, "")

    def give_up(self, why: str) -> None:
        """End the task without a reply."""
        self._finish(SubStatus.FAILED, why)

    def _finish(self, sub_status: str, details: str) -> None:
        with _runtime_errors("finish the task"):
            self._client.PushTaskOutput(PushTaskOutputRequest(sub_status=sub_status, details=details))


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
