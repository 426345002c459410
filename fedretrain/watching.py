"""The ``[watch]`` table of a job: what sites count between retrainings, and when a change counts as drift."""

from itertools import pairwise

from pydantic import Field, field_validator

from .detectors import check_detector
from .errors import ConfigurationError
from .jobtables import Name, NamedConfig
from .tomlfile import Section

SECTIONS = (
    "histogram",
    "labels",
    "predictions",
    "confusion",
    "confidence",
    "calibration",
    "quality",
    "age",
    "business",
    "stream",
)
"""Parts of a check, each of which a site's policy can withhold by itself."""
UNKNOWN = "unknown"
"""Stands for every label that neither the contract nor the job names."""


class WatchSection(Section):
    """How a job's data and model are watched between retrainings; the server alone looks at it."""

    bins: int = Field(10, ge=4, le=50, description="cells of a histogram, where quantiles make them")
    projections: int = Field(8, ge=0, le=32, description="fixed random directions of the penultimate layer")
    edges: dict[str, tuple[float, ...]] = Field({}, description="inner edges of a histogram's cells, by feature")
    statistics: tuple[str, ...] = Field(SECTIONS, min_length=1, description=f"which of {', '.join(SECTIONS)}")
    labels: tuple[str, ...] = Field((), description="labels to look for beside the contract's")
    metrics: tuple[Name, ...] = Field((), description="business metrics that sites declare")
    detector: NamedConfig | None = Field(
        NamedConfig(name="page-hinkley"), description='such as { name = "page-hinkley" }, with settings beside the name'
    )
    significance: float = Field(0.01, gt=0, lt=1, description="level of the Benjamini-Hochberg procedure")
    effect: float = Field(0.1, ge=0, description="least effect (PSI) that counts as drift")

    @field_validator("statistics")
    @classmethod
    def _known_sections(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in SECTIONS:
                raise ValueError(f"expected some of {', '.join(SECTIONS)}, got {name!r}")
        return value

    @field_validator("edges")
    @classmethod
    def _ascending(cls, value: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        for name, edges in value.items():
            if not edges or any(left >= right for left, right in pairwise(edges)):
                raise ValueError(f"{name}: expected at least one number, in strictly ascending order, got {edges}")
        return value

    @field_validator("detector")
    @classmethod
    def _known_detector(cls, value: NamedConfig | None) -> NamedConfig | None:
        try:
            if value is not None:
                check_detector(value)
        except ConfigurationError as error:
            raise ValueError(str(error).removeprefix("watch.detector").lstrip(":. ")) from None
        return value

    @field_validator("labels", "metrics")
    @classmethod
    def _different(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value) or UNKNOWN in value:
            raise ValueError(f"expected different names, none of them {UNKNOWN!r}, got {list(value)}")
        return value
