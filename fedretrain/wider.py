"""A contract as a check of data reads by it: labels beyond the contract's are told apart, not refused.

Invariants: reading by a wider contract refuses data that have another form, never a value in them; of labels that the
contract does not have, it keeps those that were asked for by name, and of the others only how many there are.

A label space here is the contract's labels, then those asked for, then one place for all others. Labels of a multiclass
or binary output are positions in it, int64, -1 where there is none; of a onehot or multilabel one they are columns of
it, float32, NaN where there is none.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import Contract, OutputSpec
from .errors import DataMismatch

Array = NDArray[Any]
_NO_NAME = ""  # of the place for unknown labels: an empty cell is no label, so no data have this name


class WiderOutput(OutputSpec):
    """An output with more labels; the first ``own`` are the contract's, the last stands for unknown ones."""

    own: int

    @property
    def unknown(self) -> int:
        """The place of unknown labels."""
        return len(self.labels) - 1

    def place(self, name: str) -> int:
        """Where a label of this name stands, or the place of unknown ones."""
        return self.labels.index(name) if name in self.labels else self.unknown


class WiderContract(Contract):
    """A contract to read by; ``plain`` is the one that was signed."""

    plain: Contract


def widened(contract: Contract, labels: Sequence[str] = ()) -> WiderContract:
    """The contract with a place for unknown labels, and for those of these names."""
    fields = {name: getattr(contract, name) for name in type(contract).model_fields}
    outputs = tuple(_wider(spec, labels) for spec in contract.outputs)
    return WiderContract.model_construct(**{**fields, "outputs": outputs, "plain": contract})


def labels_of(array: Array, names: Array | None, spec: WiderOutput) -> Array:
    """Labels as a file has them, in the label space of the module docstring; a regression's as they are.

    Args:
        array: The labels; positions or columns of ``names``, or of the contract's labels where there are none.
        names: text [k], or None.
        spec: The output.

    Raises:
        DataMismatch: ``data-dtype`` or ``label-shape`` where the form is another.
    """
    if array.dtype.kind not in "biuf":
        raise DataMismatch("data-dtype", spec.name, "labels as numbers")
    if spec.kind == "regression":
        return array
    if names is None:
        to = np.arange(spec.own)
    elif names.ndim == 1 and names.dtype.kind in "US":
        to = np.array([spec.place(str(name)) for name in names.astype(str)], np.int64)
    else:
        raise DataMismatch("data-dtype", f"labels of {spec.name}", "the names of its labels, text [k], each once")
    if spec.kind in ("multiclass", "binary"):
        return _positions(array, to, spec)
    return _columns(array, to, spec)


def as_found(array: Array, spec: OutputSpec) -> Array:
    """Labels without names as a reader has them, as they are where the output is not wider; raises as ``labels_of``."""
    return labels_of(array, None, spec) if isinstance(spec, WiderOutput) else array


def _wider(spec: OutputSpec, labels: Sequence[str]) -> OutputSpec:
    if spec.kind == "regression":
        return spec
    more = (*(label for label in dict.fromkeys(labels) if label not in spec.labels), _NO_NAME)
    fields = {name: getattr(spec, name) for name in type(spec).model_fields}
    return WiderOutput.model_construct(**{**fields, "labels": spec.labels + more, "own": len(spec.labels)})


def _positions(array: Array, to: Array, spec: WiderOutput) -> Array:
    """int64; NaN is no label, and what is no position is unknown."""
    absent = np.isnan(array) if array.dtype.kind == "f" else np.zeros(array.shape, bool)
    with np.errstate(invalid="ignore"):
        there = np.isin(array, np.arange(len(to)))
    found = np.full(array.shape, spec.unknown, np.int64)
    found[there] = to[array[there].astype(np.int64)]
    found[absent] = -1
    return found


def _columns(array: Array, to: Array, spec: WiderOutput) -> Array:
    """float32 [..., labels]; what stands in several columns of unknown names is added up, at most 1."""
    if array.shape[-1:] != to.shape:
        raise DataMismatch("label-shape", spec.name, f"a last axis of {len(to)}, one for each label")
    columns = np.zeros((*array.shape[:-1], len(spec.labels)), np.float32)
    for column, place in enumerate(to):
        columns[..., place] += array[..., column]
    return np.minimum(columns, 1)
