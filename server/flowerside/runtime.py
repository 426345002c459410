"""The SuperLink's Runtime API, and the processes that Flower gives us whole: the SuperLink and a task's ServerApp."""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import Queue
from typing import Any, NoReturn

from .calls import Refused, calling

_FLEET, _RUNTIME = "/v1/fleet/", "/v1/runtime/"
_NOT_FOR = {  # middlewares of Flower's, and paths of requests that they hand on as they are
    "ControlSensitiveResponseMiddleware": (_FLEET, _RUNTIME),
    "ControlAuthenticationMiddleware": (_FLEET, _RUNTIME),
    "ControlLicenseMiddleware": (_FLEET, _RUNTIME),
    "ControlEventLogMiddleware": (_FLEET, _RUNTIME),
    "RuntimeTracingMiddleware": (_FLEET, _RUNTIME),
    "FleetEventLogMiddleware": (_FLEET, _RUNTIME),
    "NodeAuthMiddleware": (_RUNTIME,),
}
SHUTDOWN_S = 2  # for requests under way when the SuperLink is told to end


@dataclass(frozen=True)
class Task:
    """A ServerApp to be run: its task's id, Flower's id of the run, and the token that stands for it."""

    task_id: int
    run_id: int
    token: str = field(repr=False)


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

        with calling("ask for tasks"):
            found = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
        if not found.HasField("task") or not found.token:
            return None
        return Task(found.task.task_id, found.task.run_id, found.token)

    def heartbeat(self, task: Task) -> bool:
        """Say that the task is alive; False where the SuperLink has given it up. Raises MachineError."""
        from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest

        alive = False
        with suppress(Refused), calling("send a heartbeat"), self._as(task) as client:
            alive = bool(client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success)
        return alive

    def failed(self, task: Task, why: str) -> None:
        """Report that the task's process died; does nothing where it had reported its end. Raises MachineError."""
        from flwr.common.constant import SubStatus
        from flwr.proto.runtime_pb2 import PushTaskOutputRequest

        with suppress(Refused), calling("report a task's end"), self._as(task) as client:
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


def run_superlink(arguments: Sequence[str], lease_s: float | None = None) -> None:
    """Be a SuperLink with these command line arguments until a signal ends it; ``lease_s`` as for ``lease_tasks``."""
    import uvicorn
    from flwr.superlink import main
    from flwr.superlink.cli.flower_superlink import flower_superlink

    if lease_s is not None:
        lease_tasks(lease_s)
    # clients that keep their connections open would otherwise hold up its end for half a minute
    uvicorn.run = functools.partial(uvicorn.run, timeout_graceful_shutdown=SHUTDOWN_S)
    main._get_middleware = functools.partial(direct, main._get_middleware)  # noqa: SLF001 - no public way
    sys.argv = ["flower-superlink", *arguments]
    flower_superlink()


def lease_tasks(seconds: float) -> None:
    """Leave who takes a task so many seconds to say the first word about it, before it is given to another.

    Flower leaves 30, which a process on a busy machine spends on its imports: its token is void before it can use it,
    and the next process makes the machine busier. How long the silence of a task that runs may be stays as it is.
    """
    from flwr.supercore.corestate import in_memory_corestate, sql_corestate

    for state in (in_memory_corestate, sql_corestate):
        silence = state.HEARTBEAT_PATIENCE * state.HEARTBEAT_DEFAULT_INTERVAL
        vars(state).update(HEARTBEAT_DEFAULT_INTERVAL=seconds, HEARTBEAT_PATIENCE=silence / seconds)


class Beside:
    """A middleware of Flower's that requests under some paths, for which it has nothing to do, pass by.

    Args:
        app: What comes behind the middleware.
        flowers: The middleware.
        not_for: Prefixes of the paths.
    """

    def __init__(self, app: Any, flowers: Any, not_for: tuple[str, ...]) -> None:
        self._app, self._through, self._not_for = app, flowers.cls(app, *flowers.args, **flowers.kwargs), not_for

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        by = scope["type"] == "http" and scope["path"].startswith(self._not_for)
        await (self._app if by else self._through)(scope, receive, send)


def direct(given: Callable[[], list[Any]]) -> list[Any]:
    """Flower's middlewares, each for the requests it has something to do for: each costs a request half a millisecond.

    Event logs and tracing are switched on by variables of the environment, which we do not set.
    """
    from starlette.middleware import Middleware

    return [
        Middleware(Beside, flowers=m, not_for=_NOT_FOR[m.cls.__name__]) if m.cls.__name__ in _NOT_FOR else m
        for m in given()
    ]


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
