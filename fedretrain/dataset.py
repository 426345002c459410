"""Labelled examples of a site or a holdout, read from one npz file and checked against the contract.

No error from here holds a value of the data: it names the array, the column or the output, and what the contract asks
for. Nothing is unpickled. What passes ``check_dataset`` can go to Keras as ``as_arrays`` returns it.

Arrays of a file, for n examples::

    x                 the only input, [n, *shape]; several inputs: one array "x.<input name>" each
    y                 the only output's labels; several outputs: one array "y.<output name>" each, of which a site may
                      leave some out, not all: it has no labels for those
    labels            optional, text [k]: what the positions of y are called, where that is not the contract's order;
                      several outputs: "labels.<output name>". Required where the contract's positions have moved
    sample_weight     optional, float [n], not negative
    timestamp         optional, when each example was made: seconds since 1970 UTC, float or integer [n], or datetime64
    slice             optional, text [n]: a holdout is judged on each slice as well
    preprocessing     optional, one text: how raw data became these arrays, compared with the contract's
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import Contract, InputSpec, OutputSpec
from .errors import DataMismatch
from .labels import by_name, check_labels, kind_of, labels_as_array, no_labels
from .wider import WiderContract, WiderOutput, labels_of

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Examples by row.

    Attributes:
        x: By the contract's input names, each [n, ...].
        y: By the contract's output names, each [n] or [n, ...].
        sample_weight: float32 [n], or None where all rows count the same.
        slices: text [n], or None; only holdouts have them.
        preprocessing: What the file says about how its arrays were made, or None.
        time: float64 [n], when each example was made, in seconds since 1970 UTC; or None where nobody knows.
        unlabelled: Outputs without labels here. Once ``as_arrays`` has been asked, their labels are -1 where labels
            are whole numbers and NaN elsewhere; no loss and no metric is about them.
    """

    x: dict[str, Array]
    y: dict[str, Array]
    sample_weight: Array | None = None
    slices: Array | None = None
    preprocessing: str | None = None
    time: Array | None = None
    unlabelled: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.x.values()))) if self.x else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        others = (self.sample_weight, self.slices, self.time)
        return sum(array.nbytes for array in (*self.x.values(), *self.y.values(), *others) if array is not None)

    def take(self, indices: Array) -> "Dataset":
        """The rows at ``indices`` (int [m] or bool [n]), in that order."""
        return dataclasses.replace(
            self,
            x={name: array[indices] for name, array in self.x.items()},
            y={name: array[indices] for name, array in self.y.items()},
            sample_weight=None if self.sample_weight is None else self.sample_weight[indices],
            slices=None if self.slices is None else self.slices[indices],
            time=None if self.time is None else self.time[indices],
        )


def load_npz(path: Path, contract: Contract, *, partial: bool = False) -> Dataset:
    """Read the arrays the contract names, as they are; ``check_dataset`` has still to be asked.

    Args:
        path: The file.
        contract: What the model expects.
        partial: Whether labels of some outputs, not of all, may be missing, as they may at a site.

    Raises:
        DataMismatch: ``data-unreadable`` where the file is no npz, is damaged or holds pickled objects;
            ``data-missing`` where an input or output has no array.
    """
    wanted = {"sample_weight", "slice", "preprocessing", "timestamp", *_keys(contract)}
    wanted |= {_key("labels", spec.name, len(contract.outputs)) for spec in contract.outputs}
    return from_arrays(_read(path, wanted), contract, partial=partial)


def from_arrays(arrays: Mapping[str, Array], contract: Contract, *, partial: bool = False) -> Dataset:
    """The arrays of an npz as a dataset, under the names they have in a file; ``partial`` as in ``load_npz``.

    Raises:
        DataMismatch: ``data-missing`` where an input or output has no array; ``data-dtype`` for times that are none.
    """
    labels = {spec.name: _key("y", spec.name, len(contract.outputs)) for spec in contract.outputs}
    unlabelled = tuple(name for name, key in labels.items() if key not in arrays) if partial else ()
    if len(unlabelled) == len(labels) and not isinstance(contract, WiderContract):
        unlabelled = ()
    for key in _keys(contract):
        if key not in arrays and key not in {labels[name] for name in unlabelled}:
            raise DataMismatch("data-missing", key, f"an array of this name, one of {_keys(contract)}")
    said = arrays.get("preprocessing")
    if said is not None and (said.shape != () or said.dtype.kind not in "US"):
        raise DataMismatch("data-preprocessing", "preprocessing", "one text")
    return Dataset(
        x={spec.name: arrays[_key("x", spec.name, len(contract.inputs))] for spec in contract.inputs},
        y={spec.name: _labels(arrays, spec, contract) for spec in contract.outputs if spec.name not in unlabelled},
        sample_weight=arrays.get("sample_weight"),
        slices=arrays["slice"].astype(str) if "slice" in arrays else None,
        preprocessing=None if said is None else str(said.astype(str)),
        time=as_times(arrays["timestamp"]) if "timestamp" in arrays else None,
        unlabelled=unlabelled,
    )


