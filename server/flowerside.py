"""Everything the server uses of Flower beyond its public API, in one place.

Invariants:

- No other module of the server imports Flower's internals, and none is imported before it is needed: what a Flower
  upgrade can break is here, and each thing that is taken for granted has a test in ``tests/server/test_flowerside.py``.
- What fails on the way becomes a ``MachineError`` that says what was being done; a SuperLink's refusal likewise.
- A task's token and the executor's secret appear in no error, no log and no command line.

Taken for granted of Flower 1.41: Control and Runtime API are protobuf over HTTPS on one port; a node's public key is
kept as PEM; replies are trees of objects named by their SHA-256 (``server.guarded``), a message's own object on top.
"""

import functools
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import Queue
from typing import TYPE_CHECKING, Any, NoReturn

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from flwr.app import Message
from flwr.serverapp import Grid

from fedretrain.errors import ConfigurationError, MachineError

if TYPE_CHECKING:
    from flwr.superlink.grid import HttpGrid

SHUTDOWN_S = 2  # for requests under way when the SuperLink is told to end
RETRY_S = 1  # longest pause before a lost connection to the SuperLink is tried again; Flower's own is 20 s


@dataclass(frozen=True)
class Node:
    """A SuperNode as the SuperLink knows it.

    ``public_key`` is PEM, as ``key_bytes`` gives it; ``status`` is one of registered, online, offline, unregistered;
    ``online_until`` is in Unix seconds, 0 where it was never online.
    """

    node_id: int
    public_key: bytes
    name: str
    status: str
    online_until: float


@dataclass(frozen=True)
class Task:
    """A ServerApp to be run: its task's id, Flower's id of the run, and the token that stands for it."""

    task_id: int
    run_id: int
    token: str = field(repr=False)


def key_bytes(openssh: str) -> bytes:
    """A node's public key as Flower keeps and compares it; raises ConfigurationError where it is none."""
    try:
        return load_ssh_public_key(openssh.encode()).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError("expected a node's public key in OpenSSH form; the roster is damaged") from None


class Refused(MachineError):
    """The SuperLink answers, and refuses."""


