"""Replies as a SuperLink holds them: announced, and then object by object, undecoded."""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from flwr.app import Message
from flwr.serverapp import Grid

if TYPE_CHECKING:
    from flwr.superlink.grid import HttpGrid

RETRY_S = 1  # longest pause before a lost connection to the SuperLink is tried again; Flower's own is 20 s


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

    def announced(self, message_ids: Sequence[str]) -> list["Announced"]:
        """Replies to the messages that the SuperLink holds, and what it was not asked for; each is announced once."""
        from flwr.proto.runtime_pb2 import PullAppMessagesRequest

        found = self._client.PullMessages(PullAppMessagesRequest(message_ids=message_ids)).messages_list
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


def blob_size(body: bytes) -> int | None:
    """Length of the one value, of bytes under the name "bytes", that a ConfigRecord's body holds and nothing else.

    None where it holds anything else, of which a few bytes can become very many when Flower reads them.
    """
    at = length = 0
    for mark in (b"\x0a", b"\x0a\x05bytes\x12", b"\x32"):  # protobuf: the item; its key and value; the value's bytes
        if not body.startswith(mark, at):
            return None
        length, at = _varint(body, at + len(mark))
        if at + length != len(body):
            return None
    return length


def _varint(body: bytes, at: int) -> tuple[int, int]:
    """A number of protobuf's, and where it ends."""
    value = 0
    for i, byte in enumerate(body[at : at + 5]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, at + i + 1
    raise ValueError("expected a number of at most five bytes")


def inflate(root: str, contents: dict[str, bytes]) -> Message:
    """Put a message together from its objects, which are taken out of ``contents``; raises whatever Flower raises."""
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    message = inflate_object_from_contents(root, contents)
    if not isinstance(message, Message):
        raise TypeError("expected a message")
    message.metadata.__dict__["_message_id"] = root
    return message
