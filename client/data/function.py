"""function: the site's own reader. It is called with the contract and returns the arrays that an npz would have.

Its errors go to the site's log as class and place; their texts may quote data.
"""

import importlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from client.failures import log_without_text
from fedretrain.contract import Contract
from fedretrain.dataset import Dataset, from_arrays
from fedretrain.errors import DataMismatch
from fedretrain.wider import WiderContract, as_found

from .section import FunctionData

_WHERE = "the site's data function"


class Named(Protocol):
    """A table with a function, and the folder it is imported from."""

    @property
    def function(self) -> str:
        """``module:function``."""

    @property
    def path(self) -> str | None:
        """A folder; None for what is installed."""


def read(section: FunctionData, folder: Path, contract: Contract) -> Dataset:
    """The examples; raises DataMismatch, also where the function raises anything else."""
    try:
        asked = contract.plain if isinstance(contract, WiderContract) else contract
        data = _result(function_of(section, folder)(asked), contract)
    except DataMismatch:
        raise
    except Exception as error:  # noqa: BLE001 - it is the site's own code
        log_without_text(f"data.function {section.function}", error)
        raise DataMismatch("data-unreadable", _WHERE, "one that returns; see the site's log") from None
    return data if section.preprocessing is None else replace(data, preprocessing=section.preprocessing)


def function_of(section: Named, folder: Path) -> Any:
    """The function that a table of ``site.toml`` names; raises whatever its import raises."""
    module, _, name = section.function.partition(":")
    place = None if section.path is None else str((folder / section.path).resolve())
    if place is not None and place not in sys.path:
        sys.path.insert(0, place)  # stays: a reader may import more of its own when it is called
    return getattr(importlib.import_module(module), name)


def _result(result: Any, contract: Contract) -> Dataset:
    if isinstance(result, Dataset):
        y = {spec.name: as_found(result.y[spec.name], spec) for spec in contract.outputs if spec.name in result.y}
        return replace(result, y={**result.y, **y})
    if not isinstance(result, Mapping):
        raise DataMismatch("data-unreadable", _WHERE, "a table of arrays: x, y or x.<input>, y.<output>")
    return from_arrays({str(key): np.asarray(value) for key, value in result.items()}, contract, partial=True)
