"""What a Flower strategy remembers between rounds, as arrays that a checkpoint can hold; nothing is pickled.

Flower's strategies keep state in attributes. Taken are attributes that are numbers, arrays, dicts of arrays by text,
lists of arrays or ``ArrayRecord``; that covers every strategy Flower ships. Keys of the result::

    n:<attribute>          a number, 0-d
    a:<attribute>          an array
    d:<attribute>/<key>    one array of a dict
    l:<attribute>/<index>  one array of a list, from 0
    r:<attribute>/<key>    one array of an ArrayRecord
"""

import logging
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedretrain.errors import RunFailed

log = logging.getLogger(__name__)
Saved = dict[str, NDArray[Any]]


def save(strategy: Strategy, fresh: Mapping[str, Any]) -> Saved:
    """The state of ``strategy``; ``fresh`` is a copy of its ``vars`` from before the first round.

    An attribute of another kind that has changed since cannot be saved, which is logged as a warning.
    """
    saved: Saved = {}
    for name, value in sorted(vars(strategy).items()):
        parts = _parts(name, value)
        if parts is not None:
            saved |= parts
        elif value is not fresh.get(name):
            log.warning("strategy attribute %s (%s) is not in the checkpoint", name, type(value).__name__)
    return saved


def restore(strategy: Strategy, saved: Mapping[str, NDArray[Any]]) -> None:
    """Put back what ``save`` gave.

    Raises:
        RunFailed: An attribute the strategy does not have: the checkpoint is of another class or version.
    """
    values: dict[str, Any] = {}
    for key in sorted(saved):
        kind, _, rest = key.partition(":")
        name, _, item = rest.partition("/")
        if name not in vars(strategy):
            raise RunFailed(
                f"checkpoint: {type(strategy).__name__} has no attribute '{name}'; start the run again, or install "
                "the version of the strategy that it was started with"
            )
        _put(values, kind, name, item, saved[key])
    for name, value in values.items():
        setattr(strategy, name, value)


def _parts(name: str, value: Any) -> Saved | None:
    """The entries of one attribute, or None where it is of no kind that can be saved."""
    if isinstance(value, bool | int | float | np.number):
        return {f"n:{name}": np.asarray(value)}
    if isinstance(value, np.ndarray):
        return {f"a:{name}": value}
    if isinstance(value, ArrayRecord):
        return {f"r:{name}/{key}": array.numpy() for key, array in value.items()}
    if isinstance(value, dict) and _are_arrays(value.values()):
        return {f"d:{name}/{key}": np.asarray(array) for key, array in value.items()}
    if isinstance(value, list) and _are_arrays(value):
        return {f"l:{name}/{i:06d}": np.asarray(array) for i, array in enumerate(value)}
    return None


def _are_arrays(values: Collection[Any]) -> bool:
    """Whether there are some, all of them arrays or what NumPy makes of a 0-d one."""
    return bool(values) and all(isinstance(v, np.ndarray | np.number) for v in values)


def _put(values: dict[str, Any], kind: str, name: str, item: str, array: NDArray[Any]) -> None:
    if kind == "n":
        values[name] = array.item()
    elif kind == "a":
        values[name] = array
    elif kind == "l":
        values.setdefault(name, []).append(array)
    elif kind == "r":
        values.setdefault(name, ArrayRecord())[item] = Array(np.asarray(array, order="C"))
    else:
        values.setdefault(name, {})[item] = array
