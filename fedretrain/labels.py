"""Labels against an output's label space, for every kind of output (``fedretrain.contract.OutputSpec``).

An error names the output, or a label's position in the label space; never a label that was found.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import OutputSpec
from .errors import DataMismatch

Array = NDArray[Any]


def check_labels(array: Array, spec: OutputSpec, rows: int) -> None:
    """Check the labels of ``rows`` examples.

    Raises:
        DataMismatch: ``label-shape``, ``data-dtype``, ``data-not-finite``, or ``label-unknown`` where a label is
            outside the label space.
    """
    shape = (rows, *_label_shape(spec))
    if not _matches(array.shape, shape):
        texts = ["n" if i == 0 else "any" if n is None else str(n) for i, n in enumerate(shape)]
        same = "; as many rows as the inputs have" if array.ndim and len(array) != rows else ""
        raise DataMismatch("label-shape", spec.name, f"[{', '.join(texts)}]{same}")
    if array.dtype.kind not in "biuf":
        raise DataMismatch("data-dtype", spec.name, f"labels as numbers, got {kind_of(array)}")
    with np.errstate(over="ignore"):
        finite = np.isfinite(array if spec.kind == "multiclass" else array.astype(np.float32, copy=False))
    if not finite.all():
        raise DataMismatch("data-not-finite", spec.name, "finite labels")
    if spec.kind == "multiclass":
        _check_positions(array, spec)
    elif spec.kind != "regression":
        _check_shares(array, spec)


def by_name(array: Array, names: Array, spec: OutputSpec) -> Array:
    """Labels whose positions have other names, as the contract's positions; for an output that has labels.

    Args:
        array: As the file has them: positions of ``names``, or one column for each of these.
        names: text [k], each once.
        spec: The output.

    Raises:
        DataMismatch: ``data-dtype`` or ``label-shape`` for names or labels of another kind; ``label-unknown`` where an
            example has a label of a name that the contract does not have.
    """
    if names.ndim != 1 or names.dtype.kind not in "US" or len(set(names.tolist())) != len(names) or not spec.labels:
        raise DataMismatch("data-dtype", f"labels of {spec.name}", "the names of its labels, text [k], each once")
    position = {label: i for i, label in enumerate(spec.labels)}
    to = np.array([position.get(str(name), -1) for name in names.astype(str)], np.int64)
    unknown = DataMismatch("label-unknown", spec.name, f"labels among {list(spec.labels)}")
    if array.dtype.kind not in "biuf":
        raise DataMismatch("data-dtype", spec.name, f"labels as numbers, got {kind_of(array)}")
    if spec.kind in ("multiclass", "binary"):
        if not np.isin(array, np.arange(len(to))).all():
            raise DataMismatch(
                "label-unknown", spec.name, f"whole numbers from 0 to {len(to) - 1}, positions in labels"
            )
        found = to[array.astype(np.int64)]
        if (found < 0).any():
            raise unknown
        return found
    if array.shape[-1:] != to.shape:
        raise DataMismatch("label-shape", spec.name, f"a last axis of {len(to)}, one for each name in labels")
    if (array[..., to < 0] != 0).any():
        raise unknown
    columns = np.zeros((*array.shape[:-1], len(spec.labels)), array.dtype)
    columns[..., to[to >= 0]] = array[..., to >= 0]
    return columns


def labels_as_array(array: Array, spec: OutputSpec) -> Array:
    """Checked labels as the loss takes them: int32 [n, *shape[:-1]] for multiclass, else float32 [n, *shape]."""
    multiclass = spec.kind == "multiclass"
    if not multiclass and spec.shape[-1:] == (1,) and array.ndim == len(spec.shape):
        array = array[..., np.newaxis]
    elif multiclass and array.ndim == len(spec.shape) + 1:
        array = array[..., 0]
    return array.astype(np.int32 if multiclass else np.float32, copy=False)


def no_labels(spec: OutputSpec, rows: int) -> Array:
    """What stands for labels that a site does not have, in the form of ``labels_as_array``: -1 or NaN, read-only.

    An axis whose length the contract leaves open has length 1.
    """
    multiclass = spec.kind == "multiclass"
    shape = [n or 1 for n in (spec.shape[:-1] if multiclass else spec.shape)]
    value = np.int32(-1) if multiclass else np.float32(np.nan)
    return np.broadcast_to(value, (rows, *shape))


def kind_of(array: Array) -> str:
    """What an array that holds no numbers holds, in a word; not its dtype, which has the length of the longest text."""
    words = {"U": "text", "S": "bytes", "c": "complex numbers", "M": "dates", "m": "durations", "O": "objects"}
    return words.get(array.dtype.kind, "records")


def _label_shape(spec: OutputSpec) -> tuple[int | None, ...]:
    """Shape of one example's labels; a last axis of 1 may be left out."""
    return (*spec.shape[:-1], 1) if spec.kind == "multiclass" else spec.shape


def _matches(got: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    if expected[-1] == 1 and len(got) == len(expected) - 1 and len(got) > 0:
        expected = expected[:-1]
    return len(got) == len(expected) and all(n in (None, m) for n, m in zip(expected, got, strict=True))


def _check_positions(array: Array, spec: OutputSpec) -> None:
    """Whole numbers from 0 to one less than the number of labels."""
    last = len(spec.labels) - 1
    if ((array < 0) | (array > last) | (array != np.floor(array))).any():
        raise DataMismatch("label-unknown", spec.name, f"whole numbers from 0 to {last}")


def _check_shares(array: Array, spec: OutputSpec) -> None:
    """0 and 1; for onehot also shares in between, which sum to 1 in each row."""
    if spec.kind == "onehot":
        wrong, expected = (array < 0) | (array > 1), "shares from 0 to 1"
    else:
        wrong, expected = (array != 0) & (array != 1), "0 or 1"
    if spec.kind == "binary":
        if wrong.any():
            raise DataMismatch("label-unknown", spec.name, expected)
        return
    positions = np.flatnonzero(wrong.reshape(-1, wrong.shape[-1]).any(axis=0))
    if positions.size:
        position = int(positions[0])
        raise DataMismatch("label-unknown", f"{spec.name} label {position} ({spec.labels[position]})", expected)
    if spec.kind == "onehot" and (np.abs(array.sum(axis=-1, dtype=np.float64) - 1) > 1e-3).any():
        raise DataMismatch("label-unknown", spec.name, "shares that sum to 1 in each row")
