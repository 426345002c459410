"""A site's data as a check reads them: what training would refuse is counted.

Invariants: data of another form than the contract's (arrays, columns, shapes, no numbers) are refused as ever; a value
or a label never is. ``Found.data`` are complete examples, in the form ``fedretrain.dataset.as_arrays`` gives them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.checks import decisions, subjects
from fedretrain.contract import Contract, OutputSpec
from fedretrain.dataset import Dataset, unusable
from fedretrain.errors import DataMismatch
from fedretrain.labels import no_labels
from fedretrain.wider import WiderOutput, widened

Array = NDArray[Any]
Mask = NDArray[Any]  # of bool


@dataclass(frozen=True, eq=False)
class Found:
    """What there is.

    Attributes:
        data: The complete examples [n]; labels that are missing, or not the contract's, are -1 or NaN.
        labels: By output that decides something, of the complete examples: for one decision the label's position
            among ``fedretrain.checks.label_names``, int64 [n], -1 where there is none; for several whether each of
            them is given, bool [n, names].
        labelled: By the same, whether an example has any label, of whatever name, bool [n].
        missing: By subject (``fedretrain.checks.subjects``), bool [rows].
        impossible: By subject, bool [rows].
        complete: Which rows are the complete examples, bool [rows].
        time: Of all rows, float64 [rows], or None.
    """

    data: Dataset
    labels: dict[str, Array]
    labelled: dict[str, Mask]
    missing: dict[str, Mask]
    impossible: dict[str, Mask]
    complete: Mask
    time: Array | None

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        arrays = (*self.labels.values(), *self.missing.values(), *self.impossible.values())
        return self.data.nbytes + sum(array.nbytes for array in arrays)


def read(load: Callable[[Contract], Dataset], contract: Contract, labels: Sequence[str] = ()) -> Found:
    """The data that ``load`` reads, which may raise DataMismatch; ``labels`` are looked for beside the contract's.

    Raises:
        DataMismatch: The data have another form, or there are none.
    """
    wider = widened(contract, labels)
    raw = load(wider)
    _check_form(raw, contract)
    missing, impossible, complete = _values(raw, contract)
    kept = raw.take(complete) if not complete.all() else raw
    x = {spec.name: kept.x[spec.name].astype(spec.dtype, copy=False) for spec in contract.inputs}
    y, given, labelled = {}, {}, {}
    for spec, wide in zip(contract.outputs, wider.outputs, strict=True):
        array = kept.y.get(spec.name)
        if array is None or not isinstance(wide, WiderOutput):
            y[spec.name] = no_labels(spec, len(kept)) if array is None else _numbers(array, spec)
            continue
        y[spec.name] = _plain(array, spec, wide)
        if decisions(spec) != "none":
            given[spec.name], labelled[spec.name] = _given(array, spec, wide)
    weights = None if kept.sample_weight is None else np.asarray(kept.sample_weight, np.float32)
    data = dataclasses.replace(kept, x=x, y=y, sample_weight=weights, slices=None)
    return Found(data, given, labelled, missing, impossible, complete, raw.time)


def _check_form(raw: Dataset, contract: Contract) -> None:
    if contract.preprocessing is not None and raw.preprocessing != contract.preprocessing:
        raise DataMismatch("data-preprocessing", "preprocessing", repr(contract.preprocessing))
    if not len(raw):
        raise DataMismatch("data-empty", contract.inputs[0].name, "at least one example")
    for spec in contract.inputs:
        if spec.name not in raw.x:
            raise DataMismatch("data-missing", spec.name, "an array for this input")
        if raw.x[spec.name].shape[:1] != (len(raw),):
            raise DataMismatch("data-shape", spec.name, f"as many rows as {contract.inputs[0].name}")
    _check_beside(raw, contract)


def _check_beside(raw: Dataset, contract: Contract) -> None:
    """Whether labels, times and weights are as many as the inputs."""
    for output in contract.outputs:
        if output.name in raw.y and raw.y[output.name].shape[:1] != (len(raw),):
            raise DataMismatch("label-shape", output.name, f"as many rows as {contract.inputs[0].name}")
    for name, array in (("timestamp", raw.time), ("sample_weight", raw.sample_weight)):
        if array is not None and array.shape != (len(raw),):
            raise DataMismatch("data-shape", name, "one for each row")
    if raw.sample_weight is not None and raw.sample_weight.dtype.kind not in "biuf":
        raise DataMismatch("data-dtype", "sample_weight", "numbers")


def _values(raw: Dataset, contract: Contract) -> tuple[dict[str, Mask], dict[str, Mask], Mask]:
    """By subject which rows have a missing and which an impossible value, and which have neither anywhere."""
    missing: dict[str, Mask] = {}
    impossible: dict[str, Mask] = {}
    complete = np.ones(len(raw), bool)
    columns = {(f.input, f.index): f.name for f in contract.features if f.kind == "column"}
    for spec in contract.inputs:
        absent, wrong = (mask.reshape(len(raw), -1) for mask in unusable(raw.x[spec.name], spec))
        named = {index: name for (input_, index), name in columns.items() if input_ == spec.name}
        for index, name in named.items():
            missing[name], impossible[name] = absent[:, index], wrong[:, index]
        if not named:
            missing[spec.name], impossible[spec.name] = np.any(absent, axis=1), np.any(wrong, axis=1)
        complete &= ~np.any(absent | wrong, axis=1)
    order = subjects(contract)
    return {name: missing[name] for name in order}, {name: impossible[name] for name in order}, complete


def _given(array: Array, spec: OutputSpec, wide: WiderOutput) -> tuple[Array, Mask]:
    """An output's labels among all names, and which examples have any."""
    if decisions(spec) == "several":
        columns = _of_width(array, spec, wide)
        there = ~np.asarray(np.isnan(columns).any(axis=1))
        return (columns > 0.5) & there[:, None], there
    if spec.kind == "onehot":
        columns = _of_width(array, spec, wide)
        there = np.asarray(~np.isnan(columns).any(axis=1) & (columns > 0).any(axis=1))
        return np.where(there, np.argmax(np.nan_to_num(columns), axis=1), -1).astype(np.int64), there
    if array.size != len(array):
        raise DataMismatch("label-shape", spec.name, "[n], a label for each example")
    places = array.reshape(len(array)).astype(np.int64)
    return places, places >= 0


