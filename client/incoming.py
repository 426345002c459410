"""The arrays of a request, checked against the contract before anything is made of them.

Invariant: no array is taken whose key, serialisation, header, shape, dtype or length differs from what the contract
says of the variable (``fedretrain.arrays``).
"""

from collections.abc import Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray

from fedretrain.arrays import view
from fedretrain.contract import Contract, VariableSpec, key, keys
from fedretrain.digest import sha256
from fedretrain.errors import DeclinedRequest, RejectedUpdate
from fedretrain.job import NamedConfig
from fedretrain.messages import record
from fedretrain.sums import companion_specs
from fedretrain.travel import travelling_variables


def changing_arrays(content: RecordDict, contract: Contract) -> list[NDArray[Any]]:
    """The variables that travel, in the order of ``contract.changing``; raises DeclinedRequest ``request-invalid``."""
    return _arrays(content, dict(zip(keys(contract.changing), contract.changing_specs, strict=True)))


def travelling_arrays(content: RecordDict, contract: Contract, strategy: NamedConfig) -> list[NDArray[Any]]:
    """All that travels in a round (``fedretrain.travel``), in order; raises DeclinedRequest ``request-invalid``."""
    return _arrays(content, travelling_variables(contract, strategy))


def all_arrays(content: RecordDict, contract: Contract) -> list[NDArray[Any]]:
    """Every variable of the model by position; raises DeclinedRequest ``request-invalid``."""
    return _arrays(content, {key(i): spec for i, spec in enumerate(contract.variables)})


def companion_arrays(content: RecordDict, contract: Contract) -> list[NDArray[Any]]:
    """The arrays of a companion (``fedretrain.sums``); raises DeclinedRequest ``request-invalid``."""
    return _arrays(content, companion_specs(contract))


def _arrays(content: RecordDict, specs: Mapping[str, VariableSpec]) -> list[NDArray[Any]]:
    found = record(content, "arrays", ArrayRecord)
    if found is None or sorted(found) != sorted(specs):
        raise DeclinedRequest("request-invalid", "arrays", f"{len(specs)} arrays, by position of their variables")
    return [_view(name, found[name], spec) for name, spec in specs.items()]


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
