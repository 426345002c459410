r"""A message packed into few objects: Flower moves every record, array and piece of an array with a request of its own.

Invariants:

- ``opened(parcelled(content))`` has the same records with the same values, types and bytes, in the same order.
- What ``opened`` allocates for arrays is at most what the parts hold; anything inconsistent is refused before that.
- The parts depend on the arrays alone, so messages with the same arrays share them: see ``array_parts``.
- A large message need not be in memory: ``split`` and ``joined`` are the same with the arrays' bytes left as they lie.

A parcel is a ``RecordDict``::

    "head"                ConfigRecord {"json": layout, "0": value, "1": value, ...}
    "part-0", "part-1"..  ConfigRecord {"bytes": at most 4 MiB}: the arrays' bytes, one array after the other, cut

The layout is JSON, ``{"format": "fedretrain.parcel/1", "records": [...]}``, with the records in their order::

    {"name": ..., "kind": "config" or "metrics", "keys": [...]}    its values are the next ones of the head
    {"name": ..., "kind": "arrays", "arrays": [{"key", "dtype", "shape", "stype", "size": bytes}, ...]}
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Annotated, Any, Literal

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import FedretrainError

FORMAT: Literal["fedretrain.parcel/1"] = "fedretrain.parcel/1"
HEAD = "head"
PART_BYTES = 4 * 2**20  # in one request of Flower's, and in one object that is pushed again after a lost connection
LAYOUT_LIMIT = 8 * 2**20  # characters; an array takes some 100
VALUES_LIMIT = 100_000  # values and arrays in one message

Count = Annotated[int, Field(ge=0, lt=2**63)]
Parts = Mapping[str, ConfigRecord]
Bytes = bytes | memoryview
_Values = Callable[[dict[str, Any]], ConfigRecord | MetricRecord]


class BrokenParcel(FedretrainError):
    """A parcel that does not fit together; the text says where and repeats nothing of it."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Array(_Part):
    key: str
    dtype: str
    shape: tuple[Count, ...]
    stype: str
    size: Count


class _Record(_Part):
    """``keys`` belong to config and metrics, ``arrays`` to arrays."""

    name: str
    kind: Literal["config", "metrics", "arrays"]
    keys: tuple[str, ...] = ()
    arrays: tuple[_Array, ...] = ()


class _Layout(_Part):
    format: Literal["fedretrain.parcel/1"] = FORMAT
    records: tuple[_Record, ...]

    @property
    def sizes(self) -> list[int]:
        """Bytes of each array in turn."""
        return [array.size for record in self.records for array in record.arrays]

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(self.sizes)


def parcelled(content: RecordDict, parts: Parts | None = None) -> RecordDict:
    """The message as a parcel; ``parts`` are ``array_parts`` of a message with the same arrays."""
    layout = _Layout(records=tuple(_described(name, value) for name, value in content.items()))
    values = (value for record in content.values() if not isinstance(record, ArrayRecord) for value in record.values())
    head = {"json": layout.model_dump_json()} | {str(i): value for i, value in enumerate(values)}
    return RecordDict({HEAD: ConfigRecord(head), **(array_parts(content) if parts is None else parts)})


def array_parts(content: RecordDict) -> Parts:
    """The parts of a message's parcel by name."""
    found = (array.data for record in content.values() if isinstance(record, ArrayRecord) for array in record.values())
    return {part_name(i): ConfigRecord({"bytes": piece}) for i, piece in enumerate(_cut(found))}


def opened(content: RecordDict) -> RecordDict:
    """The message in a parcel; one that is in no parcel comes back as it is.

    Raises:
        BrokenParcel: The parcel does not fit together.
    """
    if HEAD not in content:
        return content
    layout = _layout(_config(content, HEAD))
    parts = _parts(content, layout.size)
    return _message(layout, _config(content, HEAD), _joined(parts, layout.sizes))


def split(content: RecordDict) -> tuple[RecordDict, list[Bytes]]:
    """A message's parcel in two: the head alone, and the bytes that its parts are cut from, array by array."""
    data: list[Bytes] = []
    for record in content.values():
        if isinstance(record, ArrayRecord):
            data += (array.data for array in record.values())
    return parcelled(content, {}), data


def joined(head: RecordDict, data: Bytes | None) -> RecordDict:
    """The message from the head of its parcel and the bytes of its parts in one.

    Args:
        head: The parcel without its parts; a message that is in no parcel comes back as it is.
        data: Nothing of it is copied: each array's ``data`` is a view of it. None leaves out the records of arrays.

    Raises:
        BrokenParcel: They do not fit together.
    """
    if HEAD not in head and not data:
        return head
    layout = _layout(_config(head, HEAD))
    if set(head) != {HEAD} or (data is not None and len(data) != layout.size):
        raise BrokenParcel(f"expected a head and {layout.size} bytes of arrays")
    return _message(layout, _config(head, HEAD), None if data is None else _slices(memoryview(data), layout.sizes))


def announced(head: RecordDict) -> int:
    """Bytes of arrays that go with a parcel's head; 0 where it is none, or broken."""
    try:
        return _layout(_config(head, HEAD)).size if HEAD in head else 0
    except BrokenParcel:
        return 0


def part_name(number: int) -> str:
    """The record in which the parts' bytes ``number * PART_BYTES`` and following are."""
    return f"part-{number}"


