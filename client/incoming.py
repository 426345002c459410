"""The arrays of a request, checked against the contract before anything is made of them.

Invariant: no array is taken whose key, serialisation, header, shape, dtype or length differs from what the contract
says of the variable (``fedretrain.arrays``).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray

from fedretrain.arrays import view
from fedretrain.contract import Contract, VariableSpec, key, keys
from fedretrain.digest import sha256
from fedretrain.errors import DeclinedRequest, RejectedUpdate
from fedretrain.messages import record


def changing_arrays(content: RecordDict, contract: Contract) -> list[NDArray[Any]]:
    """The variables that travel, in the order of ``contract.changing``; raises DeclinedRequest ``request-invalid``."""
    return _arrays(content, contract, contract.changing)


def all_arrays(content: RecordDict, contract: Contract) -> list[NDArray[Any]]:
    """Every variable of the model by position; raises DeclinedRequest ``request-invalid``."""
    return _arrays(content, contract, range(len(contract.variables)))


def _arrays(content: RecordDict, contract: Contract, positions: Sequence[int]) -> list[NDArray[Any]]:
    found = record(content, "arrays", ArrayRecord)
    if found is None or sorted(found) != keys(positions):
        raise DeclinedRequest("request-invalid", "arrays", f"{len(positions)} arrays, by position of their variables")
    return [_view(key(p), found[key(p)], contract.variables[p]) for p in positions]


def _view(name: str, array: Array, spec: VariableSpec) -> NDArray[Any]:
    try:
        return view(name, array, spec)
    except RejectedUpdate:
        expected = f"{spec.dtype} {list(spec.shape)} as npy"
        raise DeclinedRequest("request-invalid", f"arrays.{name}", expected) from None


def release_files(content: RecordDict, expected: Mapping[str, str]) -> dict[str, bytes]:
    """The files of a release request by name, each with the SHA-256 that the request gives.

    Raises:
        DeclinedRequest: ``request-invalid`` where other files came, or others than the request names.
    """
    found = dict(record(content, "arrays", ArrayRecord) or {})
    if sorted(found) != sorted(expected):
        raise DeclinedRequest("request-invalid", "files", f"the {len(expected)} files that the request names")
    return {name: _file(found[name], expected[name]) for name in expected}


def _file(array: Array, digest: str) -> bytes:
    """The bytes of one file, which travels as uint8 [bytes]."""
    start = 10 + int.from_bytes(array.data[8:10], "little")
    spec = VariableSpec(shape=(max(0, len(array.data) - start),), dtype="uint8", rule="keep")
    data = _view("files", array, spec).tobytes()
    if sha256(data) != digest:
        raise DeclinedRequest("request-invalid", "files", "files with the SHA-256 that the request gives")
    return data
