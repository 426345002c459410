"""What a site trains with, complete: the job's optimizer, loss and metrics, or the model's own where the job is silent.

Training goes on from a model that is in use, so the learning rate is a tenth of the model's own unless the job says
otherwise: https://keras.io/guides/transfer_learning (fine-tuning). From fresh weights (mode "full") it is the model's.
"""

import difflib
import functools
import inspect
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .errors import ConfigurationError
from .job import Loss, NamedConfig, TrainSection

log = logging.getLogger(__name__)

_NO_CHOICE = frozenset({"optimizer", "optimizermap", "multioptimizer", "lossscaleoptimizer"})  # hold others
_NO_METRIC = frozenset({"metric", "mean", "sum", "mean_metric_wrapper"})
_NOT_SETTINGS = frozenset({"self", "name", "dtype", "kwargs"})


def resolve_train(train: TrainSection, compile_config: Mapping[str, Any] | None) -> TrainSection:
    """Fill in optimizer, loss and metrics.

    Names become Keras' own lower-case ones. A job's optimizer without a learning rate gets a tenth of the model's where
    both use the same optimizer, else a tenth of Keras' default, and all of it in the mode "full"; a model's learning
    rate schedule counts with its initial rate, because a schedule would start again in every round.

    Args:
        train: The job's section.
        compile_config: As ``BaseModel.compile_config``, None for a model that was not compiled.

    Raises:
        ConfigurationError: Neither job nor model say which optimizer or loss; a name or setting Keras does not know,
            with the nearest it does.
    """
    own = compile_config or {}
    loss = _losses(train.loss) if train.loss is not None else _own_losses(own.get("loss"))
    metrics = _metrics(train.metrics) if train.metrics is not None else _own_metrics(own.get("metrics"), loss)
    optimizer = _optimizer(train.optimizer, own.get("optimizer"), 1 if train.mode == "full" else 10)
    return train.model_copy(update={"optimizer": optimizer, "loss": loss, "metrics": metrics})


def make_loss(loss: Loss, **more: Any) -> Any:
    """A ``keras.losses.Loss`` with the job's settings and ``more``, such as ``reduction``.

    Raises:
        ConfigurationError: A name or setting Keras does not know, with the nearest it does.
    """
    config = loss if isinstance(loss, NamedConfig) else NamedConfig(name=loss)
    name = _loss_name(_known(config.name, _loss_strings(), "train.loss"))
    return _check_settings(_loss_classes()[name], config.settings | more, "train.loss")


def _optimizer(wanted: NamedConfig | None, own: Any, divisor: int) -> NamedConfig:
    own_name, own_settings = _own_optimizer(own)
    if wanted is None:
        if not own_name:
            raise ConfigurationError("train.optimizer: the model was not compiled with one of Keras; name one")
        wanted = NamedConfig(name=own_name, **{**own_settings, "learning_rate": None})
    known = _optimizers()
    name = _known(wanted.name.lower(), known, "train.optimizer")
    settings = wanted.settings
    if settings.get("learning_rate") is None:
        default = inspect.signature(known[name]).parameters["learning_rate"].default
        settings["learning_rate"] = _part(
            own_settings["learning_rate"] if name == own_name else default, default, divisor
        )
    for key, value in settings.items():
        if isinstance(value, str):
            raise ConfigurationError(f"train.optimizer.{key}: expected a number, got '{value}'")
    _check_settings(known[name], _with_schedule(settings), "train.optimizer")
    return NamedConfig(name=name, **settings)


def _own_optimizer(config: Any) -> tuple[str, dict[str, Any]]:
    """Name and settings of the optimizer a model was compiled with; "" where it is none of Keras'."""
    while isinstance(config, Mapping) and "inner_optimizer" in config.get("config", {}):
        config = config["config"]["inner_optimizer"]  # loss scaling comes with mixed precision, by itself
    if isinstance(config, str):
        config = {"class_name": config, "config": {}}
    if not isinstance(config, Mapping) or str(config.get("class_name", "")).lower() not in _optimizers():
        return "", {"learning_rate": None}
    name = config["class_name"].lower()
    rate = config["config"].get("learning_rate")
    return name, {**_changed(_optimizers()[name], config["config"]), "learning_rate": rate}


def _part(rate: Any, default: float, divisor: int) -> float:
    """A part of a learning rate, which may be a serialized schedule; rounded to what float32 tells apart."""
    if isinstance(rate, Mapping):
        rate = rate.get("config", {}).get("initial_learning_rate")
    rate = rate if isinstance(rate, int | float) else default
    return float(np.format_float_positional(np.float32(float(str(np.float32(rate))) / divisor)))


