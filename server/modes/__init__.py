"""The ways to retrain, by the name that ``train.mode`` gives them; one file each.

A mode that stands here may be named by a job; ``mode_of`` refuses all others.
"""

from fedretrain.errors import ConfigurationError

from .base import Beginning, Candidate, InUse, Mode, whole
from .ensemble import Ensemble
from .extend import Extend
from .full import Full
from .transfer import Transfer

__all__ = ["MODES", "Beginning", "Candidate", "InUse", "Mode", "mode_of", "whole"]

MODES: dict[str, Mode] = {
    "continue": Mode(),
    "ensemble": Ensemble(),
    "extend": Extend(),
    "full": Full(),
    "incremental": Mode(),  # sites choose what they train on (``client.selection``)
    "online": Mode(),  # each of its segments goes on from the model in use (``server.online``)
    "replay": Mode(),  # as "incremental"
    "transfer": Transfer(),
}


def mode_of(name: str) -> Mode:
    """The mode of that name.

    Raises:
        ConfigurationError: There is none; names those there are.
    """
    if name not in MODES:
        raise ConfigurationError(f"train.mode: expected one of {', '.join(sorted(MODES))}, got '{name}'")
    return MODES[name]
