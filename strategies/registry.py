"""From ``[strategy]`` in the job to the algorithm itself: ``make`` is the only way in."""

import difflib
from collections.abc import Iterable

from pydantic import ValidationError

from fedretrain.errors import ConfigurationError
from fedretrain.job import NamedConfig

from .base import Settings, Strategy
from .fedavg import FedAvg

BUILT_IN: dict[str, type[Settings]] = {c.name: c for c in (FedAvg,)}


def make(config: NamedConfig) -> Strategy:
    """The algorithm a job names, with its settings.

    Raises:
        ConfigurationError: Unknown name or setting, or a setting of the wrong type or outside its range.
    """
    if config.name not in BUILT_IN:
        raise ConfigurationError(f"strategy.name: expected {_nearest(config.name, BUILT_IN)}, got '{config.name}'")
    try:
        return BUILT_IN[config.name](**config.settings).build()
    except ValidationError as error:
        raise ConfigurationError(f"strategy: {error}") from None


def _nearest(word: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.0)
    return f"one of {', '.join(names)} (nearest: '{near[0]}')"
