"""What executor and trainer say to each other: gRPC over a Unix socket, bytes in pieces of 1 MiB.

One method, ``/fedretrain.Trainer/Handle``, stream to stream. Each direction sends a header, then the records::

    header    UTF-8 JSON: {"format": "fedretrain.wire/1", "size": bytes that follow}; a question has also
              "id" (of the message; the same when it is asked again), "message_type", and "decline": null, or
              {"code", "where", "expected"} where the trainer shall sign that refusal and do nothing else
    then      the RecordDict as Flower's protobuf, in pieces of at most 1 MiB

Invariants: no piece and no sum exceeds what was announced, and what was announced is bounded; whoever asks the same id
again gets the one answer, which is made once.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

import grpc
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedretrain.errors import ConfigurationError, MachineError

SERVICE = "fedretrain.Trainer"
METHOD = f"/{SERVICE}/Handle"
FORMAT: Literal["fedretrain.wire/1"] = "fedretrain.wire/1"
PIECE_BYTES = 1024 * 1024
LARGEST_BYTES = 2**31 - 1  # what one protobuf message can hold
SOCKET_PATH_BYTES = 107  # the system's limit
HeaderT = TypeVar("HeaderT", bound="_Header")
_CHANNEL = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class Decline(BaseModel):
    """A refusal that the executor asks the trainer to sign; fields as ``fedretrain.messages.Declined``."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    code: Literal["policy", "trainer-failure"]
    where: str = Field("", max_length=200)
    expected: str = Field("", max_length=200)


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal["fedretrain.wire/1"] = FORMAT
    size: int = Field(ge=0, le=LARGEST_BYTES)


class Question(_Header):
    """Header of a question."""

    id: str = Field(max_length=128)
    message_type: str = Field(max_length=64)
    decline: Decline | None = None


class Answer(_Header):
    """Header of an answer."""


class TrainerLost(MachineError):
    """No answer came; ``late`` where the time was up, otherwise the trainer ended or is not what it should be."""

    def __init__(self, message: str, *, late: bool) -> None:
        super().__init__(message)
        self.late = late


def pieces(header: Question | Answer, content: bytes) -> Iterator[bytes]:
    """One direction of a call."""
    yield header.model_dump_json().encode()
    view = memoryview(content)
    for start in range(0, len(view), PIECE_BYTES):
        yield bytes(view[start : start + PIECE_BYTES])


def question(stream: Iterable[bytes]) -> tuple[Question, bytearray]:
    """Read a question; raises MachineError where it is not as the module says."""
    return _read(stream, Question)


def ask(socket: Path, header: Question, content: bytes, timeout_s: float) -> bytearray:
    """Put a question to the trainer, wait for it to be there, and for its answer.

    Raises:
        TrainerLost: The trainer ended meanwhile, or did not answer within ``timeout_s`` seconds.
    """
    with grpc.insecure_channel(f"unix:{socket_path(socket)}", options=_CHANNEL) as channel:
        call = channel.stream_stream(METHOD)
        try:
            replies = call(pieces(header, content), timeout=max(timeout_s, 0.0), wait_for_ready=True)
            return _read(replies, Answer)[1]
        except grpc.RpcError as error:
            late = error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            raise TrainerLost(f"the trainer gave no answer: {error.code().name}", late=late) from None
        except MachineError as error:
            raise TrainerLost(str(error), late=False) from None


def socket_path(path: Path) -> str:
    """The path of a Unix socket as the system takes it; raises ConfigurationError where it is too long."""
    if len(str(path).encode()) > SOCKET_PATH_BYTES:
        raise ConfigurationError(
            f"{path}: too long for a Unix socket (at most {SOCKET_PATH_BYTES} bytes); move the site's folder to a"
            " shorter path, or link to it from one"
        )
    return str(path)


def _read(stream: Iterable[bytes], kind: type[HeaderT]) -> tuple[HeaderT, bytearray]:
    received = iter(stream)
    try:
        header = kind.model_validate(json.loads(next(received, b"")[:PIECE_BYTES]))
    except (ValidationError, ValueError):
        raise MachineError(f"expected the header of a {FORMAT} message; executor and trainer differ") from None
    content = bytearray()
    for piece in received:
        if len(content) + len(piece) > header.size:
            raise MachineError(f"expected {header.size} bytes, got more")
        content += piece
    if len(content) != header.size:
        raise MachineError(f"expected {header.size} bytes, got {len(content)}")
    return header, content
