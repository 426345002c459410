"""Business metrics: numbers that functions of the site's own give, with a unit.

A function that fails, or gives no finite number, costs its own metric; the log has where it failed. What its number is
about, and whether it may leave, is the site's to say: neither smallest count nor noise apply to it.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from client.failures import log_without_text
from fedretrain.contract import Contract
from fedretrain.dataset import Dataset

if TYPE_CHECKING:
    from client.sitefile import MetricSection

Arrays = dict[str, NDArray[Any]]
Metrics = Callable[[Iterable[str], Callable[[], Arrays]], Mapping[str, tuple[float, str] | None]]


def reader(sections: "Mapping[str, MetricSection]", folder: Path) -> Metrics:
    """What gives the value and unit of those of the named metrics that the site declares; None for one that fails.

    Args:
        sections: The ``[metrics]`` of ``site.toml``.
        folder: Where it lies.
    """

    def read(names: Iterable[str], arrays: Callable[[], Arrays]) -> dict[str, tuple[float, str] | None]:
        found: dict[str, tuple[float, str] | None] = {}
        for name in names:
            if name not in sections:
                continue
            try:
                found[name] = _value(sections[name], folder, arrays), sections[name].unit
            except Exception as error:  # noqa: BLE001 - it is the site's own code
                log_without_text(f"metrics.{name} {sections[name].function}", error)
                found[name] = None
        return found

    return read


def arrays_of(data: Dataset, contract: Contract) -> Arrays:
    """Examples under the names they have in an npz (``fedretrain.dataset``)."""
    found: Arrays = {}
    for prefix, specs, values in (("x", contract.inputs, data.x), ("y", contract.outputs, data.y)):
        for spec in specs:
            found[prefix if len(specs) == 1 else f"{prefix}.{spec.name}"] = values[spec.name]
    if data.time is not None:
        found["timestamp"] = data.time
    if data.sample_weight is not None:
        found["sample_weight"] = data.sample_weight
    return found


def _value(section: "MetricSection", folder: Path, arrays: Callable[[], Arrays]) -> float:
    from client.data.function import function_of

    function = function_of(section, folder)
    given = [arrays()] if _takes_one(function) else []
    value = float(np.asarray(function(*given), np.float64))
    if not math.isfinite(value):
        raise ValueError("a business metric is a finite number")
    return value


def _takes_one(function: Any) -> bool:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(parameter.kind in kinds for parameter in inspect.signature(function).parameters.values())
