"""Parcels: what was packed is what is unpacked, and nothing else can be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st

from fedretrain import parcel
from fedretrain.messages import TrainRequest, pack
from fedretrain.parcel import BrokenParcel, array_parts, opened, parcelled

NAMES = st.text(max_size=6)
SCALARS = [st.integers(-(2**63), 2**63 - 1), st.floats()]
MORE = [*SCALARS, st.booleans(), st.text(max_size=9), st.binary(max_size=9)]
ARRAYS = st.builds(
    Array,
    st.text(max_size=9),
    st.lists(st.integers(0, 2**63 - 1), max_size=4).map(tuple),
    st.text(max_size=9),
    st.binary(max_size=40),
)
RECORDS = st.one_of(
    st.dictionaries(NAMES, st.one_of(*MORE, *(st.lists(each, max_size=3) for each in MORE))).map(ConfigRecord),
    st.dictionaries(NAMES, st.one_of(*SCALARS, *(st.lists(each, max_size=3) for each in SCALARS))).map(MetricRecord),
    st.dictionaries(NAMES, ARRAYS).map(ArrayRecord),
)
MESSAGES = st.dictionaries(NAMES.filter(lambda name: name != "head"), RECORDS, max_size=5).map(RecordDict)
BODY = TrainRequest(run="r1", round=3, contract="c" * 64, globals_digest="d" * 64)
Change = Callable[[RecordDict, dict[str, Any]], None]


def over_the_wire(content: RecordDict) -> RecordDict:
    return recorddict_from_proto(recorddict_to_proto(content))


def told(content: RecordDict) -> str:
    """Everything about a message: order, names, kinds, types and bytes."""
    return repr([(name, type(value).__name__, [(k, v) for k, v in value.items()]) for name, value in content.items()])


def message() -> RecordDict:
    """An ordinary one, whose arrays take three parts of 64 bytes."""
    arrays = {f"{i:05d}": np.arange(i, dtype=np.float32) for i in range(3)}
    return pack(BODY, arrays, {"num-examples": 3, "loss": 0.5})


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcel, "PART_BYTES", 150)


@given(content=MESSAGES, size=st.integers(1, 50))
def test_what_was_packed_is_unpacked_after_the_wire(content: RecordDict, size: int) -> None:
    """Whatever the records are, and wherever parts are cut: order, types, NaN and bytes are as they were."""
    with mock.patch.object(parcel, "PART_BYTES", size):
        packed = parcelled(content)
        data = sum(len(a.data) for r in content.values() if isinstance(r, ArrayRecord) for a in r.values())
        assert len(packed) == 1 + -(-data // size)
        assert told(opened(over_the_wire(packed))) == told(content)


def test_messages_with_the_same_arrays_share_their_parts() -> None:
    """The head alone differs; what is given is taken, and is what would have been made."""
    one, other = message(), message()
    other["seal"] = ConfigRecord({"signature": b"x" * 64})
    parts = array_parts(one)
    assert all(parcelled(other, parts)[name] is part for name, part in parts.items())
    assert told(parcelled(other, parts)) == told(parcelled(other))
    assert told(opened(parcelled(other, parts))) == told(other)


def test_what_is_no_parcel_comes_back_as_it_is() -> None:
    """An executor without a trainer answers in no parcel."""
    content = message()
    assert opened(content) is content


def test_the_form_is_the_one_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of this project reads it: the layout of a known message, character by character."""
    monkeypatch.setattr(parcel, "PART_BYTES", 4 * 2**20)
    packed = parcelled(
        RecordDict({"m": MetricRecord({"n": 1}), "a": ArrayRecord({"0": Array("u1", (2,), "raw", b"xy")})})
    )
    assert dict(packed["part-0"]) == {"bytes": b"xy"}
    assert dict(packed["head"]) == {
        "json": (Path(__file__).parent / "golden" / "parcel.json").read_text().strip(),
        "0": 1,
    }


def head(content: RecordDict, **values: Any) -> None:
    content["head"] = ConfigRecord({**content["head"], **values})


def without(content: RecordDict, name: str) -> None:
    content["head"] = ConfigRecord({k: v for k, v in content["head"].items() if k != name})


