"""From ``[messages] codec`` in the job to the codec itself."""

import difflib
from typing import Any

from pydantic import ValidationError

from fedretrain.errors import ConfigurationError
from fedretrain.job import NamedConfig

from .base import Codec
from .float16 import Float16
from .float32 import Float32
from .int8 import Int8
from .topk import TopK

CODECS: dict[str, type[Codec]] = {c.name: c for c in (Float32, Float16, Int8, TopK)}


def make_codec(config: NamedConfig) -> Codec:
    """The codec of this name, with its settings.

    Raises:
        ConfigurationError: Unknown name or setting, or a setting of the wrong type or outside its range.
    """
    kind = CODECS.get(config.name)
    if kind is None:
        near = difflib.get_close_matches(config.name, sorted(CODECS), n=1, cutoff=0.0)
        raise ConfigurationError(f"unknown codec '{config.name}'; did you mean '{near[0]}'? Valid: {', '.join(CODECS)}")
    try:
        return kind(**config.settings)
    except ValidationError as error:
        raise ConfigurationError("; ".join(_explain(kind, e) for e in error.errors())) from None


def _explain(kind: type[Codec], error: Any) -> str:
    """One line for one pydantic error: setting, expected, got."""
    key, known = str(error["loc"][0]), kind.model_fields
    if key not in known:
        has = f"it has {', '.join(known)}" if known else "it has none"
        return f"{key}: unknown setting of the codec {kind.name}; {has}"
    expected = error["msg"].removeprefix("Input should be ")
    return f"{key}: expected {expected} ({known[key].description}), got {error['input']!r}"
