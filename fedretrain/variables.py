"""Which variables of a model train, and the model made ready to: built, frozen, with its weights.

``freeze`` only sets flags: a model that was compiled before it trains as if nothing were frozen, so compile afterwards.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from .architecture import all_layers, build, matching_layers, named_layers, set_weights
from .contract import CHANGING, VariableSpec
from .errors import ConfigurationError
from .job import NamedConfig
from .personal import check_something_shared, personal_variables

if TYPE_CHECKING:
    import keras

Arrays = list[NDArray[Any]]

_DTYPES = frozenset({"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"})
_FLOATS = frozenset({"float16", "float32", "float64"})


def prepare_model(
    architecture: str, patterns: Sequence[str], allow_modules: Sequence[str], weights: Arrays
) -> "keras.Model":
    """The base model with its weights, frozen by ``patterns`` and not compiled.

    Raises:
        ModelRefused: As ``architecture.build`` and ``set_weights``; also where it has more parameters than ``weights``.
        ConfigurationError: As ``freeze``.
    """
    model = build(architecture, allow_modules, max_parameters=sum(array.size for array in weights))
    freeze(model, patterns)
    set_weights(model, weights)
    return model


def freeze(model: "keras.Model", patterns: Sequence[str], key: str = "model.freeze") -> tuple[str, ...]:
    """Make layers untrainable, with everything inside them.

    Args:
        model: Changed in place; compile it afterwards.
        patterns: Shell patterns over layer paths, part by part: "conv*" is a layer of the model, "outer/conv*" one of
            the model or wrapper "outer" in it.
        key: What the job calls the patterns, for errors.

    Returns:
        The paths that matched, in the model's order.

    Raises:
        ConfigurationError: A pattern matches no layer, or no trainable variable is left.
    """
    frozen = []
    for pattern in patterns:
        for path, layer in matching_layers(model, pattern, key):
            layer.trainable = False
            frozen.append(path)
    if not any(rule == "train" for rule in _rules(model)):
        raise ConfigurationError(
            f"{key}: expected some variables left to train, got none after freezing {list(patterns)} "
            f"in '{model.name}'; freeze fewer layers"
        )
    return tuple(path for path, _ in named_layers(model) if path in frozen)


def variable_specs(model: "keras.Model", strategy: NamedConfig | None = None) -> tuple[VariableSpec, ...]:
    """Shape, dtype and rule of every variable, by position; the rules are in ``fedretrain.contract``.

    Args:
        model: Frozen by the job's patterns.
        strategy: The job's, which may keep some variables at the sites; None where that does not matter.

    Raises:
        ConfigurationError: A variable is neither of floats (16, 32, 64 bits), integers nor booleans, a layer that is
            not frozen carries state from one batch to the next for which there is no rule, or the strategy's personal
            layers are not there or leave nothing to share.
    """
    _check_state(model)
    for variable in model.variables:
        if variable.dtype not in _FLOATS | _DTYPES:
            raise ConfigurationError(
                f"variable '{variable.path}': expected one of {sorted(_FLOATS)} or integers, got {variable.dtype}; "
                "store the model with float32 variables (a mixed precision policy does)"
            )
    personal = personal_variables(model, strategy)
    ids = map(id, model.variables)
    rules = ["personal" if r in CHANGING and i in personal else r for i, r in zip(ids, _rules(model), strict=True)]
    check_something_shared(rules, strategy)
    return tuple(
        VariableSpec.model_validate({"shape": tuple(v.shape), "dtype": v.dtype, "rule": rule})
        for v, rule in zip(model.variables, rules, strict=True)
    )


def _check_state(model: "keras.Model") -> None:
    """Refuse what every site would change in training and nobody would combine."""
    import keras

    for path, layer in named_layers(model):
        stateful = getattr(layer, "stateful", False) or isinstance(layer, keras.layers.SpectralNormalization)
        if stateful and layer.trainable:
            raise ConfigurationError(
                f"layer '{path}': {type(layer).__name__} changes its own state from batch to batch, and there is no "
                "rule how sites' states are combined; freeze it, or use a model without it"
            )


def _rules(model: "keras.Model") -> list[Any]:
    """One rule for each variable, from the layers that hold them."""
    import keras

    layers = all_layers(model)
    seeds = {id(generator.state) for layer in layers for generator in layer._seed_generators}  # noqa: SLF001
    trained = {id(v) for v in model.trainable_variables}
    moving = {
        id(v)
        for layer in layers
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        for v in layer.non_trainable_variables
    }

    def rule(variable: Any) -> str:
        if id(variable) in seeds:
            return "local"
        if variable.dtype not in _FLOATS:
            return "keep"
        return "train" if id(variable) in trained else "average" if id(variable) in moving else "keep"

    return [rule(variable) for variable in model.variables]
