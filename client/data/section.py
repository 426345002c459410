"""The ``[data]`` tables of ``site.toml``, one per format."""

from typing import Literal

from pydantic import Field

from fedretrain.tomlfile import Section


class DataSection(Section):
    """What every format has."""

    format: str
    validation_fraction: float | None = Field(None, ge=0, lt=1, description="share kept for validation")


class NpzData(DataSection):
    """One npz file with the arrays of ``fedretrain.dataset``."""

    format: Literal["npz"]
    path: str


FORMATS: dict[str, type[DataSection]] = {"npz": NpzData}
