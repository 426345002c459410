"""What crosses the boundary between the engine and a worker: frames with a JSON header, on the worker's pipes.

Invariant: nothing crosses but JSON, records in Flower's own protobuf serialisation, and numbers in shared memory
(``simulations.memory``) whose shapes both sides know from the run's contract.

A frame, in both directions::

    uint32 le   length of the header
    uint64 le   length of the body
    header      JSON object; its "kind" says what the frame is
    body        a RecordDict as protobuf bytes; empty where there are no records

    to the worker     {"kind": "setup", ...}                        the fields of ``Sites``, before the first request
                      {"kind": "request", "site", "message_type"}   body: the message's records
                      {"kind": "ask", "sites", "message_type"}      the same for several sites; answers have no arrays
                      {"kind": "combine", ...}                      train and fold, see ``simulations.group``
                      all but "setup" also have "place", the worker's, from 0 on
    from the worker   {"kind": "ready"}                             once, when everything slow is imported
                      {"kind": "reply"}                             to "request"; body: the answer's records
                      {"kind": "answer", "site", "text"}            to "ask", one for each site; the body's JSON
                      {"kind": "answered"}                          after the last of these
                      {"kind": "part", ...}                         to "combine", see ``simulations.group``
                      {"kind": "failed", "reason"}                  the class of an exception, never its text
"""

import json
import struct
from io import RawIOBase
from typing import IO, Any

from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

_PREFIX = struct.Struct("<IQ")

Frame = tuple[dict[str, Any], bytes]


def write_frame(stream: IO[bytes], header: dict[str, Any], body: bytes = b"") -> None:
    """Send one frame; raises OSError where the other side is gone."""
    encoded = json.dumps(header).encode()
    stream.write(_PREFIX.pack(len(encoded), len(body)) + encoded)
    stream.write(body)
    stream.flush()


def read_frame(stream: IO[bytes] | RawIOBase) -> Frame | None:
    """The next frame and no byte more, or None at the end of the stream, also in the middle of a frame."""
    prefix = _read(stream, _PREFIX.size)
    if len(prefix) < _PREFIX.size:
        return None
    header_size, body_size = _PREFIX.unpack(prefix)
    header, body = _read(stream, header_size), _read(stream, body_size)
    if len(header) < header_size or len(body) < body_size:
        return None
    return json.loads(header), body


def _read(stream: IO[bytes] | RawIOBase, size: int) -> bytes:
    """So many bytes, fewer at the end of the stream; one without a buffer gives what is there."""
    pieces = []
    while size and (piece := stream.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def encode(content: RecordDict) -> bytes:
    """Records as bytes; raises ValueError above protobuf's 2 GiB."""
    return bytes(recorddict_to_proto(content).SerializeToString())


def decode(body: bytes) -> RecordDict:
    """Records from bytes; whatever is wrong with them raises, as what it is."""
    return recorddict_from_proto(ProtoRecordDict.FromString(body))
