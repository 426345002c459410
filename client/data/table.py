"""Rows of named columns as examples: what csv and parquet have in common.

Columns are converted chunk by chunk, so that of a file's text no more than a chunk is in memory.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedretrain.contract import Contract, InputSpec, OutputSpec
from fedretrain.dataset import Dataset
from fedretrain.errors import DataMismatch
from fedretrain.wider import WiderContract, as_found

from .labels import as_labels, by_position, positions
from .section import TableData, labelled
from .times import seconds

Array = NDArray[Any]
Column = Sequence[Any] | Array
SaidT = TypeVar("SaidT")
Chunk = Mapping[str, Column]
Number = Callable[[Any], float]


class Table:
    """Which columns an input or output is made of, and the examples of chunks of them.

    Args:
        section: The site's words.
        contract: What the model expects.

    Raises:
        DataMismatch: ``data-missing`` where neither names the columns.
    """

    def __init__(self, section: TableData, contract: Contract) -> None:
        self._contract = contract
        self._inputs = {spec.name: _feature_columns(section, spec, contract) for spec in contract.inputs}
        self._outputs = _label_columns(section, contract)
        self._weight = section.sample_weight
        self._time = section.timestamp
        self._preprocessing = section.preprocessing
        self._number = _number_if_any if isinstance(contract, WiderContract) else _number

    @property
    def _labelled(self) -> list[OutputSpec]:
        """The outputs there are labels for."""
        return [output for output in self._contract.outputs if output.name in self._outputs]

    @property
    def columns(self) -> list[str]:
        """Every column that is needed, once."""
        others = tuple(column for column in (self._weight, self._time) if column)
        groups = [*self._inputs.values(), *self._outputs.values(), others]
        return list(dict.fromkeys(column for group in groups for column in group))

    def check_names(self, found: Sequence[str]) -> None:
        """Raises DataMismatch for the first needed column that is not among ``found``."""
        for column in self.columns:
            if column not in found:
                raise DataMismatch("data-missing", column, "a column of this name in every file")

    def dataset(self, chunks: Iterable[Chunk]) -> Dataset:
        """The examples of all chunks; raises DataMismatch."""
        parts: dict[tuple[str, str], list[Array]] = {}
        for chunk in chunks:
            for spec in self._contract.inputs:
                columns = self._inputs[spec.name]
                parts.setdefault(("x", spec.name), []).append(_features(chunk, columns, spec, self._number))
            for output in self._labelled:
                columns = self._outputs[output.name]
                parts.setdefault(("y", output.name), []).append(_labels(chunk, columns, output, self._number))
            if self._weight:
                weights = _numbers(chunk[self._weight], self._weight, _number).astype(np.float32)
                parts.setdefault(("w", ""), []).append(weights)
            if self._time:
                parts.setdefault(("t", ""), []).append(seconds(chunk[self._time], self._time))
        if not parts:
            raise DataMismatch("data-empty", self._contract.inputs[0].name, "at least one example")
        whole = {key: np.concatenate(parts.pop(key)) for key in list(parts)}
        return Dataset(
            x={spec.name: _shaped(whole["x", spec.name], spec) for spec in self._contract.inputs},
            y={output.name: whole["y", output.name] for output in self._labelled},
            sample_weight=whole.get(("w", "")),
            preprocessing=self._preprocessing,
            time=whole.get(("t", "")),
            unlabelled=tuple(output.name for output in self._contract.outputs if output.name not in self._outputs),
        )


def _feature_columns(section: TableData, spec: InputSpec, contract: Contract) -> tuple[str, ...]:
    chosen = _said_of(section.columns, spec.name, len(contract.inputs))
    if chosen is None and spec.columns:
        chosen = spec.columns
    if chosen is None and None not in spec.shape and prod(n or 1 for n in spec.shape) == 1:
        chosen = (spec.name,)
    if chosen is None:
        raise DataMismatch("data-missing", spec.name, "its columns in [data] of site.toml; the contract names none")
    return chosen


def _label_columns(section: TableData, contract: Contract) -> dict[str, tuple[str, ...]]:
    """By output; where there are several, one that site.toml does not name has no labels here."""
    names = [spec.name for spec in contract.outputs]
    wanted = "its column in [data.label] of site.toml"
    found: dict[str, tuple[str, ...]] = {}
    for name in labelled(section.label, contract, wanted):
        chosen = _said_of(section.label, name, len(names))
        if chosen is None:
            raise DataMismatch("data-missing", name, wanted)
        found[name] = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    return found


def _said_of(said: SaidT | Mapping[str, SaidT] | None, name: str, count: int) -> SaidT | None:
    """What site.toml says of one among ``count`` inputs or outputs; without a name it is said of the only one."""
    if isinstance(said, Mapping):
        return said.get(name)
    return said if count == 1 else None


def _features(chunk: Chunk, columns: Sequence[str], spec: InputSpec, number: Number) -> Array:
    """[rows, columns]; in the model's own precision where that is not less than what whole numbers need."""
    whole = np.stack([_numbers(chunk[column], column, number) for column in columns], axis=1)
    with np.errstate(over="ignore"):
        return whole.astype(np.float32) if spec.dtype == "float32" else whole


def _labels(chunk: Chunk, columns: Sequence[str], output: OutputSpec, number: Number) -> Array:
    if len(columns) == 1 and by_position(output):
        return as_labels(positions(chunk[columns[0]], output), output)
    numbers = [_numbers(chunk[column], column, number) for column in columns]
    return as_found(numbers[0] if len(numbers) == 1 else np.stack(numbers, axis=1), output)


def _numbers(values: Column, column: str, number: Number) -> Array:
    """float64 [rows]; an empty cell is NaN."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        return values.astype(np.float64)
    try:
        return np.fromiter(map(number, values), np.float64, len(values))
    except (TypeError, ValueError):
        raise DataMismatch("data-dtype", column, "numbers") from None


def _number(value: Any) -> float:
    if value is None or (isinstance(value, str) and not value.strip()):
        return np.nan
    return float(value)


def _number_if_any(value: Any) -> float:
    """As ``_number``; what is no number is NaN too."""
    try:
        return _number(value)
    except (TypeError, ValueError):
        return np.nan


def _shaped(flat: Array, spec: InputSpec) -> Array:
    """Columns in the input's own shape, where there are as many as it has elements."""
    if None not in spec.shape and prod(n or 1 for n in spec.shape) == flat.shape[1]:
        return flat.reshape(len(flat), *(n or 1 for n in spec.shape))
    return flat
