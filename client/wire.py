"""What executor and trainer say to each other: gRPC over a Unix socket, bytes in pieces of 1 MiB.

One method, ``/fedretrain.Trainer/Handle``, stream to stream. Each direction sends a header, then a ``Letter``::

    header    UTF-8 JSON: {"format": "fedretrain.wire/2", "size": bytes of the records, "bulk": bytes of arrays}; a
              question has also "id" (of the message; the same when it is asked again), "message_type", and "decline":
              null, or {"code", "where", "expected"} where the trainer shall sign that refusal and do nothing else
    then      the records as Flower's protobuf, in pieces of at most 1 MiB: the head of the message's parcel
    then      the bytes of its arrays (``fedretrain.parcel.split``), in pieces likewise

Invariants: no piece and no sum exceeds what was announced, and what was announced is bounded; whoever asks the same id
again gets the one answer, which is made once; of a large message no more than a few pieces are in memory.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import grpc
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedretrain.errors import ConfigurationError, MachineError

from .bulk import Bulk

SERVICE = "fedretrain.Trainer"
METHOD = f"/{SERVICE}/Handle"
FORMAT: Literal["fedretrain.wire/2"] = "fedretrain.wire/2"
PIECE_BYTES = 1024 * 1024
LARGEST_BYTES = 2**31 - 1  # what one protobuf message can hold
LARGEST_BULK = 2**40  # of arrays, which lie on the disk
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
    format: Literal["fedretrain.wire/2"] = FORMAT
    size: int = Field(ge=0, le=LARGEST_BYTES)
    bulk: int = Field(0, ge=0, le=LARGEST_BULK)


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


@dataclass(frozen=True)
class Letter:
    """A message as it was received: records in Flower's protobuf form, and the bytes of the arrays."""

    records: bytearray
    bulk: Bulk


def pieces(header: Question | Answer, records: bytes, bulk: Iterable[bytes | memoryview] = ()) -> Iterator[bytes]:
    """One direction of a call; ``bulk`` is asked for its next bytes when those before are on their way."""
    yield header.model_dump_json().encode()
    yield from _cut(records)
    for data in bulk:
        yield from _cut(data)


def question(stream: Iterable[bytes], folder: Path) -> tuple[Question, Letter]:
    """Read a question, its arrays into ``folder``; raises MachineError where it is not as the module says."""
    return _read(stream, Question, folder)


def ask(socket: Path, sent: Iterable[bytes], timeout_s: float, folder: Path) -> Letter:
    """Put a question (its ``pieces``) to the trainer, wait for it to be there, and for its answer.

    Args:
        socket: The trainer's.
        sent: The question.
        timeout_s: Seconds for all of it.
        folder: Where the answer's arrays go.

    Raises:
        TrainerLost: The trainer ended meanwhile, or did not answer within ``timeout_s`` seconds.
    """
    with grpc.insecure_channel(f"unix:{socket_path(socket)}", options=_CHANNEL) as channel:
        call = channel.stream_stream(METHOD)
        try:
            replies = call(iter(sent), timeout=max(timeout_s, 0.0), wait_for_ready=True)
            return _read(replies, Answer, folder)[1]
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


def _cut(data: bytes | memoryview) -> Iterator[bytes]:
    view = memoryview(data)
    for start in range(0, len(view), PIECE_BYTES):
        yield bytes(view[start : start + PIECE_BYTES])


def _read(stream: Iterable[bytes], kind: type[HeaderT], folder: Path) -> tuple[HeaderT, Letter]:
    received = iter(stream)
    try:
        header = kind.model_validate(json.loads(next(received, b"")[:PIECE_BYTES]))
    except (ValidationError, ValueError):
        raise MachineError(f"expected the header of a {FORMAT} message; executor and trainer differ") from None
    letter, expected = Letter(bytearray(), Bulk(folder)), header.size + header.bulk
    for piece in received:
        missing = header.size - len(letter.records)
        if len(piece) > missing + header.bulk - letter.bulk.size:
            raise MachineError(f"expected {expected} bytes, got more")
        letter.records.extend(piece[:missing])
        if len(piece) > missing:
            letter.bulk.write(memoryview(piece)[missing:])
    got = len(letter.records) + letter.bulk.size
    if got != expected:
        raise MachineError(f"expected {expected} bytes, got {got}")
    return header, letter
