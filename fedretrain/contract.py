"""The contract: what a model expects of data and of updates, in one value with one digest.

Derived once from the base model and the job (``fedretrain.derive``), checked at every site before training, named by
its digest in every message, and signed into the release.

Format ``fedretrain.contract/1`` (canonical JSON, see ``fedretrain.digest``)::

    {"format": "fedretrain.contract/1",
     "inputs":  [{"name", "shape", "dtype", "low", "high", "columns"}],     shape without the batch axis, null = any
     "outputs": [{"name", "shape", "kind", "loss", "labels", "named"}],     named only where it is true
     "preprocessing": str | null,
     "architecture": hex,                                                   fingerprint of the architecture JSON
     "base": hex,                                                           weights digest of the base model
     "variables": [{"shape", "dtype", "rule"}],                             by position in ``model.variables``
     "features": [{"name", "kind", "input", "index", "edges"}]}             only where data are watched

Rules of a variable, so that nothing is averaged by accident:

    train     trainable after freezing; updates are combined by the strategy
    average   moving statistics of a BatchNormalization layer that is not frozen; combined like ``train``
    personal  as ``train`` or ``average``, in layers that the strategy keeps at the sites: each site has its own values,
              which are never sent; in a release they are the base model's (``fedretrain.personal``)
    keep      everything else: frozen, integer, a Normalization layer's numbers; bit-identical after a run
    local     seeds of random layers; set by each trainer, never sent

Only ``train`` and ``average`` variables travel; together they are the *changing* variables. What a strategy sends
beside them has the rule ``auxiliary``, which no variable of a contract has (``fedretrain.travel``).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from .digest import json_digest

FORMAT: Literal["fedretrain.contract/1"] = "fedretrain.contract/1"
CHANGING = frozenset({"train", "average"})

Kind = Literal["multiclass", "onehot", "binary", "multilabel", "regression"]
Shape = tuple[Annotated[int, Field(ge=0)] | None, ...]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class InputSpec(_Frozen):
    """One model input. ``low``/``high`` bound its values; ``columns`` names the last axis where it has names."""

    name: str
    shape: Shape
    dtype: str
    low: float | None = None
    high: float | None = None
    columns: tuple[str, ...] | None = None


class OutputSpec(_Frozen):
    """One model output and the labels that belong to it.

    ``kind`` says how labels look for n examples: multiclass int [n] or [n, 1]; onehot float [n, c]; binary 0/1 [n] or
    [n, 1]; multilabel 0/1 [n, c]; regression float [n, *shape] ([n] where shape is [1]).
    ``labels`` names the output positions and is empty for regression. ``named`` asks data to name theirs too, because
    a position no longer means what it meant before; it is left out of the JSON where it is false.
    """

    name: str
    shape: Shape
    kind: Kind
    loss: str
    labels: tuple[str, ...] = ()
    named: bool = False

    @model_serializer(mode="wrap")
    def _without_unnamed(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key != "named" or value}


class VariableSpec(_Frozen):
    """One model variable, known by its position."""

    shape: tuple[int, ...]
    dtype: str
    rule: Literal["train", "average", "personal", "keep", "local", "auxiliary"]

    @property
    def nbytes(self) -> int:
        """Size of the raw array in bytes."""
        import numpy as np

        count = 1
        for n in self.shape:
            count *= n
        itemsize = 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize  # NumPy alone does not know it
        return count * itemsize


class Feature(_Frozen):
    """One number of each example that is watched, and the cells of its histogram (``fedretrain.features``).

    ``kind``: column ``index`` of the flat input ``input``; brightness, contrast or sharpness of it; or the projection
    of the model's penultimate layer on direction ``index``, whose ``input`` is empty. k ``edges``, strictly ascending,
    make k + 1 cells, the first and the last open: cell i holds edges[i - 1] <= value < edges[i].
    """

    name: str
    kind: Literal["column", "brightness", "contrast", "sharpness", "projection"]
    input: str
    index: int = Field(0, ge=0)
    edges: tuple[float, ...]

    @field_validator("edges")
    @classmethod
    def _ascend(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(left >= right for left, right in pairwise(value)):
            raise ValueError("expected edges in strictly ascending order")
        return value

    @property
    def cells(self) -> int:
        """How many cells the histogram has."""
        return len(self.edges) + 1


class Contract(_Frozen):
    """See the module docstring for the format and the rules."""

    format: Literal["fedretrain.contract/1"] = FORMAT
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    preprocessing: str | None
    architecture: str
    base: str
    variables: tuple[VariableSpec, ...]
    features: tuple[Feature, ...] = ()

    @field_validator("features")
    @classmethod
    def _names_differ(cls, value: tuple[Feature, ...]) -> tuple[Feature, ...]:
        if len({feature.name for feature in value}) != len(value):
            raise ValueError("expected features of different names")
        return value

    @model_serializer(mode="wrap")
    def _without_no_features(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key != "features" or value}

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON; what every message carries."""
        return json_digest(self.model_dump(mode="json"))

    @property
    def changing(self) -> tuple[int, ...]:
        """Positions of the variables that travel, ascending."""
        return tuple(i for i, v in enumerate(self.variables) if v.rule in CHANGING)

    @property
    def changing_specs(self) -> tuple[VariableSpec, ...]:
        """The variables that travel, in the order of ``changing``."""
        return tuple(self.variables[i] for i in self.changing)

    @property
    def personal(self) -> tuple[int, ...]:
        """Positions of the variables that each site keeps its own values of, ascending."""
        return tuple(i for i, v in enumerate(self.variables) if v.rule == "personal")

    @property
    def nbytes(self) -> int:
        """Bytes of all variables: what sending the whole model costs."""
        return sum(v.nbytes for v in self.variables)

    @property
    def changing_nbytes(self) -> int:
        """Bytes of the variables that travel."""
        return sum(v.nbytes for v in self.changing_specs)


def parse_contract(value: Any) -> Contract:
    """A contract from its decoded JSON; raises pydantic.ValidationError, which the caller's boundary wraps."""
    return Contract.model_validate(value)


def key(position: int) -> str:
    """The name under which a variable travels: its position, so that no layer name leaves or collides."""
    return f"{position:05d}"


def keys(positions: Sequence[int]) -> list[str]:
    """``key`` of each."""
    return [key(p) for p in positions]
