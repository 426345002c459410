"""What a site computes for the server beside its updates (``fedretrain.sums``), one file per sum.

Invariants:

- What leaves is a mean over at least ``MIN_COUNT`` examples, finite, in the form that name and contract give.
- The same job, data, site and values have the same bits, whatever the trainer did before.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from client.pace import Pace
from client.sampling import MIN_COUNT, Indices
from client.selection import ONLY_NEW, Parts, parted
from fedretrain.checks import SUM as CHECK
from fedretrain.dataset import Dataset
from fedretrain.errors import ConfigurationError, DeclinedRequest
from fedretrain.job import NamedConfig
from fedretrain.messages import PrepareRequest
from fedretrain.sums import settings_of, sum_specs

if TYPE_CHECKING:
    from client.resident import Examples
    from client.step import Learner

log = logging.getLogger(__name__)

Arrays = list[NDArray[Any]]


@dataclass(frozen=True)
class Total:
    """A site's answer: means over ``examples`` examples, in the order of ``fedretrain.sums.sum_specs``."""

    arrays: Arrays
    examples: int


@dataclass(frozen=True)
class Task:
    """What a sum is computed of.

    Attributes:
        learner: The model at the values the server sent, as an update would start from them.
        examples: The site's, on the device or streamed.
        data: The same as arrays.
        request: What the run's sites were asked to prepare.
        site: The site's name.
        pace: Looks after the time the site's policy allows.
    """

    learner: "Learner"
    examples: "Examples"
    data: Dataset
    request: PrepareRequest
    site: str
    pace: Pace

    @property
    def parts(self) -> Parts:
        """Rows that are old, new, and validated on; all that are trained on are new where nobody knows."""
        return parted(self.data, self.request.train, self.site)

    @property
    def trained(self) -> Indices:
        """Rows that the run trains on, whatever it weighs or draws beside them."""
        parts = self.parts
        return parts.new if self.request.train.mode in ONLY_NEW else parts.mine


def check(what: NamedConfig, request: PrepareRequest) -> None:
    """Whether the run asks for this sum and it can be asked.

    Raises:
        DeclinedRequest: ``request-invalid``.
    """
    if request.check != (what.name == CHECK):
        raise DeclinedRequest("request-invalid", "sum", f'"{CHECK}" of a run that is a check, and no other')
    if what.name != "evaluation" and what.name not in request.sums:
        raise DeclinedRequest("request-invalid", "sum", "one of those the run was prepared with")
    try:
        sum_specs(what, request.contract)
    except ConfigurationError as error:
        log.warning("run %s: %s", request.run, error)
        raise DeclinedRequest("request-invalid", "sum", "a sum this version knows, for this model") from None


def compute(what: NamedConfig, task: Task) -> Total:
    """The site's part of a sum that passed ``check``.

    Raises:
        DeclinedRequest: ``data-too-few`` where there are too few examples for it, ``training-diverged`` where it is
            not finite, ``policy`` where it takes too long, ``request-invalid`` where the model has no such sum.
    """
    total = _kinds()[what.name](task, settings_of(what))
    if not all(np.isfinite(array).all() for array in total.arrays):
        raise DeclinedRequest("training-diverged", f"sum {what.name}", "finite values")
    return total


def enough(rows: Indices, what: str) -> Indices:
    """The rows, int32; raises DeclinedRequest where they are fewer than anything may be said about."""
    if len(rows) < MIN_COUNT:
        raise DeclinedRequest("data-too-few", what, f"at least {MIN_COUNT}")
    return rows.astype(np.int32)


def _kinds() -> dict[str, Callable[[Task, Any], Total]]:
    from .evaluation import evaluation
    from .fisher import fisher
    from .gauss_newton import gauss_newton

    return {"fisher": fisher, "gauss-newton": gauss_newton, "evaluation": evaluation}
