"""Keras' optimizer, loss and metrics from the settings that a request carries.

Invariant: nothing but Keras' own classes is made, from plain numbers and words. Keras' deserialisation would import
modules that the text names; it is not used.
"""

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from fedretrain.contract import OutputSpec
from fedretrain.errors import DeclinedRequest
from fedretrain.job import Loss, NamedConfig, TrainSection
from fedretrain.settings import make_loss

log = logging.getLogger(__name__)

_PLAIN = (str, int, float, bool, type(None))
_ACCURACY = {
    "multiclass": keras.metrics.SparseCategoricalAccuracy,
    "onehot": keras.metrics.CategoricalAccuracy,
    "binary": keras.metrics.BinaryAccuracy,
    "multilabel": keras.metrics.BinaryAccuracy,
}


def make_optimizer(config: NamedConfig | None) -> Any:
    """A Keras optimizer; ``learning_rate`` may be a schedule, ``{name = "ExponentialDecay", ...}``.

    Raises:
        DeclinedRequest: ``request-invalid``, not an optimizer of Keras or not its settings.
    """
    where = "train.optimizer"
    if config is None:
        raise DeclinedRequest("request-invalid", where, "an optimizer")
    kind = type(_made(lambda: keras.optimizers.get(config.name), where))
    settings = config.settings
    rate = settings.get("learning_rate")
    if isinstance(rate, Mapping):
        settings["learning_rate"] = _schedule(rate)
    elif isinstance(rate, int):
        settings["learning_rate"] = float(rate)
    _check_plain({k: v for k, v in settings.items() if k != "learning_rate"}, where)
    return _made(lambda: kind(**settings), where)


def make_losses(train: TrainSection, outputs: tuple[OutputSpec, ...]) -> Any:
    """What ``compile`` takes as loss: one object, or a list by output with None where an output has none.

    Raises:
        DeclinedRequest: ``request-invalid``, not a loss of Keras or not its settings.
    """
    losses = [_make_loss(loss) for loss in _by_output(train, outputs)]
    return losses[0] if len(losses) == 1 else losses


def make_metrics(train: TrainSection, outputs: tuple[OutputSpec, ...]) -> list[dict[str, Any]]:
    """Fresh metric objects for each output by the name they are reported under.

    ``accuracy`` is the one for the output's kind of labels. A metric that an output does not allow (accuracy of a
    regression, AUC of class numbers) is left out there: what a site reports is a claim, no reason to stop a run.
    """
    return [
        {
            name if len(outputs) == 1 else f"{spec.name}-{name}": metric
            for name in dict.fromkeys(train.metrics or ())
            if (metric := _make_metric(name, spec, loss)) is not None
        }
        for spec, loss in zip(outputs, _by_output(train, outputs), strict=True)
    ]


def _by_output(train: TrainSection, outputs: tuple[OutputSpec, ...]) -> list[Loss | None]:
    if isinstance(train.loss, dict):
        return [train.loss.get(spec.name) for spec in outputs]
    return [train.loss] * len(outputs)


def _make_loss(loss: Loss | None) -> Any:
    if loss is None:
        return None
    if isinstance(loss, NamedConfig):
        _check_plain(loss.settings, "train.loss")
    return _made(lambda: make_loss(loss), "train.loss")


def _schedule(config: Mapping[str, Any]) -> Any:
    """A learning rate schedule, in our form or as Keras writes it (``class_name`` and ``config``)."""
    where = "train.optimizer.learning_rate"
    name = config.get("class_name", config.get("name"))
    settings = config.get("config", {k: v for k, v in config.items() if k != "name"})
    if not isinstance(settings, Mapping):
        raise DeclinedRequest("request-invalid", where, "a table of the schedule's settings")
    _check_plain(settings, where)
    kind = getattr(keras.optimizers.schedules, str(name), None)
    if not (inspect.isclass(kind) and issubclass(kind, keras.optimizers.schedules.LearningRateSchedule)):
        raise DeclinedRequest("request-invalid", where, "a learning rate schedule of Keras")
    return _made(lambda: kind(**settings), where)


def _make_metric(name: str, spec: OutputSpec, loss: Loss | None) -> Any | None:
    kind: Any
    if name.lower() in ("accuracy", "acc"):
        kind = _ACCURACY.get(spec.kind)
    else:
        kind = type(keras.metrics.get(name)) if _known_metric(name) else None
    if kind is None:
        log.info("metric %s: not for output %s, left out", name, spec.name)
        return None
    settings: dict[str, Any] = {}
    if isinstance(loss, NamedConfig) and loss.settings.get("from_logits"):
        if "from_logits" in inspect.signature(kind).parameters:
            settings["from_logits"] = True
        elif kind is keras.metrics.BinaryAccuracy:
            settings["threshold"] = 0.0  # a logit of 0 is a probability of one half
    metric = kind(**settings)
    return metric if _fits(metric, spec) else None


def _known_metric(name: str) -> bool:
    try:
        return isinstance(keras.metrics.get(name), keras.metrics.Metric)
    except (ValueError, TypeError):  # no metric of Keras, or one that needs settings
        return False


def _fits(metric: Any, spec: OutputSpec) -> bool:
    """Whether the metric takes labels and predictions of this output, tried on zeros."""
    shape = tuple(n or 1 for n in spec.shape)
    rows = 3 if shape[-1:] == (2,) else 2  # other than the last axis, so that labels do not fit by broadcasting alone
    labels = (rows, *shape[:-1]) if spec.kind == "multiclass" else (rows, *shape)
    try:
        metric.update_state(np.zeros(labels, "float32"), np.zeros((rows, *shape), "float32"))
        result = np.asarray(metric.result())
    except Exception as error:  # noqa: BLE001 - Keras and TensorFlow raise what they like on shapes that do not match
        log.info("metric %s: not for output %s (%s), left out", metric.name, spec.name, type(error).__name__)
        return False
    metric.reset_state()
    return result.ndim == 0


def _check_plain(settings: Mapping[str, Any], where: str) -> None:
    for name, value in settings.items():
        items = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(item, _PLAIN) for item in items):
            raise DeclinedRequest("request-invalid", f"{where}.{name}", "a number or a word")


def _made(make: Callable[[], Any], where: str) -> Any:
    """What ``make`` returns; whatever Keras says against it becomes a refusal."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - Keras raises ValueError, TypeError, AttributeError alike
        log.info("%s: %s", where, error)
        raise DeclinedRequest("request-invalid", where, "an object of Keras with its own settings") from None