class Control:
    """The SuperLink's Control API.

    Args:
        address: host:port of the SuperLink.
        ca: PEM of the authority of its certificate.
    """

    def __init__(self, address: str, ca: bytes) -> None:
        from flwr.supercore.control.control_http_client import ControlHttpClient

        self._client = ControlHttpClient.from_server_address(address, False, ca, [])

    def answers(self) -> bool:
        """Whether the SuperLink is there and answers."""
        try:
            self.nodes()
        except MachineError:
            return False
        return True

    def start_run(self, bundle: bytes, run_config: Mapping[str, str | int | float | bool]) -> int:
        """Ask for a run of the bundle's ServerApp; raises MachineError.

        Args:
            bundle: Content of the ``.fab`` file.
            run_config: Values for keys that the bundle's configuration has.

        Returns:
            Flower's id of the run.
        """
        from flwr.common.serde import user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.proto.fab_pb2 import Fab

        request = StartRunRequest(fab=Fab(content=bundle), override_config=user_config_to_proto(dict(run_config)))
        with _errors("start a run"):
            response = self._client.StartRun(request)
        if not response.run_id:
            raise MachineError("cannot start a run: the SuperLink gave it no id; is the bundle larger than 10 MB?")
        return int(response.run_id)

    def stop_run(self, run_id: int) -> None:
        """End a run; one that has ended, or that the SuperLink does not know, stays as it is. Raises MachineError."""
        from flwr.proto.control_pb2 import StopRunRequest
        from flwr.supercore.error import ApiErrorCode

        with _errors("stop a run", but={ApiErrorCode.RUN_ALREADY_FINISHED, ApiErrorCode.RUN_ID_NOT_FOUND}):
            self._client.StopRun(StopRunRequest(run_id=run_id))

    def run_status(self, run_id: int) -> str:
        """One of pending, starting, running, finished:completed, finished:stopped, finished:failed, unknown.

        Raises:
            MachineError: The SuperLink does not answer.
        """
        from flwr.proto.control_pb2 import ListRunsRequest
        from flwr.supercore.error import ApiErrorCode

        found: Any = None
        with _errors("ask for a run's status", but={ApiErrorCode.RUN_ID_NOT_FOUND}):
            found = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
        if found is None:
            return "unknown"
        return f"{found.status}:{found.sub_status}" if found.sub_status else str(found.status)

    def register(self, node_key: str, name: str) -> int:
        """Let in the SuperNode with this key (OpenSSH text) and return its id; the same key again is the same node.

        Raises:
            ConfigurationError: The key is none, or belongs to a node that was unregistered: that is for ever.
            MachineError: The SuperLink does not answer or refuses.
        """
        from flwr.proto.control_pb2 import RegisterNodeRequest
        from flwr.supercore.error import ApiErrorCode

        key, node_id = key_bytes(node_key), 0
        with _errors(f"register {name}", but={ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE}):
            node_id = self._client.RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id
        if node_id:
            return node_id
        for node in self.nodes():
            if node.public_key == key and node.status != "unregistered":
                return node.node_id
        raise ConfigurationError(
            f"{name}: its node key was shut out before; the site has to make keys anew and ask again"
        )

    def unregister(self, node_id: int) -> None:
        """Shut a SuperNode out for ever; one that is not there is no error. Raises MachineError."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest
        from flwr.supercore.error import ApiErrorCode

        with _errors("unregister a node", but={ApiErrorCode.NODE_NOT_FOUND}):
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def nodes(self) -> list[Node]:
        """Every SuperNode there ever was, in the order of their ids; raises MachineError."""
        from flwr.proto.control_pb2 import ListNodesRequest

        with _errors("list the nodes"):
            found = self._client.ListNodes(ListNodesRequest()).nodes_info
        nodes = [Node(n.node_id, n.public_key, n.name, n.status, n.online_until) for n in found]
        return sorted(nodes, key=lambda node: node.node_id)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class Runtime:
    """The SuperLink's Runtime API as an executor uses it: take tasks, keep them alive, report those that died.

    Args:
        address: host:port of the SuperLink.
        ca: PEM of the authority of its certificate.
        secret: What SuperLink and executor share.
    """

    def __init__(self, address: str, ca: bytes, secret: bytes) -> None:
        from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor

        self._where = (address, ca)
        signer = SuperExecAuthHttpInterceptor(
            master_secret=secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"}
        )
        self._client = self._connect(signer)

    def acquire(self) -> Task | None:
        """The next ServerApp to run, None where there is none; raises MachineError."""
        from flwr.proto.runtime_pb2 import AcquireTaskRequest
        from flwr.supercore.constant import TaskType

        with _errors("ask for tasks"):
            found = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
        if not found.HasField("task") or not found.token:
            return None
        return Task(found.task.task_id, found.task.run_id, found.token)

    def heartbeat(self, task: Task) -> bool:
        """Say that the task is alive; False where the SuperLink has given it up. Raises MachineError."""
        from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest

        alive = False
        with suppress(Refused), _errors("send a heartbeat"), self._as(task) as client:
            alive = bool(client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success)
        return alive

    def failed(self, task: Task, why: str) -> None:
        """Report that the task's process died; does nothing where it had reported its end. Raises MachineError."""
        from flwr.common.constant import SubStatus
        from flwr.proto.runtime_pb2 import PushTaskOutputRequest

        with suppress(Refused), _errors("report a task's end"), self._as(task) as client:
            client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.FAILED, details=why))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @contextmanager
    def _as(self, task: Task) -> Iterator[Any]:
        from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor

        with self._connect(RuntimeTokenHttpInterceptor(token=task.token)) as client:
            yield client

    def _connect(self, interceptor: Any) -> Any:
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
        from flwr.supercore.runtime import RuntimeHttpClient

        address, ca = self._where
        version = RuntimeVersionHttpInterceptor(component_name="SuperExec")
        return RuntimeHttpClient.from_server_address(address, False, ca, [version, interceptor])


def run_superlink(arguments: Sequence[str]) -> None:
    """Be a SuperLink with these command line arguments until a signal ends it."""
    import uvicorn
    from flwr.superlink.cli.flower_superlink import flower_superlink

    # clients that keep their connections open would otherwise hold up its end for half a minute
    uvicorn.run = functools.partial(uvicorn.run, timeout_graceful_shutdown=SHUTDOWN_S)
    sys.argv = ["flower-superlink", *arguments]
    flower_superlink()


def run_serverapp(address: str, ca: bytes, token: str) -> NoReturn:
    """Be the ServerApp of a task: take its input, run the app of its bundle, report the end, exit.

    The app is the bundle's own code throughout: what this process has imported of the installed packages is forgotten
    first, or the run would be a mixture of both. Nothing is installed for it.
    """
    from flwr.superlink.runtime import run_serverapp as run

    for name in [n for n in sys.modules if n.partition(".")[0] in {"server", "strategies", "fedretrain"}]:
        del sys.modules[name]
    run(
        runtime_api_address=address,
        log_queue=Queue(),  # empty: what the app prints goes to our own log, not into the SuperLink's database
        token=token,
        insecure=False,
        certificates=ca,
        runtime_dependency_install=False,
    )
    raise SystemExit(1)  # not reached: Flower exits by itself


