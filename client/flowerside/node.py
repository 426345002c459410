"""Flower's SuperNode, in process isolation, with its Runtime API on loopback.

What differs from Flower's own command stands here: how long it waits between two polls, that it tells why it stops,
that it signs off a node that was killed, and that a task whose executor died goes to the next one (``state``).
"""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import flwr.supernode.fleet_http_connection as fleet
import flwr.supernode.start_client_internal as loop
import httpx
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest, AcquireTaskResponse
from flwr.supercore.error import FlowerError
from flwr.supercore.exit import add_exit_handler
from flwr.supercore.inflatable.inflatable_utils import pull_objects, push_object_contents_from_iterable
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.main import create_app
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from flwr.supernode.nodestate import NodeStateFactory

from fedretrain.errors import MachineError

from . import LONGEST_BACKOFF_S, SHORTEST_BACKOFF_S
from .state import State

log = logging.getLogger(__name__)

PAUSE_S = (0.1, 2.0)  # shortest and longest between two questions to the server for a message
PAUSE_SHARE = 0.1  # of the time since the last message: asking for the next one adds at most this to a wait
ACQUIRE_WAIT_S = 10.0  # how long the Runtime API holds a request for a task, below the client's 30 s
ORPHAN_S = 5.0  # how long the SuperNode waits for a reply that no executor works on
AT_A_TIME = 4  # objects, of some 4 MiB, that are in memory while a reply is pushed
_OWN_PATHS = ("activate-node", "pull-messages", "send-node-heartbeat")  # a refusal here concerns the site itself


@dataclass(frozen=True)
class Node:
    """What a SuperNode needs: gateway ``host:port``, PEM of its authority, its key, the secret of the Runtime API.

    ``before`` is the id the server knew this very installation by, 0 where unknown: a node that was killed is still
    taken for connected, and is signed off first. ``folder`` is for the objects of large messages.
    """

    address: str
    ca: bytes
    key: EllipticCurvePrivateKey
    secret: bytes
    before: int = 0
    folder: Path | None = None


class Listener(Protocol):
    """Who is told how it goes."""

    def listening(self, port: int) -> None:
        """The Runtime API answers on this port of 127.0.0.1."""

    def connected(self, node: int) -> None:
        """The server has admitted this node."""

    def answered(self) -> None:
        """The server took a request."""

    def refused(self, status: int, text: str) -> None:
        """The server refused a request; ``text`` may be empty."""

    def unreachable(self, error: Exception) -> None:
        """A request did not arrive; it is tried again."""


class Stopped(BaseException):
    """Ends the SuperNode from within Flower's loop, which catches every ``Exception``."""


def run_supernode(node: Node, listener: Listener) -> None:
    """Run Flower's SuperNode until SIGTERM or SIGINT (which ends this process) or until the server refuses it.

    Raises:
        MachineError: It cannot go on; the listener has been told why as far as the server was involved.
    """
    state = State(node.folder)
    stop = _serve_runtime(state, node.secret, listener)
    add_exit_handler(stop)
    try:
        with _adapted(node, state, listener):
            loop.start_client_internal(
                state_factory=_factory(state),
                server_address=node.address,
                node_config={},
                root_certificates=node.ca,
                insecure=False,
                authentication_keys=(node.key, node.key.public_key()),
                isolation="process",
                superexec_auth_secret=node.secret,
            )
    except Stopped as reason:
        raise MachineError(str(reason)) from None
    finally:
        stop()
    raise MachineError("the connection to the server ended; see the lines above")


