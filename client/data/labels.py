"""Labels as sites write them: by name or by position, and as numbers where the output is one.

A value stands for the label of its name. Only where no label's name is a number may a whole number stand for a position
instead, so that the same value means the same label at every site.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.contract import OutputSpec
from fedretrain.errors import DataMismatch
from fedretrain.wider import WiderOutput

Array = NDArray[Any]
_NO_LABEL = frozenset({"", "nan", "none"})


def positions(values: Sequence[Any] | Array, output: OutputSpec) -> Array:
    """The labels' positions, int64 [n]; raises DataMismatch ``label-unknown`` without the value.

    By a wider output (``fedretrain.wider``) nothing is refused: no label is -1, and unknown ones have their place.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        distinct, places = np.unique(values, return_inverse=True)
        return np.array([_position(value, output) for value in distinct.tolist()], np.int64)[places]
    known: dict[Any, int] = {}
    found = np.empty(len(values), np.int64)
    for row, value in enumerate(values):
        if value not in known:
            known[value] = _position(value, output)
        found[row] = known[value]
    return found


def as_labels(found: Array, output: OutputSpec) -> Array:
    """Positions in the form the output's kind has (``fedretrain.contract.OutputSpec``)."""
    if output.kind != "onehot":
        return found
    return np.where(found[:, None] < 0, np.float32(np.nan), np.eye(len(output.labels), dtype=np.float32)[found])


def by_position(output: OutputSpec) -> bool:
    """Whether one label per row is what the output takes."""
    return output.kind in ("multiclass", "onehot", "binary")


def _position(value: Any, output: OutputSpec) -> int:
    text = (value.decode(errors="replace") if isinstance(value, bytes) else str(value)).strip()
    wider = isinstance(output, WiderOutput)
    if wider and (value is None or text.lower() in _NO_LABEL):
        return -1
    if text in output.labels:
        return output.labels.index(text)
    own = output.labels[: output.own] if isinstance(output, WiderOutput) else output.labels
    numbers = {number: place for place, name in enumerate(own) if (number := _number(name)) is not None}
    if wider and numbers:
        numbers = {number: i for i, name in enumerate(output.labels) if (number := _number(name)) is not None}
    number = _number(text)
    place = numbers.get(number) if numbers and number is not None else number
    unnamed = place is None or place not in range(len(output.labels if numbers else own))
    if unnamed or (output.named and not numbers):
        if isinstance(output, WiderOutput):
            return output.unknown
        how = "by name, for positions have moved" if output.named else "by name or position"
        wanted = f"one of the contract's {len(output.labels)} labels, {how}"
        raise DataMismatch("label-unknown", output.name, wanted)
    return int(place)  # type: ignore[arg-type]  # it is a position by now


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
