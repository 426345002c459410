"""Admission: every way a reply can be wrong, by the number of its fault; and a reply that is right."""

import io
import math
import tracemalloc
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedretrain.digest import weights_digest
from fedretrain.errors import RejectedUpdate
from fedretrain.messages import BaseReply, Declined, PrepareReply, TrainReply, pack
from server import admission
from server.admission import Expected, Update, admit_base, admit_prepare, admit_train, judged, wire_bytes

from .grid import CONTRACT, changing_keys

KEYS = changing_keys()  # a matrix [3, 2], a vector [2], a number []
EXPECTED = Expected("r1", 3, CONTRACT.digest, "g" * 64, dict(zip(KEYS, CONTRACT.changing_specs, strict=True)))
BODY = TrainReply(run="r1", round=3, site="a", contract=CONTRACT.digest, globals_digest="g" * 64, update_digest="")


def arrays() -> dict[str, NDArray[Any]]:
    values = [np.arange(6, dtype=np.float32).reshape(3, 2), np.float32([7, 8]), np.asarray(9, np.float32)]
    return dict(zip(KEYS, values, strict=True))


def reply(
    given: Mapping[str, NDArray[Any]] | None = None, metrics: Mapping[str, Any] | None = None, **body: Any
) -> RecordDict:
    """A train reply that is right but for what is given."""
    given = arrays() if given is None else given
    body = {"update_digest": weights_digest(given.values()), **body}
    return pack(BODY.model_copy(update=body), given, {"num-examples": 5} if metrics is None else metrics)


def with_array(array: Array, key: str = KEYS[0]) -> RecordDict:
    """A train reply with one array replaced as it stands on the wire."""
    content = reply()
    content.array_records["arrays"].__dict__["_data"][key] = array
    return content


def npy(array: NDArray[Any], **save: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **save)
    return buffer.getvalue()


def raw(data: bytes, dtype: str = "float32", shape: tuple[int, ...] = (3, 2), stype: str = "numpy.ndarray") -> Array:
    return Array(dtype=dtype, shape=shape, stype=stype, data=data)


def admit(content: RecordDict, declared: int = 10) -> Update:
    update = admit_train(content, "a", declared, EXPECTED)
    assert isinstance(update, Update)
    return update


def refused(content: RecordDict, why: str | None = None) -> str:
    """The code of the refusal, whose detail matches ``why`` where that is given."""
    with pytest.raises(RejectedUpdate, match=why) as caught:
        admit_train(content, "a", 10, EXPECTED)
    assert caught.value.code in RejectedUpdate.CODES
    assert len(caught.value.detail) < 400
    return caught.value.code


def test_a_right_reply_is_admitted_without_copying() -> None:
    """Arrays in the contract's order as views of what arrived, the norm in float64, the bytes with their headers."""
    content = reply(metrics={"num-examples": 5, "val_loss": 0.25, "steps": 3})
    update = admit(content)
    assert [a.tolist() for a in update.arrays] == [a.tolist() for a in arrays().values()]
    assert not any(a.flags.owndata for a in update.arrays)
    assert (update.site, update.examples, update.flags) == ("a", 5, ())
    assert update.norm == pytest.approx(math.sqrt(sum(n * n for n in (0, 1, 2, 3, 4, 5, 7, 8, 9))))
    assert wire_bytes(content) == 3 * 128 + 9 * 4
    assert update.claims == {"val_loss": 0.25, "steps": 3.0}


def test_the_order_of_the_records_does_not_matter() -> None:
    """Keys name the variables; the order in which they were put in does not."""
    content = reply()
    content["arrays"] = ArrayRecord(dict(reversed(content.array_records["arrays"].items())))
    assert [a.shape for a in admit(content).arrays] == [(3, 2), (2,), ()]


def test_fault_01_a_body_that_is_not_json() -> None:
    """Body texts that are no JSON, nest without end, or are of another version are malformed."""
    for text in ("{", '{"kind":"train"}', "[" * 10_000, "[]", "\ud800", '{"kind":"nonsense"}', "x" * 20_000):
        content = reply()
        content["body"] = ConfigRecord({"format": "fedretrain.message/1", "json": text})
        assert refused(content) == "malformed"
    for record in ({}, {"format": "fedretrain.message/2", "json": "{}"}, {"format": "fedretrain.message/1", "json": 5}):
        content["body"] = ConfigRecord(record)  # type: ignore[arg-type]  # invariant dict
        assert refused(content) == "malformed"
    del content["body"]
    assert refused(content) == "malformed"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", KEYS)
