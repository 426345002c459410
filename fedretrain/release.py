"""What a release is on disk, and how its bytes become a model's parts.

Invariants: nothing here opens a file or checks a signature (``fedretrain.trust`` does and hands over verified bytes);
no size that a file claims is believed before it was compared with what the contract allows; a release whose parts do
not belong together is never returned, however well it is signed.

Format ``fedretrain.release/1``: a folder that bears the release's id. The id is the SHA-256 over the canonical JSON
(``fedretrain.digest``) of ``{file name: SHA-256 of the file}`` of the first five files::

    architecture.json     the model as JSON config, exactly the text ``fedretrain.architecture`` makes
    weights.safetensors   every variable under its position (``fedretrain.contract.key``), row-major, little-endian,
                          dtype and shape as the contract says; no other key, no metadata
    contract.json         canonical JSON, ``fedretrain.contract/1``
    gate.json             canonical JSON, the gate's report
    lineage.json          canonical JSON: where the release comes from; always holds
                          "format": "fedretrain.release/1", "run": str, "parent": id of the release it replaced | null,
                          "weights": weights digest (``fedretrain.digest``), "contract": contract digest
    model.keras           optional and not part of the id: a copy for people, because its bytes differ at every save.
                          Its hash is signed like the others'; nothing of ours ever opens it
    uncertainty.safetensors   optional and not part of the id: how certain the model is (``server.uncertainty``,
                          ``server.prior``), float64 tensors by name; signed like the others, and not sent to sites

Example::

    release = load_release(release_id, folder, read)      # read: verified bytes of one file, at most so many
"""

import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import safetensors
from pydantic import ValidationError

from .contract import Contract, VariableSpec, key, parse_contract
from .digest import canonical_json, json_digest, sha256, weights_digest
from .errors import ConfigurationError, UntrustedRelease

if TYPE_CHECKING:  # who only asks what is in use need not wait for NumPy
    import numpy as np
    from numpy.typing import NDArray

FORMAT: Final = "fedretrain.release/1"
ARCHITECTURE: Final = "architecture.json"
WEIGHTS: Final = "weights.safetensors"
CONTRACT: Final = "contract.json"
GATE: Final = "gate.json"
LINEAGE: Final = "lineage.json"
IDENTIFYING: Final = (ARCHITECTURE, CONTRACT, GATE, LINEAGE, WEIGHTS)
KERAS_FILE: Final = "model.keras"
UNCERTAINTY: Final = "uncertainty.safetensors"
OPTIONAL: Final = (KERAS_FILE, UNCERTAINTY)
JSON_LIMIT: Final = 20_000_000  # bytes; as much as an architecture may have. Thousands of layers take a few MB
RELEASE_ID: Final = re.compile(r"[0-9a-f]{64}")

Arrays = list["NDArray[Any]"]
Read = Callable[[str, int], bytes]  # (file name, most bytes) -> verified content; raises UntrustedRelease

_STORED_AS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
}  # fmt: skip
_HEADER_FIXED, _HEADER_PER_VARIABLE = 4096, 512  # bytes; a variable's entry takes some 100


@dataclass(frozen=True)
class ReleaseDraft:
    """What is to become a release; ``server.registry`` checks and signs it.

    Args:
        architecture: JSON config of the model, as ``fedretrain.architecture.to_json`` makes it.
        weights: Every variable by position, shapes and dtypes as ``contract.variables``.
        contract: The contract the weights were trained under.
        gate: The gate's report; JSON-safe.
        lineage: JSON-safe, with at least ``run`` (publishing the same run twice is publishing it once) and ``parent``.
        keras_file: Writes ``model.keras`` to the path it is given (see ``server.keras_file``); without it the release
            has none, and publishing needs no TensorFlow.
        uncertainty: Content of ``uncertainty.safetensors``; without it the release has none.
    """

    architecture: str
    weights: Arrays
    contract: Contract
    gate: Mapping[str, Any]
    lineage: Mapping[str, Any]
    keras_file: Callable[[Path], None] | None = None
    uncertainty: bytes | None = None