def _labels(arrays: Mapping[str, Array], spec: OutputSpec, contract: Contract) -> Array:
    """An output's labels by the contract's positions."""
    several = len(contract.outputs)
    array, key = arrays[_key("y", spec.name, several)], _key("labels", spec.name, several)
    if isinstance(spec, WiderOutput) and (key in arrays or not spec.named):
        return labels_of(array, arrays.get(key), spec)
    if key in arrays:
        return by_name(array, arrays[key], spec)
    if spec.named:
        raise DataMismatch("data-missing", key, "the names of y's positions, for those of the model have moved")
    return array


def as_times(array: Array) -> Array:
    """Times as ``Dataset.time`` has them, from numbers or datetime64; NaN for what is not a time.

    Raises:
        DataMismatch: ``data-dtype`` where the array holds anything else.
    """
    if array.dtype.kind == "M" and np.datetime_data(array.dtype)[0] != "generic":
        seconds = array.astype("datetime64[ns]").astype(np.float64) / 1e9
        return np.where(np.isnat(array), np.nan, seconds)
    if array.dtype.kind not in "iuf":
        raise DataMismatch("data-dtype", "timestamp", f"seconds since 1970, or datetime64, got {kind_of(array)}")
    return array.astype(np.float64, copy=False)


def check_dataset(data: Dataset, contract: Contract) -> None:
    """Check everything the contract says about data.

    A contract that names a preprocessing asks the data to name the same; one that names none asks nothing.

    Raises:
        DataMismatch: The first thing that does not fit: which input and column or which output, and what is expected.
    """
    if contract.preprocessing is not None and data.preprocessing != contract.preprocessing:
        raise DataMismatch("data-preprocessing", "preprocessing", repr(contract.preprocessing))
    _check_names(data.x, [spec.name for spec in contract.inputs], "input")
    labelled = [spec for spec in contract.outputs if spec.name not in data.unlabelled]
    _check_names(data.y, [spec.name for spec in labelled or contract.outputs], "output")
    first = contract.inputs[0].name
    if data.x[first].ndim and len(data) == 0:
        raise DataMismatch("data-empty", first, "at least one example")
    for spec in contract.inputs:
        _check_input(data.x[spec.name], spec)
        if len(data.x[spec.name]) != len(data):
            raise DataMismatch("data-shape", spec.name, f"as many rows as {first}")
    for output in labelled:
        check_labels(data.y[output.name], output, len(data))
    _check_times(data.time, len(data))
    _check_weights(data.sample_weight, len(data))
    if data.slices is not None and data.slices.shape != (len(data),):
        raise DataMismatch("data-shape", "slice", "one text for each row")


def as_arrays(data: Dataset, contract: Contract) -> Dataset:
    """Checked data as Keras takes them.

    Inputs in the contract's dtype; labels int32 [n, ...] for multiclass and float32 [n, *shape] otherwise; sample
    weights float32. Arrays that are so already are not copied. Labels that are missing are filled in, see ``Dataset``.
    """
    weights = data.sample_weight
    return dataclasses.replace(
        data,
        x={spec.name: data.x[spec.name].astype(spec.dtype, copy=False) for spec in contract.inputs},
        y={
            spec.name: no_labels(spec, len(data))
            if spec.name in data.unlabelled
            else labels_as_array(data.y[spec.name], spec)
            for spec in contract.outputs
        },
        sample_weight=None if weights is None else weights.astype(np.float32, copy=False),
    )


def _key(prefix: str, name: str, count: int) -> str:
    return prefix if count == 1 else f"{prefix}.{name}"


def _keys(contract: Contract) -> list[str]:
    """Names of the arrays a file must have."""
    inputs = [_key("x", spec.name, len(contract.inputs)) for spec in contract.inputs]
    return inputs + [_key("y", spec.name, len(contract.outputs)) for spec in contract.outputs]


def _read(path: Path, wanted: set[str]) -> dict[str, Array]:
    """The arrays of an npz that are among ``wanted``."""
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.lib.npyio.NpzFile):
            with archive:
                return {key: archive[key] for key in archive.files if key in wanted}
        expected = "an npz file, got a single npy array"
    except OSError as error:
        reason = "it does not exist" if isinstance(error, FileNotFoundError) else "it cannot be read"
        expected = f"an npz file; {reason}"
    except Exception:  # noqa: BLE001 - a damaged archive makes zipfile, zlib and NumPy raise nearly anything
        expected = "an undamaged npz of plain arrays; arrays of objects would need pickle"
    raise DataMismatch("data-unreadable", path.name, expected)


def _check_names(arrays: Mapping[str, Array], names: list[str], what: str) -> None:
    for name in names:
        if name not in arrays:
            raise DataMismatch("data-missing", name, f"an array for this {what}")


