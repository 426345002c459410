"""Whether what a site sends beside its variables can come of its training; else one site could bend all others' steps.

SCAFFOLD: a site's control variate changes by its mean gradient less the server's control variate c, and its update is
K >= 1 steps of rate η along such gradients, so that ‖Δc_i + c‖ = ‖Δy_i‖ / (K η). Allowed is ten times what one step
would make of the update's norm, which has its own bound (``server.norms``): a codec may leave out much of an update.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from fedretrain.contract import Contract
from fedretrain.errors import RejectedUpdate
from fedretrain.job import NamedConfig, TrainSection
from fedretrain.travel import apart
from strategies.base import Arrays
from strategies.scaffold import CONTROL, Scaffold, learning_rate

from .norms import NORM_FACTOR, l2_norm

_ROUNDING = 1e-5  # of the control variate's norm, which is taken away and added again in float32


@dataclass(frozen=True)
class Beside:
    """The rule for one round.

    Args:
        control: The server's control variate, as sent.
        rate: η.
    """

    control: Arrays
    rate: float

    def check(self, update: Sequence[NDArray[Any]], norm: float) -> None:
        """Raise RejectedUpdate ``norm`` where what stands behind an update, whose own norm this is, is too large."""
        changes = update[len(update) - len(self.control) :]
        size = l2_norm([change + c for change, c in zip(changes, self.control, strict=True)])
        limit = NORM_FACTOR * norm / self.rate + _ROUNDING * l2_norm(self.control)
        if not size <= limit:
            raise RejectedUpdate("norm", f"control variate: expected an L2 norm of at most {limit:.6g}, got {size:.6g}")


def beside(contract: Contract, strategy: NamedConfig, train: TrainSection, params: Arrays) -> Beside | None:
    """The rule of a round that sends ``params``; None where nothing but variables travels."""
    if strategy.name != Scaffold.name:
        return None
    _, auxiliaries = apart(contract, strategy, params)
    return Beside(auxiliaries[CONTROL], learning_rate(train))