def array_of(dtype: str, shape: tuple[int, ...], stype: str, data: Bytes) -> Array:
    """A Flower array whose ``data`` are where they are; for an ``ArrayRecord`` item by item, as that copies a dict's.

    Flower itself makes arrays of ``bytes`` alone, which would be a copy as well.
    """
    made = Array(dtype, shape, stype, b"")
    made.data = data  # type: ignore[assignment]  # a memoryview is read as bytes are, and need not be in memory
    return made


def _described(name: str, value: ArrayRecord | ConfigRecord | MetricRecord) -> _Record:
    if isinstance(value, ArrayRecord):
        arrays = ((key, a) for key, a in value.items())
        described = [
            _Array(key=key, dtype=a.dtype, shape=tuple(a.shape), stype=a.stype, size=len(a.data)) for key, a in arrays
        ]
        return _Record(name=name, kind="arrays", arrays=tuple(described))
    return _Record(name=name, kind="config" if isinstance(value, ConfigRecord) else "metrics", keys=tuple(value))


def _cut(data: Iterable[bytes]) -> Iterator[bytes]:
    """The bytes, one after the other, in pieces of ``PART_BYTES``; the last may be shorter."""
    waiting: list[memoryview] = []
    room = PART_BYTES
    for each in data:
        rest = memoryview(each)
        while len(rest) >= room:
            yield b"".join([*waiting, rest[:room]])
            rest, waiting, room = rest[room:], [], PART_BYTES
        if rest:
            waiting.append(rest)
            room -= len(rest)
    if waiting:
        yield b"".join(waiting)


def _config(content: RecordDict, name: str) -> ConfigRecord:
    found = content.get(name)
    if not isinstance(found, ConfigRecord):
        raise BrokenParcel(f"expected {name.partition('-')[0]} of the parcel to be a ConfigRecord")
    return found


def _layout(head: ConfigRecord) -> _Layout:
    text = head.get("json")
    if not isinstance(text, str) or len(text) > LAYOUT_LIMIT:
        raise BrokenParcel(f"expected a head with JSON of at most {LAYOUT_LIMIT} characters")
    try:
        layout = _Layout.model_validate_json(text)
    except (ValidationError, ValueError):
        raise BrokenParcel(f"the parcel's head is not of the format {FORMAT}") from None
    names = [(record.name,) for record in layout.records]
    named = [(record.name, key) for record in layout.records for key in record.keys]
    named += [(record.name, array.key) for record in layout.records for array in record.arrays]
    if len(named) > VALUES_LIMIT or len({*names, *named}) != len(names) + len(named):
        raise BrokenParcel(f"expected different names in the parcel's head, at most {VALUES_LIMIT}")
    if any(record.keys if record.kind == "arrays" else record.arrays for record in layout.records):
        raise BrokenParcel("expected arrays in records of arrays, and values in the others")
    return layout


def _parts(content: RecordDict, size: int) -> list[bytes]:
    """The parts, with ``size`` bytes together; each but the last is full."""
    number = len(content) - 1
    if {part_name(i) for i in range(number)} | {HEAD} != set(content):
        raise BrokenParcel("expected a head and parts with consecutive numbers, and nothing else")
    found = [_bytes(_config(content, part_name(i))) for i in range(number)]
    if sum(map(len, found)) != size or any(len(part) != PART_BYTES for part in found[:-1]):
        raise BrokenParcel(f"expected {size} bytes of arrays in parts of {PART_BYTES}, the last one shorter or as long")
    return found


def _bytes(part: ConfigRecord) -> bytes:
    value = part.get("bytes")
    if len(part) != 1 or not isinstance(value, bytes) or not value:
        raise BrokenParcel("expected a part to hold bytes and nothing else")
    return value


def _values(head: ConfigRecord, number: int) -> Iterator[Any]:
    if len(head) != number + 1 or any(str(i) not in head for i in range(number)):
        raise BrokenParcel(f"expected {number} numbered values in the parcel's head")
    return (head[str(i)] for i in count())


def _joined(parts: Sequence[bytes], sizes: Iterable[int]) -> Iterator[bytes]:
    """The bytes of each array in turn."""
    start = 0
    for size in sizes:
        end = start + size
        touched = range(start // PART_BYTES, -(-end // PART_BYTES))
        yield b"".join(
            memoryview(parts[i])[max(start - i * PART_BYTES, 0) : min(end - i * PART_BYTES, PART_BYTES)]
            for i in touched
        )
        start = end


def _slices(data: memoryview, sizes: Iterable[int]) -> Iterator[memoryview]:
    """The bytes of each array in turn, where they are."""
    start = 0
    for size in sizes:
        yield data[start : start + size]
        start += size


def _message(layout: _Layout, head: ConfigRecord, data: Iterator[Bytes] | None) -> RecordDict:
    """The records; without those of arrays where there are no ``data``."""
    values = _values(head, sum(len(record.keys) for record in layout.records))
    wanted = [record for record in layout.records if data is not None or record.kind != "arrays"]
    try:
        return RecordDict({record.name: _restored(record, values, data or iter(())) for record in wanted})
    except (TypeError, ValueError) as error:
        raise BrokenParcel(
            f"the parcel's head has values of a kind that does not belong ({type(error).__name__})"
        ) from None


def _restored(
    record: _Record, values: Iterator[Any], data: Iterator[Bytes]
) -> ArrayRecord | ConfigRecord | MetricRecord:
    if record.kind == "arrays":
        arrays = ArrayRecord()
        for a in record.arrays:
            arrays[a.key] = array_of(a.dtype, a.shape, a.stype, next(data))
        return arrays
    kind: _Values = ConfigRecord if record.kind == "config" else MetricRecord
    return kind({key: next(values) for key in record.keys})
