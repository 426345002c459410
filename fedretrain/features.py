"""The numbers of an example that are watched, and their histograms: the same code at the server and at the sites.

Invariant: each example's numbers are computed by themselves in float64, in a fixed order, so that they do not depend on
how many others are computed with them.

    column       a value of a flat input
    brightness   mean of an input's values
    contrast     their standard deviation, sqrt(mean((v - mean)^2))
    sharpness    mean absolute difference of neighbours along every axis, of three and more all but the last, which are
                 channels; 0 where there are none
    projection   sum_i h_i d_i, of the penultimate layer's values h on a direction d (``fedretrain.checks.directions``)
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .checks import MOST_COLUMNS, directions
from .contract import Contract, Feature, InputSpec
from .errors import ConfigurationError

if TYPE_CHECKING:
    import keras

Array = NDArray[Any]
Floats = NDArray[np.float64]
_ROWS = 4096  # examples at a time
SUMMARIES = ("brightness", "contrast", "sharpness")


def features_of(contract: Contract, hidden: int, projections: int) -> Iterator[Feature]:
    """The features of a contract's inputs and of a layer of ``hidden`` values (0: none), without edges.

    Flat inputs of at most 64 columns are watched column by column, others by three numbers for the whole of them.
    """
    several = len(contract.inputs) > 1
    for spec in contract.inputs:
        prefix = f"{spec.name}." if several else ""
        count = column_count(spec)
        for index in range(count or 0):
            name = spec.columns[index] if spec.columns else f"column {index}"
            yield Feature(name=prefix + name, kind="column", input=spec.name, index=index, edges=())
        if count is None:
            for kind in SUMMARIES:
                yield Feature(name=prefix + kind, kind=kind, input=spec.name, edges=())
    for index in range(projections if hidden else 0):
        yield Feature(name=f"projection {index}", kind="projection", input="", index=index, edges=())


def penultimate(model: "keras.Model") -> "keras.Model | None":
    """A model of the same inputs that gives what its last layer is given, [n, d]; None where there is none.

    None is for a model with several outputs, or with another end than a dense layer (``fedretrain.lastlayer``).
    """
    from .lastlayer import find_last_layer

    try:
        found: keras.Model = find_last_layer(model).features
    except ConfigurationError:
        return None
    return found


def column_count(spec: InputSpec) -> int | None:
    """How many columns of an input are watched one by one; None where it is watched as a whole."""
    count = 1 if not spec.shape else spec.shape[0] if len(spec.shape) == 1 else None
    return count if count is not None and 0 < count <= MOST_COLUMNS else None


def values(
    contract: Contract, features: Sequence[Feature], x: Mapping[str, Array], hidden: Array | None = None
) -> dict[str, Floats]:
    """Each feature of each example, by name, float64 [n].

    Args:
        contract: Whose inputs and architecture these are.
        features: Which; ``contract.features``, but for the server while it looks for their edges.
        x: By input, [n, ...], in the contract's dtypes.
        hidden: Values of the model's penultimate layer [n, d]; needed for projections alone.
    """
    found: dict[str, Floats] = {}
    projections = [feature for feature in features if feature.kind == "projection"]
    if projections and hidden is not None:
        count = 1 + max(feature.index for feature in projections)
        projected = _projected(hidden, directions(contract, hidden.shape[1], count))
        found |= {feature.name: projected[:, feature.index] for feature in projections}
    for name, array in x.items():
        wanted = [feature for feature in features if feature.input == name and feature.kind != "projection"]
        for feature in wanted:
            if feature.kind == "column":
                found[feature.name] = array.reshape(len(array), -1)[:, feature.index].astype(np.float64)
        if any(feature.kind in SUMMARIES for feature in wanted):
            summaries = _summaries(array)
            found |= {f.name: summaries[f.kind] for f in wanted if f.kind in SUMMARIES}
    return {feature.name: found[feature.name] for feature in features if feature.name in found}


def histogram(numbers: Floats, edges: Sequence[float]) -> NDArray[np.int64]:
    """How many finite numbers lie in each cell, int64 [len(edges) + 1]; cell i holds edges[i - 1] <= v < edges[i]."""
    cells = np.searchsorted(np.asarray(edges, np.float64), numbers, side="right")
    return np.bincount(cells, minlength=len(edges) + 1).astype(np.int64)


def _projected(hidden: Array, vectors: NDArray[np.float32]) -> Floats:
    """[n, d] on [d, k]: [n, k]; added up value by value, as a matrix product's order is the machine's."""
    total = np.zeros((len(hidden), vectors.shape[1]))
    for column, vector in zip(hidden.T, vectors.astype(np.float64), strict=True):
        total += column.astype(np.float64)[:, None] * vector
    return total


def _summaries(array: Array) -> dict[str, Floats]:
    """Brightness, contrast and sharpness of each example."""
    parts = [_summary(array[start : start + _ROWS]) for start in range(0, len(array), _ROWS)]
    empty = np.zeros(0)
    return {kind: np.concatenate([part[i] for part in parts]) if parts else empty for i, kind in enumerate(SUMMARIES)}


def _summary(array: Array) -> tuple[Floats, Floats, Floats]:
    wide = np.ascontiguousarray(array, np.float64)
    flat = wide.reshape(len(wide), -1)
    mean = flat.mean(axis=1)
    contrast = np.sqrt(((flat - mean[:, None]) ** 2).mean(axis=1))
    axes = range(1, wide.ndim if wide.ndim <= 3 else wide.ndim - 1)
    steps = [np.abs(np.diff(wide, axis=axis)).reshape(len(wide), -1) for axis in axes if wide.shape[axis] > 1]
    sharpness = np.concatenate(steps, axis=1).mean(axis=1) if steps else np.zeros(len(wide))
    return mean, contrast, sharpness
