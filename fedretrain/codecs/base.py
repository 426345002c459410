"""What every codec has: a size that the contract decides, an encoder, and a decoder that believes nothing.

Invariants:

- What travels for a variable has a shape and dtype that follow from the contract and the codec's settings alone, so a
  receiver knows its size before it looks at a byte and allocates nothing at a sender's word.
- Equal values and seeds have equal bytes on every machine; all numbers are little-endian.
- Only ``train`` variables in float32 are coded, and only where that takes fewer bytes; BatchNormalization statistics,
  counters and whatever else travels go as they are.
"""

import math
from abc import abstractmethod
from typing import Any, ClassVar, NoReturn

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from fedretrain.contract import VariableSpec
from fedretrain.errors import RejectedUpdate

CHUNK = 1 << 20  # elements that are worked on at once; what a codec needs beside input and output is a few of these

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


class Codec(BaseModel):
    """A codec; its fields are its settings.

    Attributes:
        name: As the job names it.
        feedback: Whether what an update loses has to be kept and added to the site's next one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    name: ClassVar[str]
    feedback: ClassVar[bool] = False

    def codes(self, spec: VariableSpec) -> bool:
        """Whether a variable travels in this codec's own form, and not as it is."""
        count = math.prod(spec.shape)
        return spec.rule == "train" and spec.dtype == "float32" and self._size(count) < 4 * count

    def travelling(self, spec: VariableSpec) -> VariableSpec:
        """Shape and dtype of what travels for a variable: uint8 [bytes] where it is coded."""
        if not self.codes(spec):
            return spec
        return VariableSpec(shape=(self._size(math.prod(spec.shape)),), dtype="uint8", rule=spec.rule)

    def encode(self, values: NDArray[Any], spec: VariableSpec, seed: int) -> NDArray[Any]:
        """What travels.

        Args:
            values: The update of one variable, as ``spec`` says, all finite.
            spec: The contract's.
            seed: For codecs that round at random; the same seed gives the same bytes.

        Raises:
            ValueError: A value is not finite.
        """
        if not self.codes(spec):
            return values
        flat = np.ascontiguousarray(values).reshape(-1)
        payload = np.empty(self._size(flat.size), np.uint8)
        self._pack(flat, payload, seed)
        return payload

    def decode(self, payload: NDArray[Any], spec: VariableSpec) -> NDArray[Any]:
        """The update of one variable, as ``spec`` says; ``payload`` itself where it travels as it is.

        Args:
            payload: Of the shape and dtype of ``travelling(spec)``. Its bytes may come from anybody.
            spec: The contract's.

        Raises:
            RejectedUpdate: ``malformed`` where no encoder writes such bytes. Values may still be NaN or infinite.
        """
        if not self.codes(spec):
            return payload
        values = np.empty(math.prod(spec.shape), np.float32)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # what comes of it is looked at later
            self._unpack(payload, values)
        return values.reshape(spec.shape)

    @abstractmethod
    def _size(self, count: int) -> int:
        """Bytes for ``count`` values."""

    @abstractmethod
    def _pack(self, values: Floats, payload: Bytes, seed: int) -> None:
        """Write ``values`` [count] into ``payload``."""

    @abstractmethod
    def _unpack(self, payload: Bytes, values: Floats) -> None:
        """Write what ``payload`` says into ``values`` [count]."""


def largest(values: Floats) -> float:
    """The largest magnitude; raises ValueError where a value is not finite."""
    most = max((float(np.abs(values[i : i + CHUNK]).max()) for i in range(0, values.size, CHUNK)), default=0.0)
    if not math.isfinite(most):
        raise ValueError("expected finite values")
    return most


def broken(codec: Codec, detail: str) -> NoReturn:
    """Raise RejectedUpdate ``malformed``."""
    raise RejectedUpdate("malformed", f"{codec.name}: {detail}")
