"""Replies written by hand, through a real SuperLink: each costs itself alone, and nothing is waited for."""

import io
import pickle
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.recorddict_pb2 import ConfigRecord as ProtoConfigRecord
from flwr.proto.recorddict_pb2 import ConfigRecordValue as ConfigValue

from fedretrain.arrays import view
from fedretrain.contract import VariableSpec
from fedretrain.errors import RejectedUpdate
from fedretrain.messages import record
from server import guarded as module
from server.guarded import GuardedGrid, guarded

from .fleet import Link, Raw, Site, eventually, make_bundle, make_federation, npy, raw_array, raw_records, running

SPEC = VariableSpec(shape=(3,), dtype="float32", rule="train")
GOOD = np.arange(3, dtype="float32")
BAD = "malformed"
MEMORY = 48 * 2**20  # bytes it may take to refuse something

pytestmark = pytest.mark.slow


class Stage:
    """A run with two sites, of which the second is honest."""

    def __init__(self, link: Link, grid: GuardedGrid) -> None:
        control = link.control()
        self.grid = grid
        self.details: list[str] = []
        self.bad, self.good = Site(link, "bad").join(control), Site(link, "good").join(control)

    def ask(self, site: Site) -> tuple[str, Message]:
        """A message's id and the message as the site sees it."""
        content = RecordDict({"body": ConfigRecord({"json": "{}"})})
        (message_id,) = self.grid.push_messages([Message(content, site.node_id, "train", ttl=120)])
        return message_id, site.asked()

    def judge(self, records: Raw, *, limit: int = 2**20) -> str:
        """What becomes of a reply of the bad site: "taken" or the code; the honest one's is always taken."""
        self.grid.limit(limit)
        (bad, bad_asked), (good, good_asked) = self.ask(self.bad), self.ask(self.good)
        self.bad.answer(bad_asked, records)
        self.good.answer(good_asked, raw_records({"0": raw_array(npy(GOOD))}))
        verdict = self.verdict(bad)
        assert self.verdict(good) == "taken"
        return verdict

    def verdict(self, message_id: str) -> str:
        found: list[Message] = []
        try:
            assert eventually(lambda: bool(found.extend(self.grid.pull_messages([message_id])) or found), 20.0)
            arrays = record(found[0].content, "arrays", ArrayRecord)
            assert arrays is not None
            for key in arrays:
                view(key, arrays[key], SPEC)
        except RejectedUpdate as refusal:
            self.details.append(refusal.detail)
            return refusal.code
        return "taken"


@contextmanager
def frugal() -> Iterator[None]:
    """The block allocates little."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    with running(make_federation(tmp_path_factory.mktemp("guarded") / "federation")) as started:
        yield started


@pytest.fixture
def stage(link: Link, tmp_path: Path) -> Iterator[Stage]:
    found = Stage(link, link.grid(make_bundle(tmp_path, "pass")))
    yield found
    link.control().stop_run(found.grid.run.run_id)


def test_an_honest_reply_is_taken_and_the_superlink_forgets_it(stage: Stage) -> None:
    """What arrives are the bytes that were sent; an array that names a piece twice counts twice and is allowed to."""
    message_id, asked = stage.ask(stage.bad)
    root = stage.bad.answer(asked, raw_records({"0": raw_array(npy(GOOD)), "1": raw_array(b"abc", repeated=2)}))
    (reply,) = stage.grid.pull_messages([message_id])
    arrays = record(reply.content, "arrays", ArrayRecord)
    assert arrays is not None
    assert view("0", arrays["0"], SPEC).tolist() == [0, 1, 2]
    assert arrays["1"].data == b"abcabc"
    assert reply.metadata.src_node_id == stage.bad.node_id
    with pytest.raises(KeyError):
        stage.grid._objects.fetch(root.id)


def test_fault_01_metadata_that_is_no_json_is_refused(stage: Stage) -> None:
    """An array, a record and the message's own tree: each in turn with a body that cannot be read."""
    chunk = Raw("ArrayChunk", npy(GOOD))
    for body in (b"{", b"[]", b'{"arraychunk_ids": [7]}', b'{"arraychunk_ids": [true]}', b"[" * 5000):
        assert stage.judge(raw_records({"0": Raw("Array", body, [chunk])})) == "malformed"
    assert stage.judge(Raw("RecordDict", b'{"a": "b"', [raw_array(npy(GOOD))])) == "malformed"
    assert stage.judge(chunk) == "malformed"
    assert stage.judge(raw_records({"0": raw_records({"0": raw_array(npy(GOOD))})})) == "malformed"
    assert stage.judge(raw_records({}, {"c": Raw("ConfigRecord", b"\xff\xff")})) == "malformed"