def _of_width(array: Array, spec: OutputSpec, wide: WiderOutput) -> Array:
    """Columns of all names, [n, names]."""
    if array.shape[-1:] != (len(wide.labels),) or array.size != len(array) * len(wide.labels):
        raise DataMismatch("label-shape", spec.name, f"[n, {len(spec.labels)}], a column for each label")
    return array.reshape(len(array), len(wide.labels))


def _plain(array: Array, spec: OutputSpec, wide: WiderOutput) -> Array:
    """The labels that are the contract's, in its form; -1 or NaN where there is none, or one of another name."""
    absent = no_labels(spec, len(array))
    if spec.kind in ("multiclass", "binary"):
        places = array[..., 0] if spec.kind == "multiclass" and array.ndim == len(spec.shape) + 1 else array
        if spec.kind == "binary" and places.ndim == len(spec.shape):
            places = places[..., np.newaxis]
        if places.ndim != absent.ndim:
            raise DataMismatch("label-shape", spec.name, "labels in the form of the output")
        own = (places >= 0) & (places < wide.own)
        return np.where(own, places, absent[:1].flat[0] if len(absent) else 0).astype(absent.dtype)
    if array.ndim != absent.ndim:
        raise DataMismatch("label-shape", spec.name, "labels in the form of the output")
    columns = array[..., : wide.own].astype(np.float32)
    other = (array[..., wide.own :] > 0.5).any(axis=-1, keepdims=True) if spec.kind == "onehot" else np.zeros(1, bool)
    return np.where(other | np.isnan(columns).any(axis=-1, keepdims=True), np.float32(np.nan), columns)


def _numbers(array: Array, spec: OutputSpec) -> Array:
    """A regression's labels; NaN stays."""
    absent = no_labels(spec, len(array))
    if array.dtype.kind not in "biuf":
        raise DataMismatch("data-dtype", spec.name, "labels as numbers")
    if array.ndim == absent.ndim - 1 and spec.shape[-1:] == (1,):
        array = array[..., np.newaxis]
    if array.ndim != absent.ndim:
        raise DataMismatch("label-shape", spec.name, "labels in the form of the output")
    return array.astype(np.float32, copy=False)
