"""Arrays of a request are what the contract says, or nothing is made of them."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict

from client.incoming import all_arrays, changing_arrays
from fedretrain.contract import Contract, InputSpec, OutputSpec, VariableSpec
from fedretrain.errors import DeclinedRequest
from fedretrain.messages import BaseRequest, pack

SPECS = (
    VariableSpec(shape=(2, 3), dtype="float32", rule="train"),
    VariableSpec(shape=(), dtype="int64", rule="keep"),
    VariableSpec(shape=(2,), dtype="float16", rule="average"),
)
CONTRACT = Contract(
    inputs=(InputSpec(name="x", shape=(2,), dtype="float32"),),
    outputs=(OutputSpec(name="y", shape=(1,), kind="regression", loss="mse"),),
    preprocessing=None,
    architecture="a",
    base="b",
    variables=SPECS,
)
MATRIX = np.arange(6, dtype="float32").reshape(2, 3)
SHORT = np.array([1.5, -2], dtype="float16")


def content(**arrays: Any) -> RecordDict:
    by_key = {"00000": MATRIX, "00002": SHORT} | {k.strip("_"): v for k, v in arrays.items()}
    return pack(BaseRequest(run="r", base="b"), {k: v for k, v in by_key.items() if v is not None})


def test_arrays_come_in_the_order_of_the_contract() -> None:
    """Those that travel, and all of them, bit-identical."""
    found = changing_arrays(content(), CONTRACT)
    assert [(a.dtype, a.tobytes()) for a in found] == [(a.dtype, a.tobytes()) for a in (MATRIX, SHORT)]
    every = all_arrays(content(_00001=np.array(7, dtype="int64")), CONTRACT)
    assert [a.shape for a in every] == [(2, 3), (), (2,)]


def npy(array: np.ndarray, **kwargs: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **kwargs)
    return stream.getvalue()


def lying() -> bytes:
    """A header that announces 2 TB, over the 24 bytes that belong."""
    data = npy(MATRIX)
    return data.replace(b"(2, 3)", b"(2, 250000000000)").replace(b" " * 11 + b"\n", b"\n")


def as_array(data: bytes, stype: str = "numpy.ndarray") -> Array:
    return Array("float32", (2, 3), stype, data)


BAD: dict[str, Callable[[], RecordDict]] = {
    "one too few": lambda: content(_00002=None),
    "one too many": lambda: content(_00001=np.array(7, dtype="int64")),
    "shape": lambda: content(_00000=MATRIX.T),
    "dtype": lambda: content(_00000=MATRIX.astype("float64")),
    "text": lambda: content(_00000=MATRIX.astype("U4")),
    "no arrays": lambda: pack(BaseRequest(run="r", base="b")),
}
BAD_BYTES: dict[str, Callable[[], Array]] = {
    "serialisation": lambda: as_array(npy(MATRIX), "torch.Tensor"),
    "lying header": lambda: as_array(lying()),
    "pickled": lambda: as_array(npy(MATRIX.astype(object), allow_pickle=True)),
    "truncated": lambda: as_array(npy(MATRIX)[:-1]),
    "padded": lambda: as_array(npy(MATRIX) + b"x" * 100),
    "no npy": lambda: as_array(b"PK\x03\x04" + b"0" * 100),
    "empty": lambda: as_array(b""),
}


@pytest.mark.parametrize("case", BAD)
def test_arrays_that_are_not_the_contracts_are_refused(case: str) -> None:
    """A key too many or too few, another shape or dtype."""
    with pytest.raises(DeclinedRequest, match="request-invalid at arrays"):
        changing_arrays(BAD[case](), CONTRACT)


@pytest.mark.parametrize("case", BAD_BYTES)
def test_bytes_that_are_not_the_array_are_refused(case: str) -> None:
    """Nothing is unpickled, and nothing is allocated for what a header announces."""
    records = content()
    records["arrays"] = ArrayRecord({"00000": BAD_BYTES[case](), "00002": Array(SHORT)})
    with pytest.raises(DeclinedRequest, match=r"request-invalid at arrays\.00000"):
        changing_arrays(records, CONTRACT)


def test_the_lying_header_is_one() -> None:
    """Pins the fixture: NumPy itself believes the header."""
    with pytest.raises((ValueError, MemoryError), match=r"allocate|read"):
        np.load(io.BytesIO(lying()))