def test_fault_04_strings_and_complex_numbers_are_refused(stage: Stage) -> None:
    """By what they are and by what they say they are."""
    assert stage.judge(raw_records({"0": raw_array(npy(GOOD), dtype="complex64")})) == "dtype"
    assert stage.judge(raw_records({"0": raw_array(npy(np.array(["a", "b", "c"])))})) == "dtype"


def test_fault_06_archives_and_pickles_are_refused_unread(stage: Stage) -> None:
    """A pickle that would leave a mark when loaded leaves none."""
    archive = io.BytesIO()
    np.savez(archive, GOOD)
    assert stage.judge(raw_records({"0": raw_array(archive.getvalue())})) == "malformed"
    assert stage.judge(raw_records({"0": raw_array(pickle.dumps(_Mark()))})) == "malformed"
    assert not _Mark.left


def test_fault_07_a_header_that_lies_is_refused_before_allocation(stage: Stage) -> None:
    """A terabyte promised in an npy header is not allocated."""
    lie = npy(GOOD).replace(b"(3,), }" + b" " * 11, b"(300000000000,), }")
    assert b"300000000000" in lie
    with frugal():
        assert stage.judge(raw_records({"0": raw_array(lie)})) == "shape"


@pytest.mark.parametrize("way", ["pieces", "names"])
def test_fault_08_what_expands_is_refused_while_it_is_small(stage: Stage, way: str) -> None:
    """4 MB that would become 160 MB, by one piece named often or one array named often: memory stays as it was."""
    data = bytes(4 * 2**20)
    bomb = (
        {"0": raw_array(data, repeated=40)} if way == "pieces" else dict.fromkeys(map(str, range(40)), raw_array(data))
    )
    with frugal():
        assert stage.judge(raw_records(bomb), limit=64 * 2**20) == "malformed"
    assert "arrays of at most" in stage.details[0]


def test_fault_08_more_bytes_than_the_limit_are_not_fetched(stage: Stage) -> None:
    """Ten times the limit travels, a little more than the limit is fetched."""
    fetched: list[int] = []
    original = stage.grid._objects.fetch

    def fetch(object_id: str) -> bytes | None:
        content = original(object_id)
        fetched.append(len(content or b""))
        return content

    stage.grid._objects.fetch = fetch  # type: ignore[method-assign]
    arrays = {str(i): raw_array(np.full(25_000, i, "float32").tobytes()) for i in range(20)}
    assert stage.judge(raw_records(arrays), limit=200_000) == "malformed"
    assert sum(fetched) < 600_000
    assert "arrays of at most" in stage.details[0]


@pytest.mark.parametrize("way", ["parts", "values"])
def test_fault_08_records_that_expand_are_refused_while_they_are_small(stage: Stage, way: str) -> None:
    """A part of a parcel named forty times, and 10 MB of one-letter values: memory stays as it was."""
    if way == "parts":
        part = part_of(4 * 2**20)
        assert stage.judge(raw_records({}, dict.fromkeys((f"part-{i}" for i in range(40)), part)), limit=2**26) == BAD
        assert "arrays of at most" in stage.details[0]
        return
    value = ProtoConfigRecord(items=[ProtoConfigRecord.Item(key="a", value=ConfigValue(bytes=b""))])
    values = Raw("ConfigRecord", value.SerializeToString() * 1_200_000)
    with frugal():
        assert stage.judge(raw_records({}, {"head": values}), limit=2**26) == BAD
    assert "around the arrays" in stage.details[0]


def test_a_part_of_a_parcel_counts_as_arrays_do(stage: Stage) -> None:
    """To the byte: at the limit it is taken, beyond it is not fetched any further."""
    for size, verdict in ((5000, "taken"), (5001, BAD)):
        message_id, asked = stage.ask(stage.bad)
        stage.grid.limit(5000)
        stage.bad.answer(asked, raw_records({}, {"part-0": part_of(size)}))
        assert stage.verdict(message_id) == verdict


def test_a_question_for_one_reply_is_a_question_for_all(stage: Stage) -> None:
    """One request finds out that both are there; each is fetched by whoever asks for it."""
    asked: list[int] = []
    original = stage.grid._objects.announced
    stage.grid._objects.announced = lambda ids: asked.append(len(ids)) or original(ids)  # type: ignore[method-assign]
    (one, first), (other, second) = stage.ask(stage.bad), stage.ask(stage.good)
    for site, message in ((stage.bad, first), (stage.good, second)):
        site.answer(message, raw_records({"0": raw_array(npy(GOOD))}))
    assert [len(list(stage.grid.pull_messages([i]))) for i in (one, other)] == [1, 1]
    assert asked == [2]


