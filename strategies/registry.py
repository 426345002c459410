"""From ``[strategy]`` in the job to the algorithm itself, with the objectives that stand beside it.

``make`` is for the server. A site calls ``local_objective`` alone: it imports nothing a request names, so that a server
cannot make a site load a module.
"""

import dataclasses
import difflib
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from fedretrain.errors import ConfigurationError
from fedretrain.job import Job, NamedConfig

from .adversarial import FGSM, PGD
from .base import Settings, Strategy
from .composition import KEY, check_mode, check_pairs, check_stages, objective_configs, own_settings
from .distillation import Distillation
from .ditto import OWN, Ditto, own_objective
from .ewc import EWC
from .fedadagrad import FedAdagrad
from .fedadam import FedAdam
from .fedavg import FedAvg
from .fedavgm import FedAvgM
from .fedprox import FedProx, ProximalSettings, own_mu, proximal
from .fedyogi import FedYogi
from .krum import Krum
from .l2sp import L2SP
from .median import Median
from .objective import LocalObjective, ObjectiveSettings, composed
from .perfedavg import PerFedAvg
from .personal import FedBN, FedPer
from .posterior import Posterior
from .recency import Recency
from .reptile import Reptile
from .scaffold import Scaffold
from .trimmed_mean import TrimmedMeanSettings
from .window import Window

if TYPE_CHECKING:
    from .flower import FlowerStrategy

BUILT_IN: dict[str, type[Settings]] = {
    c.name: c
    for c in (
        *(FedAvg, FedProx, FedAvgM, FedAdagrad, FedAdam, FedYogi, Reptile, Scaffold, FedPer, FedBN, Ditto),
        *(Krum, Median, TrimmedMeanSettings),
    )
}
OBJECTIVES: dict[str, type[ObjectiveSettings]] = {
    c.name: c for c in (ProximalSettings, L2SP, EWC, Posterior, Distillation, FGSM, PGD, PerFedAvg, Recency, Window)
}


def make(config: NamedConfig, seed: int = 0) -> "Strategy | FlowerStrategy":
    """The algorithm a job names, with its settings; ``module:Class`` is a strategy written for Flower.

    ``seed`` is the job's, for a Flower strategy that samples sites.

    Raises:
        ConfigurationError: Unknown name or setting, a setting of the wrong type or outside its range, or objectives
            that cannot stand together.
    """
    local = local_objective(config)
    if ":" not in config.name:
        return dataclasses.replace(_built_in(config), local=local)
    from .flower import FlowerStrategy

    return FlowerStrategy(config, local, seed)


def local_objective(config: NamedConfig) -> LocalObjective:
    """What a site minimises under a job's strategy and objectives. Imports no module that ``config`` names.

    A strategy written for Flower trains plainly, or with FedProx' proximal term where ``proximal_mu`` is set.

    Raises:
        ConfigurationError: As ``make``, for what concerns the site.
    """
    own = _own_objective(config)
    objectives = objective_settings(config)
    check_pairs([config.name, *(objective.name for objective in objectives)])
    return composed([own, *(objective.build() for objective in objectives)])


def _own_objective(config: NamedConfig) -> LocalObjective:
    """The strategy's own, without the objectives beside it."""
    if config.name == OWN:
        return own_objective(config)
    return _built_in(config).local if ":" not in config.name else proximal(own_mu(config))


def objective_settings(config: NamedConfig) -> tuple[ObjectiveSettings, ...]:
    """The objectives that ``[strategy]`` names, in order; raises ConfigurationError for what is wrong with one."""
    found = []
    for position, one in enumerate(objective_configs(config)):
        where = f"strategy.{KEY}[{position}]"
        if one.name not in OBJECTIVES:
            near = difflib.get_close_matches(one.name, sorted(OBJECTIVES), n=1, cutoff=0.0)
            raise ConfigurationError(
                f"{where}: unknown objective '{one.name}'; did you mean '{near[0]}'? "
                f"Valid here: {', '.join(OBJECTIVES)}"
            )
        found.append(_checked(OBJECTIVES[one.name], one.settings, where))
    return tuple(found)


def check_job(job: Job) -> None:
    """Refuse a strategy, objectives, mode and stages that do not go together, as far as the job alone says it.

    Loads neither TensorFlow nor a module that the job names.

    Raises:
        ConfigurationError: As ``check_objectives`` and ``composition.check_stages``.
    """
    check_objectives(job.strategy, job.train.mode)
    if job.train.stages:
        check_stages(job.strategy)


def check_objectives(config: NamedConfig, mode: str) -> None:
    """Refuse objectives that cannot stand together or have no meaning in a mode; raises ConfigurationError."""
    local_objective(config)
    check_mode(config, mode)
    for settings in objective_settings(config):
        settings.check_mode(mode)


def _built_in(config: NamedConfig) -> Strategy:
    if config.name not in BUILT_IN:
        near = difflib.get_close_matches(config.name, sorted(BUILT_IN), n=1, cutoff=0.0)
        raise ConfigurationError(
            f"strategy.name: unknown strategy '{config.name}'; did you mean '{near[0]}'? "
            f"Valid here: {', '.join(BUILT_IN)}, or module:Class for a Flower strategy of your own"
        )
    settings: Settings = _checked(BUILT_IN[config.name], own_settings(config), "strategy")
    return settings.build()


def _checked(kind: Any, settings: dict[str, Any], where: str) -> Any:
    """An instance of ``kind``; raises ConfigurationError with a line for each mistake."""
    try:
        return kind(**settings)
    except ValidationError as error:
        lines = [_explain(kind, one, where) for one in error.errors()]
        raise ConfigurationError("\n".join(lines)) from None


def _explain(settings: type[BaseModel], error: Any, where: str) -> str:
    """One line for one pydantic error: key, expected, got, nearest valid key."""
    known = settings.model_fields
    if not error["loc"]:
        return f"{where}: {error['msg'].removeprefix('Value error, ')}"
    key = str(error["loc"][0])
    if key not in known:
        near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.0)
        hint = f"did you mean '{near[0]}'? Valid here: {', '.join(known)}" if near else "it has none"
        return f"{where}.{key}: unknown setting of {settings.name}; {hint}"  # type: ignore[attr-defined]
    if error["type"] == "missing":
        return f"{where}.{key}: expected a value ({known[key].description}), got none"
    expected = "a number" if error["type"] == "float_type" else error["msg"].removeprefix("Input should be ")
    return f"{where}.{key}: expected {expected} ({known[key].description}), got {error['input']!r}"
