"""Which detectors of change a job may name for the stream of a site's errors, and what settings they take.

``client.streaming`` runs them. "page-hinkley" is built in; the others are those of river (https://riverml.xyz), which a
site that is to run them installs with the extra ``river``. A job's table::

    [watch]
    detector = { name = "page-hinkley", delta = 0.025, threshold = 10 }
"""

import difflib
import math
from typing import Any

from pydantic import Field, ValidationError

from .errors import ConfigurationError
from .jobtables import NamedConfig
from .tomlfile import Section, said

PAGE_HINKLEY = "page-hinkley"
DEFAULT = NamedConfig(name=PAGE_HINKLEY)
RIVER = {"adwin": False, "kswin": False, "ddm": True, "eddm": True, "hddm-a": True, "hddm-w": True}
"""River's detectors by name, and whether they take errors alone: 0 or 1, not one minus the confidence."""
_HDDM = ("drift_confidence", "warning_confidence", "two_sided_test")
SETTINGS = {
    "adwin": ("delta", "clock", "max_buckets", "min_window_length", "grace_period"),
    "kswin": ("alpha", "window_size", "stat_size", "seed"),
    "ddm": ("warm_start", "warning_threshold", "drift_threshold"),
    "eddm": ("warm_start", "alpha", "beta"),
    "hddm-a": _HDDM,
    "hddm-w": (*_HDDM, "lambda_val"),
}
"""Their settings that are numbers, of the least river that the extra ``river`` takes."""


class PageHinkley(Section):
    """Settings of the built-in detector; ``client.streaming`` says what they do and what they cost."""

    delta: float = Field(0.025, gt=0, lt=1, description="rise of the mean that is let pass; twice it is found soonest")
    threshold: float = Field(10.0, gt=0, le=1000, description="evidence an event takes, in natural logarithms of odds")
    forgetting: float = Field(1.0, gt=0, le=1, description="weight that the sum keeps with each example; 1: all of it")
    minimum: int = Field(30, ge=2, le=1_000_000, description="examples before the first event")


def check_detector(config: NamedConfig) -> None:
    """Refuse a detector that no site could run.

    Of river's the names are known here, and that they are numbers; their ranges are river's own, where it runs.

    Raises:
        ConfigurationError: Unknown name or setting, or a setting of the wrong type or outside its range.
    """
    if config.name == PAGE_HINKLEY:
        page_hinkley(config)
        return
    if config.name not in RIVER:
        valid = [PAGE_HINKLEY, *RIVER]
        near = difflib.get_close_matches(config.name, valid, n=1, cutoff=0.0)[0]
        raise ConfigurationError(
            f"watch.detector: there is no '{config.name}'; did you mean '{near}'? Valid: {', '.join(valid)}"
        )
    for key, value in config.settings.items():
        if key not in (known := SETTINGS[config.name]):
            raise ConfigurationError(
                f"watch.detector.{key}: unknown setting of {config.name}; it has {', '.join(known)}"
            )
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigurationError(f"watch.detector.{key}: expected a number, got {value!r}")


def page_hinkley(config: NamedConfig) -> PageHinkley:
    """The settings, complete.

    Raises:
        ConfigurationError: A setting that there is not, or outside its range.
    """
    try:
        return PageHinkley(**config.settings)
    except ValidationError as error:
        raise ConfigurationError("; ".join(_explain(e) for e in error.errors())) from None


def _explain(error: Any) -> str:
    """One line for one of pydantic's errors: setting, expected, got."""
    key, known = str(error["loc"][0]), PageHinkley.model_fields
    if key not in known:
        return f"watch.detector.{key}: unknown setting of {PAGE_HINKLEY}; it has {', '.join(known)}"
    expected = said(error).removeprefix("Input should be ")
    return f"watch.detector.{key}: expected {expected} ({known[key].description}), got {error['input']!r}"
