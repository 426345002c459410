"""Which local objectives may stand together, with which strategy and in which mode; the others are refused by name.

What is in neither table composes: penalties add up, changed inputs go from one objective to the next, and so do
gradients (``strategies.objective.Composed``). To refuse a combination, add a line with its reason.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from fedretrain.errors import ConfigurationError
from fedretrain.job import NamedConfig

KEY = "objectives"

_SAME_INPUTS = "each of them chooses the inputs of a step; take one"

_NOT_COMMON = "it is summed over sites how much a value matters, and a layer that stays at a site has none in common"
_NOT_FRESH = "the run starts from fresh weights, and layers that stay at the sites would start from the incumbent's"
_NO_PLACE = "members are put together into one model, in which what a site keeps for itself has no place"

PAIRS: dict[tuple[str, str], str] = {
    ("fedprox", "proximal"): "they are the same term; set strategy.mu",
    ("fgsm", "pgd"): _SAME_INPUTS,
    ("ewc", "posterior"): "both hold what the model in use knew by its Fisher information; take one",
    ("ditto", "proximal"): "a site's own model has that term; set strategy.strength",
    ("reptile", "perfedavg"): "both learn a start that adapts quickly, Reptile from whole updates; take one",
    ("scaffold", "proximal"): (
        "SCAFFOLD takes what a site changed as the sum of its gradients, and the proximal term would be in it; take one"
    ),
    ("scaffold", "perfedavg"): (
        "SCAFFOLD's control variates are mean gradients at the model, those of per-FedAvg are taken beside it"
    ),
    **{(own, other): _NOT_COMMON for own in ("fedper", "fedbn") for other in ("ewc", "posterior")},
}
"""Why two of a run's strategy and objectives cannot stand together."""

MODES: dict[tuple[str, str], str] = {
    ("window", "replay"): "the window leaves out the old examples that replay brings back; take one of them",
    ("l2sp", "full"): "the run starts from fresh weights, which are nowhere near the incumbent's values",
    ("ewc", "full"): "the run starts from fresh weights, which are nowhere near the incumbent's values",
    ("posterior", "full"): "the run starts from fresh weights, which are nowhere near the incumbent's values",
    ("posterior", "transfer"): "the base model's head is fresh, so nothing is known about it",
    ("posterior", "extend"): "what is known about the old label space says nothing about the values of the wanted one",
    ("distillation", "transfer"): "the base model's head is fresh, so its predictions teach nothing",
    ("ewc", "transfer"): "the base model's head is fresh, so its loss says nothing about what was important",
    **dict.fromkeys([("fedper", "full"), ("fedbn", "full")], _NOT_FRESH),
    **dict.fromkeys([("fedper", "ensemble"), ("fedbn", "ensemble"), ("ditto", "ensemble")], _NO_PLACE),
    ("posterior", "ensemble"): "a posterior is of one model, and the next run may train another member",
}
"""Why an objective or strategy has no meaning in a mode."""

STAGES: dict[str, str] = {
    "scaffold": "its control variates are gradients by one learning rate, of variables that all train all the time",
}
"""Why a strategy or objective cannot stand beside ``train.stages``."""


def own_settings(config: NamedConfig) -> dict[str, Any]:
    """The settings of the strategy itself, without its objectives."""
    return {key: value for key, value in config.settings.items() if key != KEY}


def objective_configs(config: NamedConfig) -> tuple[NamedConfig, ...]:
    """The objectives that ``[strategy]`` names, in order; one without settings may be a name alone.

    Raises:
        ConfigurationError: It is no list of names and tables, or names one twice.
    """
    listed = config.settings.get(KEY, [])
    if not isinstance(listed, list | tuple):
        raise ConfigurationError(f'strategy.{KEY}: expected a list such as [{{ name = "l2sp" }}], got {listed!r}')
    found: list[NamedConfig] = []
    for position, one in enumerate(listed):
        try:
            found.append(NamedConfig.model_validate({"name": one} if isinstance(one, str) else one))
        except ValidationError:
            raise ConfigurationError(
                f"strategy.{KEY}[{position}]: expected a table with the objective's name and settings, got {one!r}"
            ) from None
        if found[-1].name in {other.name for other in found[:-1]}:
            raise ConfigurationError(f"strategy.{KEY}[{position}]: '{found[-1].name}' is named twice; keep one of them")
    return tuple(found)


def check_pairs(names: Sequence[str]) -> None:
    """Refuse what cannot stand together; ``names`` is the strategy's and its objectives'. Raises ConfigurationError."""
    for (one, other), reason in PAIRS.items():
        if one in names and other in names:
            raise ConfigurationError(f"strategy.{KEY}: '{one}' and '{other}' cannot stand together: {reason}")


def check_stages(config: NamedConfig) -> None:
    """Refuse what cannot be trained in stages; raises ConfigurationError."""
    for name in [config.name, *(objective.name for objective in objective_configs(config))]:
        if name in STAGES:
            raise ConfigurationError(f"train.stages: '{name}' cannot be trained in stages: {STAGES[name]}")


def check_mode(config: NamedConfig, mode: str) -> None:
    """Refuse a strategy or an objective that has no meaning in the job's mode; raises ConfigurationError."""
    objectives = [(KEY, objective.name) for objective in objective_configs(config)]
    for key, name in [("name", config.name), *objectives]:
        if (name, mode) in MODES:
            raise ConfigurationError(
                f"strategy.{key}: '{name}' has no meaning with train.mode = '{mode}': {MODES[name, mode]}"
            )
