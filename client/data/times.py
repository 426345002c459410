"""When examples were made, as sites write it: ISO 8601, dates, or seconds since 1970. UTC where no zone is given."""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.dataset import as_times
from fedretrain.errors import DataMismatch

Array = NDArray[Any]


def seconds(values: Sequence[Any] | Array, column: str) -> Array:
    """float64 [n], seconds since 1970 UTC; an empty cell is NaN.

    Raises:
        DataMismatch: ``data-dtype`` for the first value that is no time, without the value.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "iufM":
        return as_times(values)
    try:
        return np.fromiter(map(_second, values), np.float64, len(values))
    except (TypeError, ValueError, OverflowError):
        expected = "times such as 2026-06-01T12:30:00Z or 2026-06-01, or seconds since 1970"
        raise DataMismatch("data-dtype", column, expected) from None


def _second(value: Any) -> float:
    if isinstance(value, bytes):
        value = value.decode()
    if value is None or (isinstance(value, str) and not value.strip()):
        return np.nan
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            value = datetime.fromisoformat(value.strip())
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return float(value)