def test_fault_02_a_value_that_is_not_finite(key: str, value: float) -> None:
    """One NaN or infinity anywhere."""
    given = arrays()
    given[key].reshape(-1)[-1] = value
    assert refused(reply(given)) == "not-finite"


@pytest.mark.parametrize("shape", [(2, 3), (6,), (3, 2, 1), (1, 3, 2)])
def test_fault_03_a_wrong_shape(shape: tuple[int, ...]) -> None:
    """The same number of elements in another shape, declared honestly or not."""
    other = np.zeros(shape, np.float32)
    assert refused(reply({**arrays(), KEYS[0]: other})) == "shape"
    assert refused(with_array(raw(npy(other)))) == "shape"
    assert refused(with_array(raw(npy(np.zeros((3, 2), np.float32)), shape=shape))) == "shape"


@pytest.mark.parametrize("dtype", ["float16", "int32", ">f4", "S4", "complex64", "bool"])
def test_fault_04_a_wrong_dtype(dtype: str) -> None:
    """Other numbers, another byte order, strings, complex numbers; declared honestly or not."""
    data = npy(np.zeros((3, 2), dtype)).ljust(128 + 24, b"\0")[: 128 + 24]
    if np.dtype(dtype).itemsize <= 4:
        assert refused(with_array(raw(data))) in {"dtype", "malformed"}
        assert refused(with_array(raw(data, dtype=dtype))) in {"dtype", "malformed"}
    assert refused(with_array(raw(npy(np.zeros((3, 2), np.float32)), dtype=dtype))) == "dtype"
    assert refused(with_array(raw(npy(np.zeros((3, 2), dtype))))) in {"dtype", "malformed"}


def test_fault_05_a_key_too_many_or_too_few() -> None:
    """Exactly the changing variables: a frozen one, a missing one, a renamed one, none at all, no record."""
    given = arrays()
    assert refused(reply({**given, "00000": np.zeros((4, 3), np.float32)})) == "variables"
    assert refused(reply(dict(list(given.items())[1:]))) == "variables"
    assert refused(reply({("x" * 10_000 if k == KEYS[0] else k): v for k, v in given.items()})) == "variables"
    assert refused(reply({})) == "variables"
    content = reply()
    del content["arrays"]
    assert refused(content) == "variables"


def test_fault_06_an_npz_or_a_pickle_is_never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Payloads that NumPy or pickle would open are refused unread."""
    monkeypatch.setattr("pickle.load", lambda *_, **__: pytest.fail("unpickled"))
    monkeypatch.setattr("pickle.loads", lambda *_, **__: pytest.fail("unpickled"))
    packed = io.BytesIO()
    np.savez(packed, a=np.zeros((3, 2), np.float32))
    objects = np.array([[None, "x"]] * 3, dtype=object)
    for data in (packed.getvalue(), npy(objects, allow_pickle=True), objects.dumps()):
        assert refused(with_array(raw(data))) in {"malformed", "dtype"}
        assert refused(with_array(raw(data.ljust(140, b"\0")[:140]))) in {"malformed", "dtype"}


def header(text: bytes, version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text


SHORT = b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }\n"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (header(SHORT.replace(b"(3", b"(300000000000")) + bytes(24), "got .300000000000, 2"),
        (header(SHORT.replace(b"3, 2", b"9" * 900)) + bytes(24), "header of a plain npy array"),
        (header(SHORT) + bytes(20), "24 bytes in C order after the header"),
        (header(SHORT) + bytes(28), "24 bytes in C order after the header"),
        (header(SHORT.replace(b"False", b"True")) + bytes(24), "24 bytes in C order after the header"),
        (header(SHORT.replace(b", }", b", 'x': 1}")) + bytes(24), "header of a plain npy array"),
        (header(SHORT.replace(b"'<f4'", b"[('a', '<f4')]")) + bytes(24), "header of a plain npy array"),
        (header(b"(" * 1000) + bytes(24), "header of a plain npy array"),
        (header(SHORT, b"\x02\x00") + bytes(24), "version 1.0"),
        (b"\x93NUMPY\x01\x00\xff\xff" + bytes(200), "version 1.0"),
        (b"\x93NUMPY\x01", "24 bytes and a header, got 7 bytes"),
        (b"", "24 bytes and a header, got 0 bytes"),
    ],
)
def test_fault_07_a_header_that_lies(data: bytes, why: str) -> None:
    """Sizes, order, extra fields, other versions, truncation: refused without allocating what they promise."""
    content = with_array(raw(data))
    tracemalloc.start()
    assert refused(content, why) in {"malformed", "shape"}
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_fault_08_far_more_bytes_than_expected() -> None:
    """An array that expanded to far more than its variable is refused by its length, before it is parsed."""
    content = with_array(raw(npy(np.zeros((3, 2), np.float32)) + bytes(50_000_000)))
    tracemalloc.start()
    assert refused(content, "24 bytes and a header, got 50000152 bytes") == "malformed"
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_fault_09_an_unknown_serialisation() -> None:
    """Only NumPy's own form is read."""
    assert refused(with_array(raw(npy(arrays()[KEYS[0]]), stype="pickle"))) == "malformed"