def is_http_grid(grid: Grid) -> bool:
    """Whether the grid talks to a SuperLink, and its replies so come from outside."""
    from flwr.superlink.grid import HttpGrid

    return isinstance(grid, HttpGrid)


class Objects:
    """What ``server.guarded`` needs of Flower's grid: replies announced, their objects one by one, no decoding."""

    def __init__(self, grid: "HttpGrid") -> None:
        from flwr.supercore.retry.retry_invoker import exponential

        self._grid = grid
        grid._retry_invoker.wait_gen_factory = lambda: exponential(max_delay=RETRY_S)  # noqa: SLF001 - no public way

    def announced(self, message_id: str) -> list["Announced"]:
        """Replies to the message that the SuperLink holds; each is announced once."""
        from flwr.proto.runtime_pb2 import PullAppMessagesRequest

        found = self._client.PullMessages(PullAppMessagesRequest(message_ids=[message_id])).messages_list
        return [Announced(m) for m in found]

    def fetch(self, object_id: str) -> bytes | None:
        """An object's bytes, None where they have not come yet.

        Raises:
            KeyError: The SuperLink has no such object, or no longer.
        """
        from flwr.proto.message_pb2 import PullObjectRequest

        request = PullObjectRequest(node=self._grid.node, run_id=self._grid.run.run_id, object_id=object_id)
        found = self._client.PullObject(request)
        if not found.object_found:
            raise KeyError(object_id)
        return bytes(found.object_content) if found.object_available else None

    def done(self, object_id: str) -> None:
        """Let the SuperLink forget a reply and its objects; it does so by itself when the run ends."""
        import httpx
        from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest

        node, run = self._grid.node, self._grid.run.run_id
        with suppress(httpx.HTTPError):
            self._client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(node=node, run_id=run, message_object_id=object_id)
            )

    @property
    def _client(self) -> Any:
        return self._grid._runtime_client  # noqa: SLF001 - Flower's grid offers decoded messages only


class Announced:
    """A reply without its content: ``root`` is the id of its topmost object."""

    def __init__(self, proto: Any) -> None:
        self.root: str = proto.metadata.message_id
        self.reply_to: str = proto.metadata.reply_to_message_id
        self._proto = proto

    def error(self) -> Message | None:
        """The reply where it is an error, which has no objects to wait for; None where it has content."""
        from flwr.common.serde import message_from_proto

        return message_from_proto(self._proto) if self._proto.HasField("error") else None


def head(content: bytes) -> tuple[str, list[str], bytes]:
    """Kind, ids of the children and body of an object; raises ValueError and its like where it is none."""
    from flwr.supercore.constant import HEAD_BODY_DIVIDER
    from flwr.supercore.inflatable.inflatable_object import get_object_head_values_from_object_content

    kind, children, length = get_object_head_values_from_object_content(content)
    body = content[content.index(HEAD_BODY_DIVIDER) + len(HEAD_BODY_DIVIDER) :]
    if len(body) != length:
        raise ValueError("an object of another length than it says")
    return kind, children, body


def inflate(root: str, contents: dict[str, bytes]) -> Message:
    """Put a message together from its objects, which are taken out of ``contents``; raises whatever Flower raises."""
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    message = inflate_object_from_contents(root, contents)
    if not isinstance(message, Message):
        raise TypeError("expected a message")
    message.metadata.__dict__["_message_id"] = root
    return message


@contextmanager
def _errors(doing: str, *, but: Collection[int] = ()) -> Iterator[None]:
    """Turn what the SuperLink's client raises into MachineError; codes in ``but`` merely end the block."""
    import httpx
    from flwr.supercore.error import FlowerError

    try:
        yield
    except httpx.HTTPStatusError as error:
        known = FlowerError.from_json(error.response.text)
        if known is not None and known.code in but:
            return
        said = known.message if known is not None else f"HTTP status {error.response.status_code}"
        raise Refused(f"cannot {doing}: the SuperLink refuses: {said}") from None
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise MachineError(
            f"cannot {doing}: the SuperLink does not answer ({type(error).__name__}); "
            "'fedretrain server up' starts it again by itself"
        ) from None