def test_a_reply_of_too_many_objects_or_too_much_around_the_arrays_is_refused(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted as they are named, before they are fetched."""
    monkeypatch.setattr(module, "OBJECTS_LIMIT", 8)
    assert stage.judge(raw_records({str(i): raw_array(bytes([i])) for i in range(9)})) == "malformed"
    assert "at most 8 objects" in stage.details[0]
    monkeypatch.setattr(module, "METADATA_LIMIT", 2000)
    assert stage.judge(raw_records({"0": raw_array(npy(GOOD), dtype="f" * 3000)})) == "malformed"
    assert "around the arrays" in stage.details[1]


def test_fault_09_an_unknown_serialisation_is_refused(stage: Stage) -> None:
    """Only NumPy's own is known."""
    assert stage.judge(raw_records({"0": raw_array(npy(GOOD), stype="torch.pickle")})) == "malformed"


def test_fault_22_a_reply_that_is_announced_and_never_sent_holds_nobody_up(stage: Stage) -> None:
    """Each question for it is answered at once with nothing, ever more rarely; the honest reply arrives meanwhile."""
    (bad, bad_asked), (good, good_asked) = stage.ask(stage.bad), stage.ask(stage.good)
    stage.bad.answer(bad_asked, raw_records({"0": raw_array(npy(GOOD))}), withhold=lambda o: o.kind == "Message")
    stage.good.answer(good_asked, raw_records({"0": raw_array(npy(GOOD))}))
    start = time.monotonic()
    assert list(stage.grid.pull_messages([bad])) == []
    assert time.monotonic() - start < 2.0
    assert stage.verdict(good) == "taken"
    assert list(stage.grid.pull_messages([bad])) == []


def test_a_reply_in_pieces_is_taken_when_the_last_has_come(stage: Stage) -> None:
    """A piece that is late is asked for alone, and nothing of the rest is fetched again until it is there."""
    message_id, asked = stage.ask(stage.bad)
    records = raw_records({"0": raw_array(npy(GOOD))})
    root = stage.bad.answer(asked, records, withhold=lambda o: o.kind == "ArrayChunk")
    assert list(stage.grid.pull_messages([message_id])) == []
    waiting: list[str] = []
    original = stage.grid._objects.fetch
    stage.grid._objects.fetch = lambda i: waiting.append(i) or original(i)  # type: ignore[method-assign]
    time.sleep(0.3)
    assert list(stage.grid.pull_messages([message_id])) == []
    assert len(waiting) == 1
    stage.bad.send_object(asked.metadata.run_id, waiting[0], root.all()[waiting[0]])
    assert stage.verdict(message_id) == "taken"


def test_a_reply_whose_site_gave_up_is_late(stage: Stage) -> None:
    """The SuperLink forgets what was not sent within three minutes; that ends the waiting."""
    message_id, asked = stage.ask(stage.bad)
    root = stage.bad.answer(asked, raw_records({}), withhold=lambda o: o.kind == "Message")
    assert list(stage.grid.pull_messages([message_id])) == []
    stage.grid._objects.done(root.id)
    with pytest.raises(RejectedUpdate, match="late"):
        eventually(lambda: bool(list(stage.grid.pull_messages([message_id]))), 5.0)


def test_an_error_instead_of_a_reply_passes_as_an_error(stage: Stage) -> None:
    """It has no content to wait for."""
    message_id, asked = stage.ask(stage.bad)
    reply = Message(Error(code=2, reason="secret"), reply_to=asked)
    root = Raw("Message", message_to_proto(reply).SerializeToString(deterministic=True))
    stage.bad._send(root, reply, set())
    (found,) = stage.grid.pull_messages([message_id])
    assert found.has_error()
    assert int(found.error.code) == 2


def test_the_pause_grows_with_the_time_a_reply_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fiftieth of the time it is out, a second at most; longer where most of a reply was fetched for nothing."""
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    out = module._Out()
    pauses = []
    for now in (0.0, 10.0, 100.0):
        out.wait("")
        pauses.append(out.due - now)
    assert pauses == pytest.approx([0.05, 0.25, 1.0])
    for i in range(10):
        out.wait(f"piece {i}")
    assert out.due - now == pytest.approx(10.0)


def test_another_grid_stays_as_it_is() -> None:
    """Only replies from outside need guarding."""
    from flwr.superlink.grid import InMemoryGrid

    grid = InMemoryGrid.__new__(InMemoryGrid)
    assert guarded(grid) is grid


def part_of(size: int) -> Raw:
    """A part of a parcel."""
    value = ProtoConfigRecord.Item(key="bytes", value=ConfigValue(bytes=bytes(size)))
    return Raw("ConfigRecord", ProtoConfigRecord(items=[value]).SerializeToString())


class _Mark:
    left: ClassVar[list[str]] = []

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return _Mark.left.append, ("unpickled",)