def test_fault_10_no_metrics() -> None:
    """No metrics record, or none with a count."""
    content = reply()
    del content["metrics"]
    assert refused(content) == "metrics"
    assert refused(reply(metrics={"loss": 1.0})) == "metrics"


@pytest.mark.parametrize("count", [0, -1, math.nan, 5.0, "5", True, [5]])
def test_fault_11_an_impossible_example_count(count: Any) -> None:
    """Only a whole number above 0 counts, also where Flower's own type check was passed by."""
    content = reply()
    content.metric_records["metrics"].__dict__["_data"]["num-examples"] = count
    assert refused(content) == "examples"


@pytest.mark.parametrize("count", [11, 10**18, 10**30])
def test_fault_12_a_boastful_example_count_is_capped(count: int) -> None:
    """More examples than declared weigh as many as declared, and the reply is flagged."""
    update = admit(reply(metrics={"num-examples": count}))
    assert (update.examples, update.flags) == (10, ("examples-capped",))
    assert admit(reply(metrics={"num-examples": 10})).flags == ()


def test_fault_13_invented_metrics_are_claims_and_nothing_else() -> None:
    """Finite numbers are kept as claims; NaN, lists and names that cannot be shown are left out."""
    metrics = {"num-examples": 5, "accuracy": 17.0, "nan": math.nan, "huge": 10**400, "list": [1.0], "a\nb": 1.0}
    assert admit(reply(metrics=metrics)).claims == {"accuracy": 17.0}
    many = {"num-examples": 5} | {f"m{i:04d}": float(i) for i in range(1000)}
    assert len(admit(reply(metrics=many)).claims) == admission.CLAIMS_LIMIT


@pytest.mark.parametrize("change", [{"round": 2}, {"run": "r0"}])
def test_fault_18_a_reply_of_another_round_or_run(change: dict[str, Any]) -> None:
    """Yesterday's reply is stale however well it is made."""
    assert refused(reply(**change)) == "stale"


def test_fault_19_an_update_against_another_base() -> None:
    """The global model it was trained from, and the contract, have to be this round's."""
    assert refused(reply(globals_digest="f" * 64)) == "base"
    assert refused(reply(contract="f" * 64)) == "contract"


def test_fault_20_another_sites_name_inside() -> None:
    """The name in the body has to be that of the site the request went to."""
    assert refused(reply(site="b")) == "site"
    assert refused(reply(site="../a")) == "site"


def test_arrays_that_do_not_have_the_digest_the_reply_names() -> None:
    """The body vouches for the arrays it came with."""
    assert refused(reply(update_digest="f" * 64)) == "malformed"


def test_a_record_too_many_is_malformed() -> None:
    """Nothing rides along."""
    content = reply()
    content["more"] = MetricRecord()
    assert refused(content) == "malformed"


def test_numbers_as_text_are_not_numbers() -> None:
    """The body is read strictly: round "3" is not round 3."""
    content = reply()
    text = str(content.config_records["body"]["json"]).replace('"round":3', '"round":"3"')
    content["body"] = ConfigRecord({"format": "fedretrain.message/1", "json": text})
    assert refused(content) == "malformed"


