"""What the median and the trimmed mean share: sites sorted coordinate by coordinate, in float64."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.errors import RejectedUpdate, RunFailed


def sorted_sites(stack: NDArray[Any]) -> NDArray[np.float64]:
    """``stack`` [sites, k] with every column ascending, so that results do not depend on the order of sites.

    Raises:
        RejectedUpdate: ``not-finite``; NaN has no place in an order.
    """
    wide = stack.astype(np.float64)
    if not np.isfinite(wide).all():
        raise RejectedUpdate("not-finite", "coordinate-wise aggregation: expected finite values, got NaN or infinity")
    wide += 0.0  # -0.0 and 0.0 compare equal, and would keep the order they came in
    wide.sort(axis=0)
    return wide


def rounded(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """``values`` in ``dtype``; raises RunFailed where the sum of float64 numbers near the limit has overflowed."""
    if not np.isfinite(values).all():
        raise RunFailed("coordinate-wise aggregation: expected a finite mean, got an overflow of float64")
    return values.astype(dtype)