def _check_input(array: Array, spec: InputSpec) -> None:
    """Shape, dtype, finiteness and range of one input."""
    _check_shape(array, spec)
    if array.dtype.kind not in "biuf":
        raise DataMismatch("data-dtype", spec.name, f"numbers that convert to {spec.dtype}, got {kind_of(array)}")
    _name_columns(~np.isfinite(array), spec, "data-not-finite", "finite numbers")
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "b":
        _name_columns((array != 0) & (array != 1), spec, "data-range", "0 or 1")
        return
    if dtype.kind in "iu":
        _name_columns(array != np.floor(array), spec, "data-dtype", f"whole numbers that convert to {spec.dtype}")
        limits = np.iinfo(dtype)
        outside = (array < limits.min) | (array > limits.max)
        _name_columns(outside, spec, "data-range", f"numbers that fit {spec.dtype}")
    with np.errstate(over="ignore"):
        cast = array.astype(dtype, copy=False)
        _name_columns(~np.isfinite(cast), spec, "data-not-finite", f"numbers that fit {spec.dtype}")
        # NumPy compares in the input's precision; as doubles, float32(0.1) would be above a bound of 0.1.
        if spec.low is not None:
            _name_columns(cast < spec.low, spec, "data-range", f"at least {spec.low:g}")
        if spec.high is not None:
            _name_columns(cast > spec.high, spec, "data-range", f"at most {spec.high:g}")


def unusable(array: Array, spec: InputSpec) -> tuple[Array, Array]:
    """Which values of an input are missing or not finite, and which of the others dtype or range do not allow.

    Returns:
        Two arrays, bool [n, *shape]; ``_check_input`` passes exactly where neither has a true value.

    Raises:
        DataMismatch: ``data-shape``, or ``data-dtype`` where there are no numbers.
    """
    _check_shape(array, spec)
    if array.dtype.kind not in "biuf":
        raise DataMismatch("data-dtype", spec.name, f"numbers that convert to {spec.dtype}, got {kind_of(array)}")
    missing, dtype = ~np.isfinite(array), np.dtype(spec.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype.kind == "b":
            return missing, ~missing & (array != 0) & (array != 1)
        cast = array.astype(dtype, copy=False)
        outside = ~np.isfinite(cast)
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            outside |= (array != np.floor(array)) | (array < limits.min) | (array > limits.max)
        if spec.low is not None:
            outside |= cast < spec.low
        if spec.high is not None:
            outside |= cast > spec.high
    return missing, outside & ~missing


def _check_shape(array: Array, spec: InputSpec) -> None:
    expected = ", ".join("any" if n is None else str(n) for n in spec.shape)
    got = array.shape[1:]
    if array.ndim == len(spec.shape) + 1 and all(n in (None, m) for n, m in zip(spec.shape, got, strict=True)):
        return
    where = spec.name
    if array.ndim == 2 and len(spec.shape) == 1 and spec.shape[0] is not None:
        where = _column(spec, min(got[0], spec.shape[0]), got)  # the first column that is missing or too many
    raise DataMismatch(
        "data-shape",
        where,
        f"[n, {expected}], got [n, {', '.join(map(str, got))}]" if array.ndim else f"[n, {expected}]",
    )


def _name_columns(bad: Array, spec: InputSpec, code: str, expected: str) -> None:
    """Raise for the first column of ``bad`` (bool [n, *shape]) that has a true value."""
    columns = np.flatnonzero(bad.any(axis=0))
    if columns.size:
        raise DataMismatch(code, _column(spec, int(columns[0]), bad.shape[1:]), expected)


def _column(spec: InputSpec, position: int, shape: tuple[int, ...]) -> str:
    """How a person finds the flat ``position`` among an input's features: its index, and its name where it has one."""
    if not shape:
        return spec.name
    if len(shape) == 1:
        index: tuple[int, ...] = (position,)
    else:
        index = tuple(int(i) for i in np.unravel_index(position, shape))
    name = f" ({spec.columns[index[-1]]})" if spec.columns and index[-1] < len(spec.columns) else ""
    return f"{spec.name} column {','.join(map(str, index))}{name}"


def _check_times(times: Array | None, rows: int) -> None:
    if times is None:
        return
    if times.shape != (rows,):
        raise DataMismatch("data-shape", "timestamp", "one time for each row")
    if not np.isfinite(times).all():
        raise DataMismatch("data-not-finite", "timestamp", "a time for each row")


def _check_weights(weights: Array | None, rows: int) -> None:
    if weights is None:
        return
    if weights.shape != (rows,):
        raise DataMismatch("data-shape", "sample_weight", "one weight for each row")
    if weights.dtype.kind not in "biuf":
        raise DataMismatch("data-dtype", "sample_weight", f"numbers, got {kind_of(weights)}")
    with np.errstate(over="ignore"):
        cast = weights.astype(np.float32)
    if not np.isfinite(cast).all():
        raise DataMismatch("data-not-finite", "sample_weight", "finite numbers")
    if (cast < 0).any() or not (cast > 0).any():
        raise DataMismatch("data-range", "sample_weight", "no weight below 0, and one above")
