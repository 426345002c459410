"""Messages: what is packed is what is unpacked, and a foreign message is refused by code."""

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedretrain.contract import Contract, InputSpec, OutputSpec, VariableSpec
from fedretrain.errors import DeclinedRequest
from fedretrain.job import NamedConfig, TrainSection
from fedretrain.messages import BaseRequest, PrepareRequest, TrainRequest, pack, request_arrays, unpack_request

CONTRACT = Contract(
    inputs=(InputSpec(name="image", shape=(8, None, 1), dtype="float32", low=-1.0, high=1.0),),
    outputs=(OutputSpec(name="digit", shape=(2,), kind="multiclass", loss="x", labels=("zero", "ünö")),),
    preprocessing=None,
    architecture="a" * 64,
    base="b" * 64,
    variables=(VariableSpec(shape=(3, 2), dtype="float32", rule="train"),),
)
ORDER = TrainRequest(run="r", round=3, contract=CONTRACT.digest, globals_digest="c" * 64)


def over_the_wire(content: RecordDict) -> RecordDict:
    """Through Flower's own serialisation and back."""
    return recorddict_from_proto(recorddict_to_proto(content))


def test_a_request_with_a_contract_survives_the_wire() -> None:
    """The largest request arrives equal, optimizer settings and contract digest included."""
    request = PrepareRequest(
        run="r",
        contract=CONTRACT,
        architecture="{}",
        freeze=("conv*",),
        train=TrainSection(optimizer=NamedConfig.model_validate({"name": "sgd", "learning_rate": 0.1})),
        strategy=NamedConfig.model_validate({"name": "fedprox", "mu": 0.5}),
    )
    arrived = unpack_request(over_the_wire(pack(request)), PrepareRequest)
    assert arrived == request
    assert arrived.contract.digest == CONTRACT.digest
    assert arrived.strategy.settings == {"mu": 0.5}


@given(
    hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64, np.int64]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
        elements=st.integers(-100, 100),
    ),
    st.booleans(),
)
def test_arrays_arrive_bit_for_bit(array: Any, transposed: bool) -> None:
    """Any shape, dtype and memory order arrives with the same bits."""
    sent = array.T if transposed else array
    arrived = request_arrays(over_the_wire(pack(ORDER, {"00000": sent})))["00000"]
    assert arrived.dtype == sent.dtype
    np.testing.assert_array_equal(arrived, sent)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({}),
        RecordDict({"body": ConfigRecord({"json": "{}"})}),
        RecordDict({"body": ConfigRecord({"format": "fedretrain.message/1"})}),
        RecordDict({"body": ConfigRecord({"format": "fedretrain.message/1", "json": "{"})}),
        RecordDict({"body": ConfigRecord({"format": "fedretrain.message/2", "json": "{}"})}),
        pack(BaseRequest(run="r", base="b")),
    ],
    ids=["empty", "no format", "no json", "broken json", "later version", "another request"],
)
def test_a_foreign_request_is_declined_by_code(content: RecordDict) -> None:
    """Whatever is not the expected request of this version is answered with request-invalid."""
    with pytest.raises(DeclinedRequest) as caught:
        unpack_request(content, TrainRequest)
    assert caught.value.code == "request-invalid"


def test_an_unknown_field_in_a_request_is_declined() -> None:
    """A field this version does not know is not silently dropped."""
    content = pack(ORDER)
    body = content.config_records["body"]
    body["json"] = str(body["json"])[:-1] + ',"extra":1}'
    with pytest.raises(DeclinedRequest):
        unpack_request(content, TrainRequest)
