"""What executor and trainer send each other."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from client import flowerside, wire
from fedretrain.errors import ConfigurationError, MachineError

from .sites import TRAIN, Job

ASKED = wire.Question(size=3, id="1", message_type="train")


def test_a_question_arrives_as_it_was_sent() -> None:
    """Header and records, in pieces of at most 1 MiB."""
    content = flowerside.to_bytes(Job(width=200_000).request(TRAIN))
    header = ASKED.model_copy(update={"size": len(content), "decline": wire.Decline(code="policy", where="bundles")})
    sent = list(wire.pieces(header, content))
    assert max(map(len, sent)) == wire.PIECE_BYTES
    assert wire.question(sent) == (header, content)
    assert flowerside.to_bytes(flowerside.from_bytes(content)) == content


def endless() -> Iterator[bytes]:
    yield ASKED.model_dump_json().encode()
    while True:
        yield b"xxxx"


REFUSED = {
    "nothing": [],
    "no header": [b"{"],
    "another version": [b'{"format":"fedretrain.wire/9","size":0,"id":"1","message_type":"train"}'],
    "more than can be": [ASKED.model_copy(update={"size": 2**31}).model_dump_json().encode()],
    "another refusal": [b'{"size":0,"id":"1","message_type":"train","decline":{"code":"data-empty"}}'],
    "too short": [ASKED.model_dump_json().encode(), b"xx"],
    "too long": [ASKED.model_dump_json().encode(), b"xxx", b"x"],
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_as_announced_is_refused(what: str) -> None:
    """With our error, before more than was announced is kept."""
    with pytest.raises(MachineError, match="expected"):
        wire.question(REFUSED[what])


def test_a_stream_without_end_is_not_read_on() -> None:
    """Whoever sends more than was announced is not listened to."""
    with pytest.raises(MachineError, match="got more"):
        wire.question(endless())


def test_a_path_too_long_for_a_socket_says_what_to_do() -> None:
    """Instead of the system's "AF_UNIX path too long"."""
    with pytest.raises(ConfigurationError, match="shorter path"):
        wire.socket_path(Path("/x" * 60))