def array(index: int, **changes: Any) -> Change:
    return lambda _, layout: layout["records"][1]["arrays"][index].update(changes)


BROKEN: dict[str, Change] = {
    "a head of arrays": lambda c, _: c.update(head=ArrayRecord()),
    "no layout": lambda c, _: without(c, "json"),
    "a layout of bytes": lambda c, _: head(c, json=b"{}"),
    "no json": lambda c, _: head(c, json="{"),
    "json nested deep": lambda c, _: head(c, json="[" * 100_000),
    "another version": lambda _, layout: layout.update(format="fedretrain.parcel/2"),
    "an unknown field": lambda _, layout: layout.update(more=1),
    "an unknown kind": lambda _, layout: layout["records"][0].update(kind="pickle"),
    "a record twice": lambda _, layout: layout["records"][0].update(name="arrays"),
    "a key twice": lambda _, layout: layout["records"][0].update(keys=["json", "json"]),
    "an array twice": array(0, key="00001"),
    "values in arrays": lambda _, layout: layout["records"][1].update(keys=["json"]),
    "arrays in values": lambda _, layout: layout["records"][0].update(arrays=layout["records"][1]["arrays"]),
    "arrays as numbers": lambda _, layout: layout["records"][1].update(kind="metrics"),
    "a text among numbers": lambda c, _: head(c, **{"3": "many"}),
    "a size that is a text": array(0, size="128"),
    "a size below zero": array(0, size=-1),
    "a size beyond all bounds": array(0, size=2**62),
    "bytes left over": array(0, size=127),
    "bytes missing": array(2, size=137),
    "a shape below zero": array(0, shape=[-1]),
    "a value missing": lambda c, _: without(c, "1"),
    "a value too many": lambda c, _: head(c, **{"9": 1}),
    "a part missing": lambda c, _: c.__delitem__("part-1"),
    "a part too many": lambda c, _: c.update({"part-3": ConfigRecord({"bytes": b"x"})}),
    "a part that is empty": lambda c, _: c.update({"part-3": ConfigRecord({"bytes": b""})}),
    "a part of something else": lambda c, _: c.update({"part-1": ConfigRecord({"bytes": "x" * 150})}),
    "a part of more": lambda c, _: c.update({"part-1": ConfigRecord({"bytes": b"x" * 150, "more": 1})}),
    "a part of arrays": lambda c, _: c.update({"part-1": ArrayRecord()}),
    "parts cut elsewhere": lambda c, _: c.update(
        {"part-0": ConfigRecord({"bytes": b"x" * 149}), "part-1": ConfigRecord({"bytes": b"x" * 151})}
    ),
    "something beside": lambda c, _: c.update(seal=ConfigRecord()),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_parcel_that_does_not_fit_together_is_refused(name: str) -> None:
    """One thing is wrong in each."""
    content = parcelled(message())
    layout = json.loads(content["head"]["json"])
    before = json.dumps(layout)
    BROKEN[name](content, layout)
    if json.dumps(layout) != before:
        head(content, json=json.dumps(layout))
    with pytest.raises(BrokenParcel):
        opened(content)


def test_a_head_with_too_much_in_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Characters before they are read, values before anything is made of them."""
    content = parcelled(message())
    monkeypatch.setattr(parcel, "VALUES_LIMIT", 6)
    with pytest.raises(BrokenParcel, match="at most 6"):
        opened(content)
    monkeypatch.setattr(parcel, "LAYOUT_LIMIT", 100)
    with pytest.raises(BrokenParcel, match="at most 100 characters"):
        opened(content)


@given(
    layout=st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda s: (
            st.lists(s)
            | st.dictionaries(
                st.sampled_from(["format", "records", "name", "kind", "keys", "arrays", "size", "shape"]), s
            )
        ),
    ),
    value=MORE[4],
)
def test_whatever_a_peer_writes_is_refused_in_one_way(layout: Any, value: bytes) -> None:
    """No other error escapes."""
    content = RecordDict({"head": ConfigRecord({"json": json.dumps(layout)}), "part-0": ConfigRecord({"bytes": value})})
    with pytest.raises(BrokenParcel):
        opened(content)
