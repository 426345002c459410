"""float32: every variable as the contract has it. Error: none."""

from typing import ClassVar

import numpy as np

from .base import Bytes, Codec, Floats


class Float32(Codec):
    """Settings: none."""

    name: ClassVar[str] = "float32"

    def _size(self, count: int) -> int:
        return 4 * count  # never fewer bytes: nothing is coded

    def _pack(self, values: Floats, payload: Bytes, seed: int) -> None:  # noqa: ARG002 - nothing is drawn
        payload[:] = values.view(np.uint8)

    def _unpack(self, payload: Bytes, values: Floats) -> None:
        values[:] = payload.view("<f4")