def _with_schedule(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with a schedule object where the job writes one as ``{ name = "ExponentialDecay", ... }``."""
    import keras

    rate = settings["learning_rate"]
    if not isinstance(rate, Mapping):
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not rate > 0:
            raise ConfigurationError(f"train.optimizer.learning_rate: expected a number above 0, got {rate!r}")
        return {**settings, "learning_rate": float(rate)}
    base = keras.optimizers.schedules.LearningRateSchedule
    known = {k: v for k, v in vars(keras.optimizers.schedules).items() if inspect.isclass(v) and issubclass(v, base)}
    key = "train.optimizer.learning_rate"
    kind = known[_known(str(rate.get("name")), known.keys() - {base.__name__}, key)]
    return {**settings, "learning_rate": _check_settings(kind, {k: v for k, v in rate.items() if k != "name"}, key)}


def _losses(loss: Loss | dict[str, Loss]) -> Loss | dict[str, Loss]:
    if isinstance(loss, dict):
        return {output: _loss(one, f"train.loss.{output}") for output, one in loss.items()}
    return _loss(loss, "train.loss")


def _loss(loss: Loss, key: str) -> Loss:
    known = _loss_classes()
    config = loss if isinstance(loss, NamedConfig) else NamedConfig(name=loss)
    name = _loss_name(_known(config.name, _loss_strings(), key))
    if not config.settings:
        return name
    _check_settings(known[name], config.settings, key)
    return NamedConfig(name=name, **config.settings)


def _own_losses(config: Any) -> Loss | dict[str, Loss]:
    """The loss a model was compiled with: one, or by output."""
    if isinstance(config, Mapping) and "class_name" not in config:
        return {output: _own_loss(one) for output, one in config.items() if one is not None}
    return _own_loss(config)


def _own_loss(config: Any) -> Loss:
    name = config
    settings: Mapping[str, Any] = {}
    if isinstance(config, Mapping):
        name = config["config"] if config["class_name"] == "function" else config["class_name"]
        settings = config["config"] if config["class_name"] != "function" else {}
    if not isinstance(name, str) or name not in _loss_strings():
        own = f"with a loss of its own, {name!r}" if name else "without a loss"
        raise ConfigurationError(f"train.loss: the model was compiled {own}; name one of Keras' losses")
    kind = _loss_classes()[_loss_name(name)]
    lost = inspect.signature(kind).parameters.keys() - settings.keys() - _NOT_SETTINGS - {"axis"}
    if settings and lost:
        log.warning("train.loss: Keras did not store %s of %s; give it in the job if it matters", sorted(lost), name)
    changed = _changed(kind, settings)
    return NamedConfig(name=_loss_name(name), **changed) if changed else _loss_name(name)


def _metrics(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_known(name, _metric_strings(), "train.metrics") for name in names))


def _own_metrics(config: Any, loss: Loss | dict[str, Loss]) -> tuple[str, ...]:
    """Names of the metrics a model was compiled with, of all outputs together; accuracy where there are classes."""
    found = [name for name in _metric_names(config) if name in _metric_strings()]
    if found:
        return tuple(dict.fromkeys(found))
    losses = loss.values() if isinstance(loss, dict) else [loss]
    names = [one.name if isinstance(one, NamedConfig) else one for one in losses]
    return ("accuracy",) if any("crossentropy" in name for name in names) else ()


def _metric_names(config: Any) -> list[str]:
    from keras.src.utils.naming import to_snake_case

    if isinstance(config, str):
        return [config]
    if isinstance(config, Mapping) and "class_name" in config:
        return [config["config"] if config["class_name"] == "function" else to_snake_case(config["class_name"])]
    if isinstance(config, Mapping | list | tuple):
        parts = config.values() if isinstance(config, Mapping) else config
        return [name for part in parts for name in _metric_names(part)]
    return []


def _optimizers() -> dict[str, Any]:
    from keras.src.optimizers import ALL_OBJECTS_DICT

    return {name: kind for name, kind in ALL_OBJECTS_DICT.items() if name not in _NO_CHOICE}


def _loss_strings() -> frozenset[str]:
    """All names under which Keras knows its losses."""
    from keras.src.losses import ALL_OBJECTS_DICT

    return frozenset(ALL_OBJECTS_DICT) - {"Loss", "LossFunctionWrapper"}


def _loss_name(known: str) -> str:
    """The function's name behind an alias or a class: "MSE" and "MeanSquaredError" are ``mean_squared_error``."""
    import keras

    found = keras.losses.get(known)
    return str((found.fn if isinstance(found, keras.losses.Loss) else found).__name__)


@functools.cache
def _loss_classes() -> dict[str, Any]:
    """Classes of losses by the name of their function."""
    from keras.src.losses import ALL_OBJECTS_DICT

    return {_loss_name(n): ALL_OBJECTS_DICT[n] for n in _loss_strings() if inspect.isclass(ALL_OBJECTS_DICT[n])}


def _metric_strings() -> frozenset[str]:
    from keras.src.metrics import ALL_OBJECTS_DICT

    return frozenset(ALL_OBJECTS_DICT) | {"accuracy", "acc"}


def _changed(kind: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings of a serialized object that are not the class's defaults."""
    parameters = inspect.signature(kind).parameters
    return {k: v for k, v in settings.items() if k in parameters.keys() - _NOT_SETTINGS and v != parameters[k].default}


def _known(name: str, known: Iterable[str], key: str) -> str:
    if name not in known:
        near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)[0]
        raise ConfigurationError(f"{key}: Keras has no '{name}'; did you mean '{near}'?")
    return name


def _check_settings(kind: Any, settings: Mapping[str, Any], key: str) -> Any:
    """Make ``kind`` with the settings, to find out whether it takes them."""
    valid = sorted(inspect.signature(kind).parameters.keys() - _NOT_SETTINGS)
    for name in settings:
        if name not in valid:
            near = difflib.get_close_matches(name, valid, n=1, cutoff=0.0)[0]
            raise ConfigurationError(
                f"{key}.{name}: unknown setting; did you mean '{near}'? Valid here: {', '.join(valid)}"
            )
    try:
        return kind(**settings)
    except Exception as error:  # noqa: BLE001 - Keras raises ValueError, TypeError, AttributeError alike
        line = str(error).strip().split("\n")[0]
        raise ConfigurationError(f"{key}: {kind.__name__} does not take {dict(settings)}: {line}") from None
