"""float32: every variable as the contract has it. Error: none."""

from typing import ClassVar

from .base import Bytes, Codec, Floats


class Float32(Codec):
    """Settings: none."""

    name: ClassVar[str] = "float32"

    def _size(self, count: int) -> int:
        return 4 * count  # never fewer bytes: nothing is coded

    def _pack(self, values: Floats, payload: Bytes, seed: int) -> None:
        raise NotImplementedError

    def _unpack(self, payload: Bytes, values: Floats) -> None:
        raise NotImplementedError
