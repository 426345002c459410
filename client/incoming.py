"""The arrays of a request, checked against the contract before anything is made of them.

Invariant: no array is taken whose key, serialisation, header, shape, dtype or length differs from what the contract
says of the variable, and nothing is allocated by a number that stands in the message.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.lib import format as npy
from numpy.typing import NDArray

from fedretrain.contract import Contract, VariableSpec, key, keys
from fedretrain.errors import DeclinedRequest
from fedretrain.messages import record

_NUMPY = "numpy.ndarray"


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
    return [_decode(found[key(p)], contract.variables[p], key(p)) for p in positions]


def _decode(array: Array, spec: VariableSpec, name: str) -> NDArray[Any]:
    """A read-only view of the array's bytes, where they are one npy array as the contract has it."""
    wanted = DeclinedRequest("request-invalid", f"arrays.{name}", f"{spec.dtype} {list(spec.shape)} as npy")
    if array.stype != _NUMPY:
        raise wanted
    dtype = np.dtype(spec.dtype)
    stream = io.BytesIO(array.data)
    try:
        read_header = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
        shape, fortran, stored = read_header(stream)
    except ValueError:
        raise wanted from None
    body = len(array.data) - stream.tell()
    if shape != spec.shape or stored != dtype or body != spec.nbytes:
        raise wanted
    flat = np.frombuffer(array.data, dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if fortran else "C")