@contextmanager
def _adapted(node: Node, state: State, listener: Listener) -> Iterator[None]:
    """Within the block Flower's loop waits, signs and ends as this module has it."""
    ended: list[str] = []

    def end(_code: int, message: str | None = None, *_: Any, **__: Any) -> None:
        raise Stopped(" ".join((message or "Flower gave no reason").split()))

    def thread_ended(arguments: threading.ExceptHookArgs) -> None:
        ended.append(str(arguments.exc_value or arguments.exc_type.__name__))

    push = partial(_push_few_at_a_time, push_object_contents_from_iterable)
    connect = partial(_connection, fleet.http_request_response, node, listener)
    replaced: list[tuple[Any, str, Any]] = [
        (loop, "time", SimpleNamespace(sleep=partial(_sleep, state, ended))),
        (loop, "pull_objects", partial(_pull_into, state)),
        (loop, "push_object_contents_from_iterable", push),
        (loop, "_pull_and_store_message", partial(_take_whole, state, loop._pull_and_store_message)),  # noqa: SLF001
        (loop, "flwr_exit", end),
        (loop, "http_request_response", connect),
        (fleet, "flwr_exit", end),
        (fleet, "NodeAuthHttpInterceptor", partial(_Watching, listener=listener)),
        (threading, "excepthook", thread_ended),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _pull_into(own: State, object_ids: list[str], pull_object_fn: Callable[[str], bytes]) -> dict[str, bytes]:
    """Flower's pulling of a message's objects, each into the store as it comes, and none of them given to the loop."""

    def pull(object_id: str) -> bytes:
        own.object_store.put(object_id, pull_object_fn(object_id))
        return b""

    pull_objects(object_ids, pull, initial_backoff=SHORTEST_BACKOFF_S, backoff_cap=LONGEST_BACKOFF_S)
    return {}


def _push_few_at_a_time(
    push: Callable[..., None], contents: Iterable[tuple[str, bytes]], push_object_fn: Callable[[str, bytes], None]
) -> None:
    """Flower's pushing, which takes all of a reply into memory before the first of its objects is on its way."""
    rest = iter(contents)
    while few := list(islice(rest, AT_A_TIME)):
        push(few, push_object_fn=push_object_fn)


def _take_whole(own: State, take: Callable[..., int | None], **named: Any) -> int | None:
    """The loop's taking of a message, with nothing left behind where there is no whole one.

    Flower makes the task first. Where the run ends before the message is here, the task would stay, and an executor
    would wait for the rest of its message for hours.
    """
    run = take(**named)
    if run is None:
        own.forget_work()
    return run


def _sleep(state: State, ended: list[str], seconds: float) -> None:
    """In place of the loop's ``time.sleep``: 3 s when there was no message, 0.5 s while a reply is not complete."""
    if ended:
        raise Stopped(ended[0])
    if seconds >= 1:
        shortest, longest = PAUSE_S
        time.sleep(min(max((time.monotonic() - state.active_at) * PAUSE_SHARE, shortest), longest))
    else:
        state.wait_for_change(seconds)
        if state.orphaned_for() > ORPHAN_S:
            raise RuntimeError("the executor gave its task up before the reply was complete")


@contextmanager
def _connection(original: Callable[..., Any], node: Node, listener: Listener, *arguments: Any) -> Iterator[Any]:
    if node.before:
        _sign_off(node)
    with original(*arguments) as connection:
        listener.connected(connection[0])
        yield connection


def _sign_off(node: Node) -> None:
    """Tell the server that the node of this installation's last start is gone; whatever comes of it."""
    signing = NodeAuthHttpInterceptor(node.key, node.key.public_key())
    version = RuntimeVersionHttpInterceptor(component_name="SuperNode")
    try:
        with FleetHttpClient.from_server_address(node.address, False, node.ca, [version, signing]) as client:
            client.DeactivateNode(DeactivateNodeRequest(node_id=node.before))
    except (httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
        log.debug("signing off the last node: %s", error)


class _Watching(NodeAuthHttpInterceptor):
    """Flower's signing of requests, with an eye on what becomes of each."""

    def __init__(self, *keys: Any, listener: Listener) -> None:
        super().__init__(*keys)
        self._listener = listener

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        try:
            response = super().intercept(context, call_next)
        except httpx.TransportError as error:
            self._listener.unreachable(error)
            raise
        status, concerns_site = response.status_code, context.request.url.path.endswith(_OWN_PATHS)
        if status < 400:
            self._listener.answered()
            return response
        text = _refusal_text(response)
        if status == 429:
            response.status_code = 503  # which Flower tries again after a while
        if status != 403 or concerns_site:  # on other paths 403 says that the run is over
            self._listener.refused(status, text)
        if status == 401 or (concerns_site and status < 500 and status != 429):
            raise Stopped(text or f"the server refused this site with HTTP status {status}")
        return response


def _refusal_text(response: httpx.Response) -> str:
    error = FlowerError.from_json(response.text)
    return "" if error is None else ": ".join(filter(None, (error.message, error.public_details)))


def _factory(state: State) -> NodeStateFactory:
    objects = ObjectStoreFactory()
    objects.store_instance = state.object_store
    factory = NodeStateFactory(objectstore_factory=objects)
    factory.state_instance = state
    return factory


def _serve_runtime(state: State, secret: bytes, listener: Listener) -> Callable[[], None]:
    """Flower's Runtime API on a free port of loopback; returns what ends it."""

    def acquire(request: AcquireTaskRequest, _: State) -> Any:
        found = state.offer(partial(original.acquire_task, request, state), ACQUIRE_WAIT_S)
        return AcquireTaskResponse() if found is None else found

    app = create_app(state_factory=_factory(state), superexec_auth_secret=secret)
    original = app.state.runtime_handlers
    app.state.runtime_handlers = SimpleNamespace(**{**vars(original), "acquire_task": acquire})
    door = socket.socket()
    door.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, access_log=False, log_config=None, timeout_keep_alive=60, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, name="runtime-api", daemon=True)
    thread.start()
    while thread.is_alive() and not server.started:
        time.sleep(0.02)
    if not server.started:
        raise MachineError("the SuperNode's Runtime API does not start; see the lines above")
    listener.listening(door.getsockname()[1])

    def stop() -> None:
        server.should_exit = True
        state.release()
        thread.join(timeout=1)
        server.force_exit = True

    return stop
