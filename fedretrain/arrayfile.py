"""Arrays in a safetensors file, written and looked at one by one: none of them is in memory as a whole.

Invariants: what is written is what ``safetensors.numpy.load_file`` reads; nothing is mapped of a file whose header and
length do not fit together.

The format (https://huggingface.co/docs/safetensors): eight bytes, little-endian, the length of the header; the header,
JSON {name: {"dtype", "shape", "data_offsets": [start, end]}}; the arrays' little-endian bytes in C order.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEADER_LIMIT = 100_000_000  # bytes, as safetensors has it
_PIECE = 2**20  # elements
_NAMES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write the arrays.

    Raises:
        OSError: The disk does not take them.
        ValueError: An array's dtype has no name in the format.
    """
    header, start = dict[str, Any](), 0
    for name, array in arrays.items():
        if array.dtype.name not in _NAMES:
            raise ValueError(f"array {name}: expected a dtype of {', '.join(_NAMES)}, got {array.dtype}")
        end = start + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype.name], "shape": list(array.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            flat = np.asarray(array, order="C").reshape(-1)
            for first in range(0, flat.size, _PIECE):
                piece = flat[first : first + _PIECE]
                file.write(piece.astype(piece.dtype.newbyteorder("<"), copy=False).view(np.uint8).data)


def mapped(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays, read-only, mapped from the file, which must not be written to meanwhile.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not of the format, or its arrays do not fill it.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > HEADER_LIMIT:
            raise ValueError(f"{path}: expected a header of at most {HEADER_LIMIT} bytes")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"{path}: expected a safetensors header")  # noqa: TRY004 - the file's content, not a type
    header.pop("__metadata__", None)
    data = np.memmap(path, np.uint8, "r", offset=8 + length) if path.stat().st_size > 8 + length else _EMPTY
    try:
        found = {name: _array(data, **about) for name, about in header.items()}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected dtype, shape and offsets of each array ({type(error).__name__})") from None
    if sum(array.nbytes for array in found.values()) != data.size:
        raise ValueError(f"{path}: expected arrays that fill the file")
    return found


_EMPTY = np.empty(0, np.uint8)


def _array(data: NDArray[np.uint8], dtype: str, shape: list[int], data_offsets: list[int]) -> NDArray[Any]:
    start, end = data_offsets
    little = np.dtype(_DTYPES[dtype]).newbyteorder("<")
    if not 0 <= start <= end <= data.size or end - start != math.prod(shape) * little.itemsize:
        raise ValueError(f"expected {shape} of {dtype} between {start} and {end}")
    return np.ndarray(tuple(shape), little, buffer=data, offset=start)
