"""Sums that sites compute beside their updates, and what comes of them: which there are, and what form they have.

A sum is asked at given values of the variables that travel, about all that a site has for it. But for a check, what
travels is the mean over the site's examples and how many there were; the server combines them as it combines updates,
so that the same answers have the same bits in whatever order they came. Names, and the arrays by key
(``fedretrain.contract.key``)::

    fisher         diagonal of the Fisher information, by variable that trains; float32, in its shape, not negative
    gauss-newton   0: the upper triangle of the last layer's Gauss-Newton matrix, row by row [p (p + 1) / 2], float32;
                   settings "kernel" and "bias": positions of its variables (bias -1: it has none), p their values,
                   the kernel's first, each in C order; 1: mean squared error of a regression [], float32, else 0
    evaluation     0: the loss as the job has it, regularisation included [], float64;
                   1: by output in the contract's order, mean loss and share of right decisions [outputs, 2], float64,
                   the share 0 for a regression; as a site sends them, examples without a label of the output are in
                   the means with 0; 2: by output, the share of examples with a label [outputs], float64. The server
                   divides 1 by 2, so that its means are over the examples with a label
    check          whole numbers about data and answers, of each site by itself: ``fedretrain.checks``

A companion is what the server makes of a sum and brings to every site once in a run: one float32 array for each
variable that trains, in its shape (``companion_specs``).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .checks import CheckSettings, layout
from .contract import Contract, VariableSpec, key
from .errors import ConfigurationError
from .job import NamedConfig

WORDS = {
    "fisher": "how much the model's answers depend on each value that is trained",
    "gauss-newton": "how certain the data make the model's last layer",
    "evaluation": "how well the model does on the data it is validated on",
    "check": "how the data and the model's answers are distributed, and how good the data are",
}
"""What each sum tells, for a person who is responsible for the data."""
LARGEST = 2048  # values of a last layer whose Gauss-Newton matrix may be asked for: 8 MiB

Specs = Mapping[str, VariableSpec]


class Fisher(BaseModel):
    """Settings of "fisher": ``examples`` is how many a site uses at most, ``labels`` whose they are.

    ``of`` says which: the old ones, or those trained on; where nobody knows, all of them are both.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    examples: int = Field(1000, ge=1)
    labels: str = Field("model", pattern="^(model|data)$")
    of: str = Field("old", pattern="^(old|trained)$")


class GaussNewton(BaseModel):
    """Settings of "gauss-newton": positions of the last layer's variables."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    kernel: int = Field(ge=0)
    bias: int = Field(-1, ge=-1)


class Evaluation(BaseModel):
    """Settings of "evaluation": none."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Settings = Fisher | GaussNewton | Evaluation | CheckSettings


def settings_of(what: NamedConfig) -> Settings:
    """The settings of a sum, checked.

    Raises:
        ConfigurationError: No such sum, or settings it does not have.
    """
    if what.name not in _KINDS:
        raise ConfigurationError(f"sum: expected one of {', '.join(_KINDS)}, got {what.name!r}")
    kind, _ = _KINDS[what.name]
    try:
        return kind(**what.settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigurationError(f"sum {what.name}: {where}: {first['msg']}, got {first['input']!r}") from None


def sum_specs(what: NamedConfig, contract: Contract) -> dict[str, VariableSpec]:
    """The arrays of a site's answer by key.

    Raises:
        ConfigurationError: As ``settings_of``; or the settings do not fit the contract.
    """
    settings = settings_of(what)
    _, specs = _KINDS[what.name]
    return specs(settings, contract)


def companion_specs(contract: Contract) -> dict[str, VariableSpec]:
    """The arrays of a companion by key: one float32 array for each variable that trains."""
    trained = [(i, spec) for i, spec in enumerate(contract.variables) if spec.rule == "train"]
    return {key(i): VariableSpec(shape=spec.shape, dtype="float32", rule="train") for i, spec in trained}


def _fisher(_settings: Any, contract: Contract) -> dict[str, VariableSpec]:
    return companion_specs(contract)


def _gauss_newton(settings: GaussNewton, contract: Contract) -> dict[str, VariableSpec]:
    size = layer_size(contract, settings.kernel, settings.bias)
    shapes = ((size * (size + 1) // 2,), ())
    return {key(i): VariableSpec(shape=shape, dtype="float32", rule="average") for i, shape in enumerate(shapes)}


def _evaluation(_settings: Any, contract: Contract) -> dict[str, VariableSpec]:
    count = len(contract.outputs)
    shapes: tuple[tuple[int, ...], ...] = ((), (count, 2), (count,))
    return {key(i): VariableSpec(shape=shape, dtype="float64", rule="average") for i, shape in enumerate(shapes)}


def _check(settings: CheckSettings, contract: Contract) -> dict[str, VariableSpec]:
    return layout(contract, settings)


def layer_size(contract: Contract, kernel: int, bias: int) -> int:
    """How many values kernel and bias of a dense layer have together.

    Raises:
        ConfigurationError: These are not the variables of one, or they are too many.
    """
    specs = contract.variables
    shapes = [specs[i].shape if 0 <= i < len(specs) else () for i in (kernel, bias)]
    if len(shapes[0]) != 2 or (bias >= 0 and shapes[1] != shapes[0][1:]):
        raise ConfigurationError(f"sum gauss-newton: expected a kernel [d, c] and a bias [c], got {shapes}")
    rows, columns = shapes[0]
    size = (rows + (bias >= 0)) * columns
    if size > LARGEST:
        raise ConfigurationError(
            f"sum gauss-newton: expected a last layer of at most {LARGEST} values, got {size}; a smaller layer before "
            "it would do, or leave [uncertainty] out"
        )
    return size


def packed(matrix: NDArray[Any]) -> NDArray[np.float32]:
    """The upper triangle of a symmetric matrix [p, p], row by row, float32 [p (p + 1) / 2]."""
    return matrix[np.triu_indices(len(matrix))].astype(np.float32)


def unpacked(triangle: NDArray[Any]) -> NDArray[np.float64]:
    """The symmetric matrix whose upper triangle this is, float64 [p, p]."""
    size = (math.isqrt(8 * len(triangle) + 1) - 1) // 2
    matrix = np.zeros((size, size))
    matrix[np.triu_indices(size)] = triangle
    return matrix + np.triu(matrix, 1).T


_KINDS: dict[str, tuple[type[Settings], Callable[..., dict[str, VariableSpec]]]] = {
    "fisher": (Fisher, _fisher),
    "gauss-newton": (GaussNewton, _gauss_newton),
    "evaluation": (Evaluation, _evaluation),
    "check": (CheckSettings, _check),
}
