"""Which of a site's examples are reference, and which are recent."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.checks import WINDOWS

Mask = NDArray[Any]  # of bool


def windows(time: NDArray[Any] | None, since: float | None, count: int) -> dict[str, Mask]:
    """Which of ``count`` rows belong to each of ``fedretrain.checks.WINDOWS``, bool [count].

    Args:
        time: Seconds since 1970 UTC [count], NaN where nobody knows; or None. What has no time is recent.
        since: From when on examples are recent; None: all are.
        count: Rows.
    """
    before = np.zeros(count, bool) if time is None or since is None else time < since
    return dict(zip(WINDOWS, (before, ~before), strict=True))
