"""Recency: an example weighs the less in a site's loss the older it is.

With the times t of a site's training examples and the half-life h, an example's weight is::

    w(t) = 2^(-(t_newest - t) / h) / mean of the same over the site's training examples

Only differences of times matter, so no clock is read, and whoever is late with a round has the same weights. The mean
of the weights is 1: the size of the site's steps, and what it counts for in the average, stay as they are. Weights that
the data bring along are multiplied by these. Examples that a site replays have no part in it; they are old on purpose.

Exponential weights by age are those of R. Klinkenberg: Learning Drifting Concepts: Example Selection vs. Example
Weighting. Intelligent Data Analysis 8(3), 2004, https://doi.org/10.3233/IDA-2004-8305; the gradual forgetting they
stand for goes back to I. Koychev: Gradual Forgetting for Adaptation to Concept Drift. ECAI Workshop on Current Issues
in Spatio-Temporal Reasoning, 2000. Neither scales them to a mean of 1.
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from .objective import LocalObjective, ObjectiveSettings, Plain

Floats = NDArray[np.float64]
DAY_S = 86_400.0


def weights(time: NDArray[Any], half_life_days: float) -> Floats:
    """The weight of each example, float64 [n], their mean 1.

    Args:
        time: Seconds, [n], at least one.
        half_life_days: Age at which an example weighs half of the newest.
    """
    age = (np.max(time) - time.astype(np.float64)) / DAY_S
    weight: Floats = np.exp2(-age / half_life_days)
    scaled: Floats = weight / weight.mean()
    return scaled


class Recency(ObjectiveSettings):
    """Settings of recency; sites apply it to their data (``weights``), the step itself is plain."""

    name: ClassVar[str] = "recency"
    half_life_days: float = Field(gt=0, description="age in days at which an example weighs half of the newest")

    def build(self) -> LocalObjective:
        """Nothing in a step."""
        return Plain()
