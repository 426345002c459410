"""The trainer's gRPC service: one request at a time, in the order they come, with gRPC's health service beside it.

Invariants:

- A request that is asked again under its id while it is worked on, or as the last one, gets the same answer: an
  executor that was killed asks again, and nothing is trained twice.
- A request that runs past its deadline ends the process: training cannot be interrupted, and the next request must not
  wait behind what nobody waits for.
"""

import logging
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from flwr.app import RecordDict
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedretrain.errors import MachineError
from fedretrain.parcel import split

from . import flowerside, wire
from .door import Door

log = logging.getLogger(__name__)

GRACE_S = 5.0  # past a request's deadline
_POLL_S = 1.0  # how often a waiting call looks whether its caller is still there

Answerer = Callable[[wire.Question, wire.Letter], RecordDict]


class Desk:
    """Answers questions one after the other in a thread of its own.

    Args:
        answer: Makes an answer, a message in no parcel; never raises.
        overrun: Called when a question has been worked on past its deadline.
    """

    def __init__(self, answer: Answerer, overrun: Callable[[], None]) -> None:
        self._answer, self._overrun = answer, overrun
        self._waiting: queue.SimpleQueue[tuple[wire.Question, wire.Letter, float, Future[RecordDict]]]
        self._waiting = queue.SimpleQueue()
        self._known: dict[tuple[str, bool], Future[RecordDict]] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._work, name="desk", daemon=True).start()

    def put(self, question: wire.Question, letter: wire.Letter, deadline: float) -> "Future[RecordDict]":
        """Where the answer will be; ``deadline`` is of ``time.monotonic``."""
        key = (question.id, question.decline is not None)
        with self._lock:
            if key not in self._known:
                self._known = {k: f for k, f in self._known.items() if not f.done()}
                self._known[key] = Future()
                self._waiting.put((question, letter, deadline, self._known[key]))
            return self._known[key]

    def _work(self) -> None:
        while True:
            question, letter, deadline, future = self._waiting.get()
            left = deadline - time.monotonic()
            if left <= 0:
                future.set_exception(MachineError("its time was up before its turn came"))
                continue
            timer = threading.Timer(left + GRACE_S, self._overrun)
            timer.daemon = True
            timer.start()
            try:
                future.set_result(self._answer(question, letter))
            except MachineError as error:
                future.set_exception(error)
            except Exception as error:  # noqa: BLE001 - the next question must not wait for ever
                log.error("a question failed with %s", type(error).__name__)  # noqa: TRY400 - texts may quote data
                future.set_exception(MachineError("the trainer failed over the question"))
            finally:
                timer.cancel()
            del letter, future


class Service:
    """The gRPC server behind a ``Door``; it answers when the constructor returns.

    Args:
        path: The socket.
        users: Ids of other users who may connect.
        desk: What answers.
        spool: The folder where arrays of large questions lie while they are answered.

    Raises:
        ConfigurationError, MachineError: The socket cannot be made.
    """

    def __init__(self, path: Path, users: tuple[int, ...], desk: Desk, spool: Path) -> None:
        self._desk, self._spool = desk, spool
        self._folder = tempfile.TemporaryDirectory(prefix="fedretrain-")
        inside = Path(self._folder.name) / "grpc.sock"
        self._server = grpc.server(ThreadPoolExecutor(max_workers=8, thread_name_prefix="grpc"))
        handler = grpc.stream_stream_rpc_method_handler(self._handle)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(wire.SERVICE, {"Handle": handler}),)
        )
        status = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(status, self._server)
        for name in ("", wire.SERVICE):
            status.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._server.add_insecure_port(f"unix:{inside}")
        self._server.start()
        self._door = Door(path, inside, users)

    def close(self) -> None:
        """Answer nobody any more; what is being worked on goes on."""
        self._door.close()
        self._server.stop(None)
        self._folder.cleanup()

    def _handle(self, request: Iterator[bytes], context: Any) -> Iterator[bytes]:
        try:
            question, letter = wire.question(request, self._spool)
        except MachineError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        left = context.time_remaining()
        if left is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a question has a deadline")
        future = self._desk.put(question, letter, time.monotonic() + left)
        del letter
        while context.is_active():
            try:
                answer = future.result(timeout=_POLL_S)
            except TimeoutError:
                continue
            except MachineError as error:
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            head, bulk = split(answer)
            records = flowerside.to_bytes(head)
            yield from wire.pieces(wire.Answer(size=len(records), bulk=sum(map(len, bulk))), records, bulk)
            return
