"""The diagonal posterior of a model's values from one release to the next (``strategies.posterior``).

``uncertainty.safetensors`` has it as "diagonal.KEY" for each variable that trained, float32 in its shape, KEY as in
``fedretrain.contract.key``: the precision Λ, in examples.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.contract import VariableSpec
from strategies.base import Arrays

Tensors = Mapping[str, NDArray[Any]]
InUse = Callable[[], Tensors]
"""Gives the tensors of the release in use; none where nothing was kept."""
_PREFIX = "diagonal."


def kept(tensors: Tensors, specs: Mapping[str, VariableSpec], otherwise: float) -> Arrays | None:
    """Λ for these variables, ``otherwise`` where nothing was kept of one; None where nothing was kept at all."""
    if not any(name.startswith(_PREFIX) for name in tensors):
        return None
    found = {key: tensors.get(_PREFIX + key) for key in specs}
    fits = {key: a is not None and a.shape == specs[key].shape and bool(np.all(a >= 0)) for key, a in found.items()}
    return [
        np.asarray(found[key], np.float64) if fits[key] else np.full(spec.shape, otherwise)
        for key, spec in specs.items()
    ]


def begun(information: Arrays, examples: int, otherwise: float) -> Arrays:
    """Λ from the mean Fisher information of so many old examples."""
    return [otherwise + examples * np.asarray(array, np.float64) for array in information]


def updated(precision: Arrays, information: Tensors, examples: int) -> dict[str, NDArray[Any]]:
    """The tensors to keep: Λ' = Λ + N F, with F by key, in the order of Λ."""
    added = zip(information.items(), precision, strict=True)
    return {
        _PREFIX + key: (before + examples * array.astype(np.float64)).astype(np.float32)
        for (key, array), before in added
    }
