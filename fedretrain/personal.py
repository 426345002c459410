"""Which variables a strategy keeps at the sites, each of which then has its own values of them.

Invariants: what is personal is settled by model and strategy alone, so that server and sites find the same; a variable
that is frozen, or no float, is never personal; something is always left to share.

Two strategies have personal variables (``strategies.personal``): ``fedper`` those of the layers it names, ``fedbn``
those of every BatchNormalization layer that trains, its moving statistics included.
"""

from typing import TYPE_CHECKING, Any

from .architecture import all_layers, matching_layers
from .errors import ConfigurationError
from .job import NamedConfig

if TYPE_CHECKING:
    import keras


def personal_variables(model: "keras.Model", strategy: NamedConfig | None) -> frozenset[int]:
    """The ``id`` of every variable in a layer that stays at the sites, whatever its rule would be otherwise.

    Args:
        model: Frozen by the job's patterns.
        strategy: The job's; None, or one without personal layers, for none.

    Raises:
        ConfigurationError: A pattern fits no layer, or the strategy finds none that trains.
    """
    if strategy is None or strategy.name not in _CHOICES:
        return frozenset()
    layers = [layer for layer in _CHOICES[strategy.name](model, strategy) if layer.trainable and layer.variables]
    if not layers:
        raise ConfigurationError(
            f"strategy {strategy.name}: expected {_WANTED[strategy.name]}, got none of these in '{model.name}'; "
            "without personal layers it would be fedavg"
        )
    return frozenset(id(variable) for layer in layers for variable in layer.variables)


def check_something_shared(rules: list[str], strategy: NamedConfig | None) -> None:
    """Raises ConfigurationError where every variable that trains is personal."""
    if "personal" in rules and "train" not in rules:
        raise ConfigurationError(
            f"strategy {strategy.name if strategy else ''}: expected some variables that train to be shared by the "
            "sites, got none: all are personal; name fewer layers"
        )


def _named(model: "keras.Model", strategy: NamedConfig) -> list[Any]:
    patterns = strategy.settings.get("layers", ())
    if not isinstance(patterns, list | tuple) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ConfigurationError(f"strategy.layers: expected patterns over layers, got {patterns!r}")
    return [layer for pattern in patterns for _, layer in matching_layers(model, pattern, "strategy.layers")]


def _batch_norms(model: "keras.Model", strategy: NamedConfig) -> list[Any]:  # noqa: ARG001 - as ``_named``
    import keras

    return [layer for layer in all_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]


_CHOICES = {"fedper": _named, "fedbn": _batch_norms}
_WANTED = {
    "fedper": "patterns in strategy.layers over layers that train, to be kept at the sites",
    "fedbn": "BatchNormalization layers that are not frozen",
}
