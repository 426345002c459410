"""Arrays that came over the network, viewed as the contract has them.

Invariants: sizes are compared with the contract before a byte is parsed; the result is a read-only view of the bytes
that arrived, so nothing is copied, and nothing is allocated, evaluated or unpickled at a peer's word.

An array travels as npy version 1.0: magic, two-byte header length, the header NumPy writes, C-order bytes
(https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html). Any other header is refused.
"""

import re
from typing import Any, NoReturn

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

from .contract import VariableSpec
from .errors import RejectedUpdate

HEADER_LIMIT = 1024  # bytes of an npy header; NumPy writes 118 for any ordinary shape
TEXT_LIMIT = 200  # characters of a peer's text that are shown

_HEADER = re.compile(
    rb"\{'descr': '([^']{1,16})', 'fortran_order': (True|False), 'shape': \((|\d{1,12}(?:, \d{1,12})*,?)\), \} *\n"
)


def view(key: str, array: Array, spec: VariableSpec) -> NDArray[Any]:
    """The values of variable ``key``; every declaration in the array has to agree with ``spec``.

    Raises:
        RejectedUpdate: ``malformed``, ``dtype`` or ``shape``.
    """
    dtype = np.dtype(spec.dtype)
    if array.stype != "numpy.ndarray":
        malformed(f"variable {key}: expected serialisation numpy.ndarray, got {shown(array.stype)}")
    if not spec.nbytes <= len(array.data) <= spec.nbytes + HEADER_LIMIT:
        malformed(f"variable {key}: expected {spec.nbytes} bytes and a header, got {len(array.data)} bytes")
    descr, fortran, shape, start = _header(key, array.data)
    if descr != dtype.str or array.dtype != spec.dtype:
        raise RejectedUpdate("dtype", f"variable {key}: expected {spec.dtype}, got {shown(descr)}")
    if shape != spec.shape or tuple(array.shape) != spec.shape:
        raise RejectedUpdate("shape", f"variable {key}: expected {spec.shape}, got {shown(shape)}")
    if fortran or len(array.data) != start + spec.nbytes:
        malformed(f"variable {key}: expected {spec.nbytes} bytes in C order after the header")
    return np.ndarray(spec.shape, dtype, buffer=array.data, offset=start)


def malformed(detail: str) -> NoReturn:
    """Raise RejectedUpdate ``malformed``."""
    raise RejectedUpdate("malformed", detail)


def plain(text: str) -> str:
    """A peer's text cut to what is shown, without control characters."""
    return "".join(c for c in text[:TEXT_LIMIT] if c.isprintable())


def shown(value: object) -> str:
    """A peer's value for a message: short, printable, and never expensive to format."""
    if isinstance(value, str | bytes):
        return plain(repr(value[:40]))
    if isinstance(value, int | float | tuple) and not (isinstance(value, int) and value.bit_length() > 64):
        return plain(repr(value))
    return f"a {type(value).__name__}"


def _header(key: str, array: bytes | memoryview) -> tuple[str, bool, tuple[int, ...], int]:
    """The dtype's string, Fortran order, shape and where the elements start, from an npy header."""
    data = bytes(array[: 10 + HEADER_LIMIT])
    end = 10 + int.from_bytes(data[8:10], "little")
    if data[:8] != b"\x93NUMPY\x01\x00" or end > 10 + HEADER_LIMIT:
        malformed(f"variable {key}: expected a raw npy array of version 1.0")
    match = _HEADER.fullmatch(data[10:end])
    if match is None:
        malformed(f"variable {key}: expected the header of a plain npy array")
    shape = tuple(int(n) for n in re.findall(rb"\d+", match[3]))
    return match[1].decode("ascii"), match[2] == b"True", shape, end
