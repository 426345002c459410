"""Sliding window: a site trains on its newest examples alone, as many as were made in some days, or so many.

Of a site's training examples with the times t these stay::

    days:      t > end - days, and t <= end      end is ``until``, or the time of the site's newest training example
    examples:  the newest so many; of several at the same time the last ones in the file

Both together: what both let through. A site always keeps its newest example, unless ``until`` is before it; what is
outside of the window still is what the site validates on.

G. Widmer, M. Kubat: Learning in the Presence of Concept Drift and Hidden Contexts. Machine Learning 23, 1996,
https://doi.org/10.1007/BF00116900. Their window grows and shrinks with what the model gets wrong; this one has a size.
"""

from datetime import datetime
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from fedretrain.tomlfile import in_utc

from .objective import LocalObjective, ObjectiveSettings, Plain
from .recency import DAY_S


def inside(
    time: NDArray[Any], days: float | None = None, examples: int | None = None, until: float | None = None
) -> NDArray[np.bool_]:
    """Which examples are in the window, bool [n].

    Args:
        time: Seconds, [n], at least one.
        days: Length of the window; None for any.
        examples: The most that are in it; None for any number.
        until: Its end in seconds; None for the newest example.
    """
    end = np.max(time) if until is None else until
    found = time <= end
    if days is not None:
        found &= time > end - days * DAY_S
    if examples is not None:
        rows = np.flatnonzero(found)
        newest = rows[np.argsort(time[rows], kind="stable")][-examples:]
        found = np.zeros(len(time), bool)
        found[newest] = True
    return found


class Window(ObjectiveSettings):
    """Settings of a sliding window; sites apply it to their data (``inside``), the step itself is plain."""

    name: ClassVar[str] = "window"
    days: float | None = Field(None, gt=0, description="length of the window in days")
    examples: int | None = Field(None, ge=1, description="the most examples of a site that are in it")
    until: Annotated[datetime, Field(strict=False)] | None = Field(
        None, description="its end, UTC where no zone is given; default: each site's newest example"
    )

    @field_validator("until")
    @classmethod
    def _in_utc(cls, value: datetime | None) -> datetime | None:
        return None if value is None else in_utc(value)

    @model_validator(mode="after")
    def _has_a_size(self) -> Self:
        if self.days is None and self.examples is None:
            raise ValueError("expected days, examples, or both, got neither; the window would hold everything")
        return self

    def build(self) -> LocalObjective:
        """Nothing in a step."""
        return Plain()
