"""From ``module:Class`` and settings to an instance of a Flower strategy, or one line saying why not."""

import difflib
import inspect
from collections.abc import Iterable

from flwr.serverapp.strategy import Strategy

from fedretrain.allowlist import import_named
from fedretrain.errors import ConfigurationError
from fedretrain.job import NamedConfig

from .composition import own_settings


def instantiate(config: NamedConfig) -> Strategy:
    """The named class with its own settings as arguments, objectives apart. Imports the module: for the server alone.

    Raises:
        ConfigurationError: No such module or class, no subclass of Flower's Strategy, or arguments it refuses.
    """
    cls = _find(config.name)
    settings = own_settings(config)
    _check_arguments(cls, config.name, settings)
    try:
        instance: Strategy = cls(**settings)
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason given"
        raise ConfigurationError(
            f"strategy: {config.name} refuses its settings {settings}: {type(error).__name__}: {reason}"
        ) from error
    return instance


def _find(name: str) -> type[Strategy]:
    module_name, _, class_name = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), class_name]):
        raise ConfigurationError(f"strategy.name: expected module:Class, got '{name}'")
    module = import_named(module_name, "strategy.name")
    found = {n: c for n, c in vars(module).items() if inspect.isclass(c) and issubclass(c, Strategy)}
    if class_name not in found:
        near = difflib.get_close_matches(class_name, sorted(found), n=1, cutoff=0.0)
        hint = f"; did you mean '{module_name}:{near[0]}'?" if near else ""
        raise ConfigurationError(
            f"strategy.name: expected a subclass of flwr.serverapp.strategy.Strategy in {module_name}, "
            f"got '{class_name}'{hint}"
        )
    return found[class_name]


def _check_arguments(cls: type[Strategy], name: str, settings: Iterable[str]) -> None:
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise ConfigurationError(f"strategy.name: expected a complete strategy, got {name} without {missing}")
    parameters = inspect.signature(cls).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for key in settings:
        if key not in parameters:
            near = difflib.get_close_matches(key, sorted(parameters), n=1, cutoff=0.0)
            hint = f"did you mean '{near[0]}'? Valid here: {', '.join(parameters)}" if near else "it has none"
            raise ConfigurationError(f"strategy.{key}: unknown argument of {name}; {hint}")
