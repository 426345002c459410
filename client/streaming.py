"""Watching a site's errors one example after another: on which days did they become more?

Only events leave the site, each the detector's name and a day. What goes in are numbers from 0 to 1, one for each
example: whether the model was wrong where the label is known, else one minus its confidence. One stream is of one kind,
because a change from one to the other is no change of the data. What a model was trained on it knows better than what
comes later, so a stream begins where the model's training data end.

Page-Hinkley (Page, Continuous inspection schemes, Biometrika 41, 1954; Hinkley, Biometrika 58, 1971) adds up by how
much each value x_t is above the mean of all values until then and a tolerance::

    g_t = max(0, forgetting g_{t-1} + x_t - mean_t - delta)        an event, and a new beginning, where g_t > lambda_t

``forgetting`` is the fading factor of Gama, Sebastiao and Rodrigues (On evaluating stream learning algorithms, Machine
Learning 90, 2013), 1 unless the job says otherwise. A fixed lambda would either be wrong all the time for a model that
errs half of the time or take thousands of examples for one that hardly errs. So it follows from the variance v_t of the
values until then, with a quarter, the greatest that there is, counted as one more observation::

    lambda_t = threshold (v_t + 2 delta / 3) / (2 delta)

Why: E exp(s (x - mean - delta)) <= 1 holds for s = 2 delta / (v + 2 delta / 3) by Bernstein's inequality. So without a
change g exceeds lambda with a probability of at most exp(-threshold) from each example at which it begins (Lundberg's
and Doob's inequalities), as far as mean and variance are known: at most n exp(-threshold) false events are expected in
n examples, 0.45 in 10,000 unless the job says otherwise. Most beginnings end at once, so there are far fewer:
``simulations.benchmarks.streaming`` counts them, and how many examples pass until a rise is noticed, which are about
lambda / (rise - delta).

A rise is found by comparison with the mean before it: one that comes in the first examples, or more slowly than the
mean follows, is not.
"""

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.detectors import DEFAULT, PAGE_HINKLEY, RIVER, PageHinkley, check_detector, page_hinkley
from fedretrain.errors import ConfigurationError
from fedretrain.jobtables import NamedConfig

STATISTIC = "check-stream"
"""The name by which a site's policy allows events to leave, or does not."""
DAY = 86_400
_ROUNDING = 1e-5  # by which a greatest probability may be above 1
Array = NDArray[Any]


@dataclass(frozen=True)
class Event:
    """A change that a detector found; one for each day at most.

    Attributes:
        detector: Its name.
        day: When it was noticed: seconds since 1970 UTC at which that day began, a multiple of 86,400.
    """

    detector: str
    day: int


def events(values: Array, times: Array, detector: NamedConfig = DEFAULT) -> list[Event]:
    """The days on which a detector found a change, in order of time.

    The same examples in the same order give the same events. Examples of the same time come in an order drawn with a
    fixed seed, because their order in a file may go by label.

    Args:
        values: [n], from 0 to 1: the error, or one minus the confidence.
        times: [n], seconds since 1970 UTC. Examples without a finite time or value are left out.
        detector: As in ``[watch] detector``.

    Raises:
        ConfigurationError: An unknown detector or setting, one that river has not or does not take, river is not
            installed, or the detector takes errors alone and a value is neither 0 nor 1.
        ValueError: A value outside 0 to 1, or not as many times as values.
    """
    check_detector(detector)
    values, times = np.asarray(values, np.float64), np.asarray(times, np.float64)
    if values.shape != times.shape or values.ndim != 1:
        raise ValueError(f"expected one time for each value, got shapes {values.shape} and {times.shape}")
    order = np.lexsort((np.random.default_rng(0).random(len(values)), times))
    order = order[np.isfinite(values[order]) & np.isfinite(times[order])]
    values, times = values[order], times[order]
    if len(values) and not (values.min() >= -_ROUNDING and values.max() <= 1 + _ROUNDING):
        raise ValueError(f"expected values from 0 to 1, got {values.min()} to {values.max()}")
    values = values.clip(0, 1)
    if detector.name == PAGE_HINKLEY:
        found = alarms(values, page_hinkley(detector))
    else:
        found = _alarms_of_river(values, detector)
    days = sorted({int(times[i] // DAY) * DAY for i in found})
    return [Event(detector.name, day) for day in days]


def alarms(values: Array, settings: PageHinkley) -> Iterator[int]:
    """Positions at which Page-Hinkley finds a rise; after each it begins anew, with the mean as well.

    Args:
        values: [n], from 0 to 1, in order of time.
        settings: See the module.
    """
    tolerance, forgetting = settings.delta, settings.forgetting
    scale = settings.threshold / (2 * tolerance)
    count, mean, squares, above = 0, 0.0, 0.0, 0.0
    for position, value in enumerate(values.tolist()):
        count += 1
        before = value - mean
        mean += before / count
        squares += before * (value - mean)
        above = max(0.0, forgetting * above + value - mean - tolerance)
        variance = (squares + 0.25) / (count + 1)
        if count >= settings.minimum and above > scale * (variance + 2 * tolerance / 3):
            yield position
            count, mean, squares, above = 0, 0.0, 0.0, 0.0


def _alarms_of_river(values: Array, config: NamedConfig) -> Iterator[int]:
    """Positions at which a detector of river finds a change, whichever way; after each it begins anew by itself."""
    if RIVER[config.name] and not np.isin(values, (0, 1)).all():
        raise ConfigurationError(
            f"watch.detector: '{config.name}' takes errors alone, 0 or 1, and there are examples without labels; "
            f"use {PAGE_HINKLEY}, adwin or kswin"
        )
    detector = _made(config)
    for position, value in enumerate(values.tolist()):
        detector.update(bool(value) if RIVER[config.name] else value)
        if detector.drift_detected:
            yield position


def _made(config: NamedConfig) -> Any:
    """A detector of river with the job's settings, and a seed where it draws."""
    try:
        modules = [importlib.import_module(name) for name in ("river.drift", "river.drift.binary")]
    except ImportError:
        raise ConfigurationError(
            f"watch.detector: '{config.name}' needs river: pip install 'fedretrain[river]', or use {PAGE_HINKLEY}"
        ) from None
    kinds = {name.lower().replace("_", ""): kind for module in modules for name, kind in vars(module).items()}
    kind = kinds.get(config.name.replace("-", ""))
    if kind is None:
        raise ConfigurationError(f"watch.detector: the installed river has no '{config.name}'; use {PAGE_HINKLEY}")
    taken = inspect.signature(kind).parameters
    for key in config.settings:
        if key not in taken:
            raise ConfigurationError(f"watch.detector.{key}: {config.name} does not take it; it has {', '.join(taken)}")
    try:
        return kind(**{"seed": 0} | config.settings if "seed" in taken else config.settings)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConfigurationError(f"watch.detector: {config.name} does not take {config.settings}: {error}") from None
