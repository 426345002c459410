"""Which label of a file the contract does not know, by its value: for data of the operator's own, as holdouts are.

Nothing here is for a site's data: what a site says never has a value of them (``fedretrain.dataset``).
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import Contract, OutputSpec
from .errors import DataMismatch

Array = NDArray[Any]


def with_label(error: DataMismatch, path: Path, contract: Contract) -> DataMismatch:
    """The error with the first label that made it "label-unknown", as far as that can be told; any other as it is.

    Args:
        error: What reading or checking the file raised.
        path: The file.
        contract: What it was checked against.
    """
    if error.code != "label-unknown":
        return error
    several = len(contract.outputs) > 1
    with np.load(path, allow_pickle=False) as file:
        for spec in contract.outputs:
            end = f".{spec.name}" if several else ""
            if error.where != spec.name and not error.where.startswith(f"{spec.name} "):
                continue
            found = _first_unknown(file[f"y{end}"], file.get(f"labels{end}"), spec)
            if found is not None:
                return DataMismatch(error.code, error.where, f"{error.expected}, got {found}")
    return error


def _first_unknown(labels: Array, names: Array | None, spec: OutputSpec) -> str | None:
    """A label that no position of the output stands for; None where it is not one label that is wrong."""
    if spec.kind not in ("multiclass", "binary"):
        if names is None:  # a share that is none, whose position the error names
            return None
        used = (labels != 0).reshape(-1, labels.shape[-1]).any(axis=0)
        return next((repr(name) for name in map(str, names[used]) if name not in spec.labels), None)
    last = len(names) - 1 if names is not None else 1 if spec.kind == "binary" else len(spec.labels) - 1
    for value in np.unique(labels).tolist():
        if not (0 <= value <= last and value == int(value)):
            return f"{value:g}"
        if names is not None and str(names[int(value)]) not in spec.labels:
            return repr(str(names[int(value)]))
    return None
