"""Admission of updates in a codec: what the contract and the codec announce, and nothing else."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from fedretrain.codecs import Codec, make_codec
from fedretrain.contract import VariableSpec
from fedretrain.digest import weights_digest
from fedretrain.errors import RejectedUpdate
from fedretrain.job import NamedConfig
from fedretrain.messages import TrainReply, pack
from server.admission import Expected, Update, admit_train, wire_bytes

SPECS = {
    "00000": VariableSpec(shape=(64, 32), dtype="float32", rule="train"),
    "00002": VariableSpec(shape=(64,), dtype="float32", rule="average"),
}
CODED = ("float16", "int8", "topk")
Payloads = dict[str, NDArray[np.generic]]


def codec(name: str) -> Codec:
    return make_codec(NamedConfig(name=name))


def update() -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=spec.shape).astype(np.float32) for spec in SPECS.values()]


def payloads(name: str) -> Payloads:
    coded = codec(name)
    return {k: coded.encode(v, spec, 0) for (k, spec), v in zip(SPECS.items(), update(), strict=True)}


def admit(name: str, arrays: Payloads, digest: str | None = None) -> tuple[Update, int]:
    """The reply admitted, and its bytes."""
    body = TrainReply(
        run="r1",
        round=1,
        site="a",
        contract="c",
        globals_digest="g",
        update_digest=digest or weights_digest(arrays.values()),
    )
    content = pack(body, arrays, {"num-examples": 5})
    admitted = admit_train(content, "a", 10, Expected("r1", 1, "c", "g", SPECS, codec(name)))
    assert isinstance(admitted, Update)
    return admitted, wire_bytes(content)


@pytest.mark.parametrize("name", CODED)
def test_a_coded_update_is_admitted_as_what_it_decodes_to(name: str) -> None:
    """Values, norm and shapes are the decoded ones, the digest and the bytes those of what travelled."""
    sent = payloads(name)
    found, size = admit(name, sent)
    want = [codec(name).decode(sent[key], spec) for key, spec in SPECS.items()]
    assert [a.tobytes() for a in found.arrays] == [a.tobytes() for a in want]
    assert found.norm == pytest.approx(np.sqrt(sum(np.square(a, dtype=float).sum() for a in want)))
    assert size == sum(a.nbytes for a in sent.values()) + 2 * 128
    assert found.arrays[1].tobytes() == update()[1].tobytes()  # a moving statistic


def plain(sent: Payloads) -> Payloads:
    return {**sent, "00000": update()[0]}


def longer(sent: Payloads) -> Payloads:
    return {**sent, "00000": np.append(sent["00000"], np.uint8(0))}


def signed_bytes(sent: Payloads) -> Payloads:
    return {**sent, "00000": sent["00000"].view(np.int8)}


def coded_statistic(sent: Payloads) -> Payloads:
    return {**sent, "00002": sent["00002"].view(np.uint8)}


@pytest.mark.parametrize(
    ("change", "code"),
    [(plain, "malformed"), (longer, "shape"), (signed_bytes, "dtype"), (coded_statistic, "dtype")],
)
@pytest.mark.parametrize("name", CODED)
def test_fault_03_04_another_form_than_the_jobs(name: str, change: Callable[[Payloads], Payloads], code: str) -> None:
    """Another codec, a byte too many, another dtype, a statistic in code: refused before anything is decoded."""
    with pytest.raises(RejectedUpdate) as caught:
        admit(name, change(payloads(name)))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("name", "at", "value", "code"),
    [
        ("int8", 0, np.float32(np.nan), "malformed"),
        ("float16", 2, np.float16(np.nan), "not-finite"),
        ("topk", -4, np.float32(np.inf), "not-finite"),
        ("topk", 0, np.uint32(2**31), "malformed"),
    ],
)
def test_fault_02_numbers_that_are_none(name: str, at: int, value: np.generic, code: str) -> None:
    """NaN and infinity in values, scales or positions cost the reply."""
    sent = payloads(name)
    data = np.frombuffer(value.tobytes(), np.uint8)
    sent["00000"][at : at + data.size or None] = data
    with pytest.raises(RejectedUpdate) as caught:
        admit(name, sent)
    assert caught.value.code == code


def test_the_digest_is_over_what_travelled() -> None:
    """A digest of the decoded values is not the reply's."""
    decoded = [codec("int8").decode(payloads("int8")[key], spec) for key, spec in SPECS.items()]
    with pytest.raises(RejectedUpdate, match="digest"):
        admit("int8", payloads("int8"), weights_digest(decoded))


def test_nothing_is_allocated_for_a_size_that_is_not_announced() -> None:
    """A reply of 8 MB where 2 kB are expected is refused by its length alone."""
    arrays: Payloads = {**payloads("int8"), "00000": np.zeros(8 << 20, np.uint8)}
    digest = weights_digest(arrays.values())
    body = TrainReply(run="r1", round=1, site="a", contract="c", globals_digest="g", update_digest=digest)
    content = pack(body, arrays, {"num-examples": 5})
    tracemalloc.start()
    with pytest.raises(RejectedUpdate, match="bytes"):
        admit_train(content, "a", 10, Expected("r1", 1, "c", "g", SPECS, codec("int8")))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
