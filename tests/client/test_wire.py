"""What executor and trainer send each other."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from client import wire
from fedretrain import parcel
from fedretrain.errors import ConfigurationError, MachineError

from .sites import TRAIN, Job, message_in, pieces

ASKED = wire.Question(size=3, id="1", message_type="train")
WITH_ARRAYS = ASKED.model_copy(update={"bulk": 2}).model_dump_json().encode()


def test_a_question_arrives_as_it_was_sent(tmp_path: Path) -> None:
    """Header, records and arrays, in pieces of at most 1 MiB, whatever the pieces they come in."""
    content = Job(width=200_000).request(TRAIN)
    decline = wire.Decline(code="policy", where="bundles")
    sent = list(pieces(content, id="1", message_type="train", decline=decline))
    assert max(map(len, sent)) == wire.PIECE_BYTES
    for stream in (sent, [sent[0], b"".join(sent[1:])]):
        header, letter = wire.question(stream, tmp_path)
        assert (header.id, header.message_type, header.decline) == ("1", "train", decline)
        assert parcel.parcelled(message_in(letter)) == parcel.parcelled(content)


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
    "arrays too short": [WITH_ARRAYS, b"xxxy"],
    "arrays too long": [WITH_ARRAYS, b"xxx", b"yyy"],
    "more arrays than can be": [ASKED.model_copy(update={"bulk": 2**40 + 1}).model_dump_json().encode()],
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_as_announced_is_refused(what: str, tmp_path: Path) -> None:
    """With our error, before more than was announced is kept."""
    with pytest.raises(MachineError, match="expected"):
        wire.question(REFUSED[what], tmp_path)


def test_a_stream_without_end_is_not_read_on(tmp_path: Path) -> None:
    """Whoever sends more than was announced is not listened to."""
    with pytest.raises(MachineError, match="got more"):
        wire.question(endless(), tmp_path)


def test_a_path_too_long_for_a_socket_says_what_to_do() -> None:
    """Instead of the system's "AF_UNIX path too long"."""
    with pytest.raises(ConfigurationError, match="shorter path"):
        wire.socket_path(Path("/x" * 60))