def test_a_refusal_comes_through_with_its_code_and_safe_texts() -> None:
    """A site's texts are cut and lose their control characters; an unknown code is malformed."""
    declined = Declined(run="r1", site="a", code="training-diverged", where="x\x1b[2J" + "y" * 1000)
    answer = admit_train(pack(declined), "a", 10, EXPECTED)
    assert isinstance(answer, Declined)
    assert answer.where == "x[2J" + "y" * 195
    assert refused(pack(declined.model_copy(update={"code": "drop table"}))) == "malformed"
    assert refused(pack(declined.model_copy(update={"site": "b"}))) == "site"
    assert refused(pack(declined.model_copy(update={"run": "r0"}))) == "stale"


def test_a_site_that_knows_neither_run_nor_its_name_may_decline() -> None:
    """It could not read the request, or its own configuration; the code is what counts."""
    anonymous = Declined(run="", site="", code="request-invalid")
    assert admit_train(pack(anonymous), "a", 10, EXPECTED) == anonymous
    assert admit_prepare(pack(anonymous), "r1", "c") == anonymous


def test_refusals_as_values() -> None:
    """What the exchange refused stays so; what a check refuses becomes a value; the rest is what the check returns."""
    late = RejectedUpdate("late", "")
    assert judged(late, lambda _: 5) is late
    assert judged(reply(), lambda _: 5) == 5
    refusal = judged(reply(round=2), admit)
    assert isinstance(refusal, RejectedUpdate)
    assert refusal.code == "stale"


PREPARED = PrepareReply(run="r1", site="a", contract="c", train_examples=9, validation_examples=1, needs_base=True)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"run": "r0"}, "stale"),
        ({"contract": "d"}, "contract"),
        ({"train_examples": 0}, "examples"),
        ({"train_examples": 10**18}, "examples"),
        ({"validation_examples": -1}, "examples"),
        ({"site": "a/b"}, "site"),
        ({"declines": ("replay", "sleep")}, "malformed"),
        ({"declines": ("replay", "replay")}, "malformed"),
        ({"declines": ("",) * 1000}, "malformed"),
    ],
)
def test_the_answer_to_prepare_is_checked(change: dict[str, Any], code: str) -> None:
    """Run, contract, counts and the site's name are this run's and plausible."""
    assert admit_prepare(pack(PREPARED), "r1", "c") == PREPARED
    declining = PREPARED.model_copy(update={"declines": ("replay", "continue")})
    assert admit_prepare(pack(declining), "r1", "c") == declining
    with pytest.raises(RejectedUpdate) as caught:
        admit_prepare(pack(PREPARED.model_copy(update=change)), "r1", "c")
    assert caught.value.code == code


def test_the_receipt_for_the_base_is_checked() -> None:
    """It names the model that was sent, and nothing else answers the request."""
    receipt = BaseReply(run="r1", site="a", base="b")
    assert admit_base(pack(receipt), "r1", "a", "b") == receipt
    for content, code in [
        (pack(receipt.model_copy(update={"base": "c"})), "base"),
        (pack(receipt.model_copy(update={"site": "b"})), "site"),
        (pack(PREPARED), "malformed"),
    ]:
        with pytest.raises(RejectedUpdate) as caught:
            admit_base(content, "r1", "a", "b")
        assert caught.value.code == code


@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_raise_anything_but_a_refusal(data: bytes, headed: bool) -> None:
    """Whatever bytes stand for an array: admitted whole or refused with one of the codes."""
    assert refused(with_array(raw(header(data) + bytes(24) if headed else data))) in RejectedUpdate.CODES


@given(st.text(max_size=200), st.sampled_from(["json", "format"]))
def test_no_text_raises_anything_but_a_refusal(text: str, field: str) -> None:
    """Whatever text stands in the body."""
    content = reply()
    content.config_records["body"].__dict__["_data"][field] = text
    assert refused(content) in RejectedUpdate.CODES


@given(st.integers(0, 150), st.integers(0, 255))
def test_a_flipped_byte_never_passes_as_another_update(position: int, value: int) -> None:
    """Any byte of an array changed: refused, unless it is the byte that was there."""
    data = bytearray(npy(arrays()[KEYS[0]]))
    changed = data[position] != value
    data[position] = value
    content = with_array(raw(bytes(data)))
    if changed:
        assert refused(content)
    else:
        assert admit(content)


def test_whatever_the_check_of_a_reply_raises_costs_that_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Running out of memory over one reply is that reply's refusal."""

    def no_memory(_: object) -> str:
        raise MemoryError

    monkeypatch.setattr(admission, "weights_digest", no_memory)
    assert refused(reply()) == "malformed"