@dataclass(frozen=True)
class Release:
    """A verified release; ``folder`` says where it lies, everything else was read from verified bytes."""

    id: str
    folder: Path
    architecture: str
    weights: Arrays
    contract: Contract
    gate: dict[str, Any]
    lineage: dict[str, Any]


def encode(draft: ReleaseDraft) -> dict[str, bytes]:
    """The identifying files of a draft by name.

    Raises:
        ConfigurationError: The draft names no run, holds something that is not JSON, or a dtype without a stored form.
    """
    if not isinstance(draft.lineage.get("run"), str):
        raise ConfigurationError("lineage.run: expected the run's id as text; a release without one cannot be traced")
    lineage = {
        "parent": None,
        **draft.lineage,
        "format": FORMAT,
        "weights": weights_digest(draft.weights),
        "contract": draft.contract.digest,
    }
    values = {CONTRACT: draft.contract.model_dump(mode="json"), GATE: dict(draft.gate), LINEAGE: lineage}
    files = {ARCHITECTURE: draft.architecture.encode(), WEIGHTS: encode_weights(draft.weights)}
    for name, value in values.items():
        try:
            files[name] = canonical_json(value)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"{name}: expected numbers, texts, lists and tables only: {error}") from None
    return files


def release_id(hashes: Mapping[str, str]) -> str:
    """The id that belongs to ``{file name: SHA-256}``; files that do not identify a release are passed over."""
    return json_digest({name: hashes[name] for name in IDENTIFYING})


def encode_weights(weights: "Iterable[NDArray[Any]]") -> bytes:
    """Arrays as safetensors, under their positions; raises ConfigurationError for a dtype without a stored form."""
    import numpy as np

    tensors = {}
    for i, array in enumerate(weights):
        if array.dtype.name not in _STORED_AS:
            raise ConfigurationError(f"variable {key(i)}: expected a dtype of {sorted(_STORED_AS)}, got {array.dtype}")
        little = np.asarray(array, dtype=array.dtype.newbyteorder("<"))
        tensors[key(i)] = {"dtype": array.dtype.name, "shape": array.shape, "data": little.tobytes(order="C")}
    return bytes(safetensors.serialize(tensors))  # type: ignore[no-untyped-call]  # its stub has no types


def decode_weights(data: bytes, variables: tuple[VariableSpec, ...], where: str) -> Arrays:
    """Arrays by position, writable, exactly as the contract's variables say.

    Raises:
        UntrustedRelease: Header or total size, a key, dtype or shape differs, or a value is not finite; ``where``
            leads the message.
    """
    expected = sum(_nbytes(spec, where) for spec in variables)
    header = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else -1
    if not 2 <= header <= _header_limit(variables) or 8 + header + expected != len(data):
        raise UntrustedRelease(
            f"{where}: expected a header of at most {_header_limit(variables)} bytes and {expected} bytes of "
            f"variables as the contract says, got a header of {header} and {len(data)} bytes in all"
        )
    try:
        tensors = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]  # its stub has no types
    except safetensors.SafetensorError as error:
        raise UntrustedRelease(f"{where}: not readable as safetensors: {error}") from None
    names = [key(i) for i in range(len(variables))]
    if sorted(tensors) != names:
        differing = sorted(set(tensors) ^ set(names))[0]
        raise UntrustedRelease(f"{where}: expected variables {names[:1]} to {names[-1:]}, {differing!r} is amiss")
    return [
        _array(tensors[name], spec, f"{where}: variable {name}") for name, spec in zip(names, variables, strict=True)
    ]


