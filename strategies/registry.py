"""From ``[strategy]`` in the job to the algorithm itself.

``make`` is for the server. A site calls ``local_objective`` alone: it imports nothing a request names, so that a server
cannot make a site load a module.
"""

import difflib
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fedretrain.errors import ConfigurationError
from fedretrain.job import NamedConfig

from .base import LocalObjective, Plain, Settings, Strategy
from .fedadagrad import FedAdagrad
from .fedadam import FedAdam
from .fedavg import FedAvg
from .fedavgm import FedAvgM
from .fedprox import FedProx, Proximal
from .fedyogi import FedYogi
from .krum import Krum
from .median import Median
from .trimmed_mean import TrimmedMeanSettings

if TYPE_CHECKING:
    from .flower import FlowerStrategy

BUILT_IN: dict[str, type[Settings]] = {
    c.name: c for c in (FedAvg, FedProx, FedAvgM, FedAdagrad, FedAdam, FedYogi, Krum, Median, TrimmedMeanSettings)
}


def make(config: NamedConfig, seed: int = 0) -> "Strategy | FlowerStrategy":
    """The algorithm a job names, with its settings; ``module:Class`` is a strategy written for Flower.

    ``seed`` is the job's, for a Flower strategy that samples sites.

    Raises:
        ConfigurationError: Unknown name or setting, or a setting of the wrong type or outside its range.
    """
    if ":" not in config.name:
        return _built_in(config)
    from .flower import FlowerStrategy

    return FlowerStrategy(config, local_objective(config), seed)


def local_objective(config: NamedConfig) -> LocalObjective:
    """What a site minimises under a job's strategy. Imports no module that ``config`` names.

    A strategy written for Flower trains plainly, or with FedProx' proximal term where ``proximal_mu`` is set.

    Raises:
        ConfigurationError: As ``make``, for what concerns the site.
    """
    if ":" not in config.name:
        return _built_in(config).local
    mu = config.settings.get("proximal_mu", 0.0)
    if isinstance(mu, bool) or not isinstance(mu, int | float) or not 0 <= mu < float("inf"):
        raise ConfigurationError(f"strategy.proximal_mu: expected a number of at least 0, got {mu!r}")
    return Proximal(float(mu)) if mu else Plain()


def _built_in(config: NamedConfig) -> Strategy:
    if config.name not in BUILT_IN:
        near = difflib.get_close_matches(config.name, sorted(BUILT_IN), n=1, cutoff=0.0)
        raise ConfigurationError(
            f"strategy.name: unknown strategy '{config.name}'; did you mean '{near[0]}'? "
            f"Valid here: {', '.join(BUILT_IN)}, or module:Class for a Flower strategy of your own"
        )
    try:
        return BUILT_IN[config.name](**config.settings).build()
    except ValidationError as error:
        lines = [_explain(BUILT_IN[config.name], e) for e in error.errors()]
        raise ConfigurationError("\n".join(lines)) from None


def _explain(settings: type[Settings], error: Any) -> str:
    """One line for one pydantic error: key, expected, got, nearest valid key."""
    key, known = str(error["loc"][0]), settings.model_fields
    if key not in known:
        near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.0)
        hint = f"did you mean '{near[0]}'? Valid here: {', '.join(known)}" if near else "it has none"
        return f"strategy.{key}: unknown setting of {settings.name}; {hint}"
    expected = "a number" if error["type"] == "float_type" else error["msg"].removeprefix("Input should be ")
    return f"strategy.{key}: expected {expected} ({known[key].description}), got {error['input']!r}"