def load_release(identity: str, folder: Path, read: Read) -> Release:
    """A release whose parts belong together.

    Args:
        identity: The id under which the files were signed.
        folder: Where the files lie; for messages and ``Release.folder`` alone.
        read: Verified content of one of ``IDENTIFYING``; is told the most bytes it may have and raises otherwise.

    Raises:
        UntrustedRelease: Names the file, what was expected and what it held.
    """
    files = {name: read(name, JSON_LIMIT) for name in IDENTIFYING if name != WEIGHTS}
    contract = _contract(files[CONTRACT], folder)
    gate, lineage = (decode_json(files[name], folder / name) for name in (GATE, LINEAGE))
    nbytes = sum(_nbytes(spec, str(folder / CONTRACT)) for spec in contract.variables)
    files[WEIGHTS] = read(WEIGHTS, 8 + _header_limit(contract.variables) + nbytes)
    found = release_id({name: sha256(data) for name, data in files.items()})
    _same(folder, "release id", identity, found)
    architecture = _text(files[ARCHITECTURE], folder / ARCHITECTURE)
    from .architecture import fingerprint

    _same(folder / ARCHITECTURE, "fingerprint named in contract.json", contract.architecture, fingerprint(architecture))
    _same(folder / LINEAGE, "format", FORMAT, lineage.get("format"))
    _same(folder / CONTRACT, "digest named in lineage.json", lineage.get("contract"), contract.digest)
    weights = decode_weights(files[WEIGHTS], contract.variables, str(folder / WEIGHTS))
    _same(folder / WEIGHTS, "weights digest named in lineage.json", lineage.get("weights"), weights_digest(weights))
    if not isinstance(lineage.get("run"), str):
        raise UntrustedRelease(f"{folder / LINEAGE}: expected the run's id under 'run', got {lineage.get('run')!r}")
    return Release(identity, folder, architecture, weights, contract, gate, lineage)


def decode_json(data: bytes, where: Path) -> dict[str, Any]:
    """A JSON table from verified bytes; raises UntrustedRelease."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UntrustedRelease(f"{where}: not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise UntrustedRelease(f"{where}: expected a JSON table, got {type(value).__name__}")
    return value


def _text(data: bytes, where: Path) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UntrustedRelease(f"{where}: not readable as UTF-8: {error}") from None


def _contract(data: bytes, folder: Path) -> Contract:
    try:
        return parse_contract(decode_json(data, folder / CONTRACT))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UntrustedRelease(f"{folder / CONTRACT}: {place}: {first['msg']}") from None


def _same(where: Path, what: str, expected: object, got: object) -> None:
    if expected != got:
        raise UntrustedRelease(f"{where}: expected {what} {expected}, got {got}; these parts do not belong together")


def _header_limit(variables: tuple[VariableSpec, ...]) -> int:
    return _HEADER_FIXED + _HEADER_PER_VARIABLE * len(variables)


def _dtype(name: str, where: str) -> "np.dtype[Any]":
    import numpy as np

    if name not in _STORED_AS:
        raise UntrustedRelease(f"{where}: expected a dtype of {sorted(_STORED_AS)}, got {name!r}")
    if name == "bfloat16":
        import ml_dtypes  # noqa: F401  # NumPy has no bfloat16 of its own; importing this one registers it
    return np.dtype(name)


def _nbytes(spec: VariableSpec, where: str) -> int:
    count = 1
    for n in spec.shape:
        if n < 0:
            raise UntrustedRelease(f"{where}: expected lengths of at least 0, got shape {list(spec.shape)}")
        count *= n
    return count * _dtype(spec.dtype, where).itemsize


def _array(tensor: Mapping[str, Any], spec: VariableSpec, where: str) -> "NDArray[Any]":
    import numpy as np

    expected, got = (_STORED_AS[spec.dtype], list(spec.shape)), (tensor["dtype"], list(tensor["shape"]))
    if expected != got:
        raise UntrustedRelease(f"{where}: expected {expected[0]} {expected[1]}, got {got[0]} {got[1]}")
    array = np.frombuffer(tensor["data"], dtype=_dtype(spec.dtype, where)).reshape(spec.shape)
    if array.dtype.kind not in "biu" and not np.isfinite(array).all():
        raise UntrustedRelease(f"{where}: expected finite numbers, got NaN or infinity")
    return array
