"""Training at a site: from global values and private data to an update and a few numbers about it.

Invariants:

- One trainer serves any number of sites and runs, one at a time. It keeps the model and the compiled step of the last
  job it saw, and nothing it keeps changes a result: the same job, data, site and round have the same bits in every
  process that was set up by ``configure_process``.
- What leaves is an update and plain finite numbers, each about at least ``MIN_COUNT`` examples.

Use::

    configure_process()
    trainer = Trainer()
    result = trainer.train(order, base=lambda: arrays, received=global_values, data=examples)
"""

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.dataset import Dataset
from fedretrain.digest import json_digest
from fedretrain.errors import ConfigurationError, DeclinedRequest, ModelRefused
from fedretrain.job import NamedConfig
from fedretrain.messages import PrepareRequest
from strategies.base import LocalObjective

from .sampling import MIN_COUNT, batches, in_order, seed_for, split

if TYPE_CHECKING:
    from .step import Learner

log = logging.getLogger(__name__)

Arrays = list[NDArray[Any]]


@dataclass(frozen=True)
class Order:
    """What is to be trained: a prepared run, at one site, in one round.

    ``seconds`` is how long that may take, where the site's policy sets a limit.
    """

    request: PrepareRequest
    site: str
    round: int
    allow_modules: tuple[str, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True)
class Result:
    """What comes of it.

    Attributes:
        update: Trained minus received, in the order and dtypes of ``contract.changing_specs``.
        examples: Training examples.
        metrics: ``train-loss`` (mean over the examples used, each before its step), ``val-loss`` and ``val-<metric>``
            (of the received values, before training), as far as they are about enough examples; ``seconds``.
    """

    update: Arrays
    examples: int
    metrics: dict[str, float]


def configure_process(threads: int = 1) -> None:
    """Set up TensorFlow in this process so that results do not depend on it; before TensorFlow computes anything.

    Args:
        threads: Threads for one operation. Sums are split by it, so all processes of a job need the same number.
    """
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError:
        log.warning("TensorFlow is already in use with its own threads; the last bits of results may differ by machine")
    tf.config.experimental.enable_op_determinism()


class Trainer:
    """See the module docstring. Not for use by two threads at once."""

    def __init__(self) -> None:
        self._key = ""
        self._learner: Learner | None = None

    def prepare(self, request: PrepareRequest, allow_modules: tuple[str, ...] = ()) -> None:
        """Build the model a request asks for, and keep it; what training will need is checked here.

        Raises:
            DeclinedRequest: ``model-refused``, ``model-mismatch``, or ``request-invalid``.
        """
        self._warm(request, allow_modules)

    def train(self, order: Order, base: Callable[[], Arrays], received: Arrays, data: Dataset) -> Result:
        """One update.

        Args:
            order: What to train.
            base: Gives every variable of the base model; called where this trainer does not hold them yet.
            received: The global values of the variables that travel, in the order of ``contract.changing``.
            data: All the site's examples, checked and as ``fedretrain.dataset.as_arrays`` returns them.

        Raises:
            DeclinedRequest: ``training-diverged``, ``policy`` where it takes too long, or as ``prepare``.
        """
        started = time.monotonic()
        learner = self._warm(order.request, order.allow_modules)
        if not learner.loaded:
            learner.load(base())
        learner.start(received, _variable_seeds(order))
        train, site = order.request.train, order.site
        mine, held = split(len(data), train, site)
        metrics: dict[str, float] = {}
        if len(held):
            held_out = (data.take(held[i]) for i in in_order(len(held), train.batch_size))
            validation = within(held_out, started, order.seconds)
            metrics |= {f"val-{name}": value for name, value in learner.evaluate(validation).items()}
            _check_finite(metrics["val-loss"])
        steps = (data.take(mine[i]) for i in batches(len(mine), train, site, order.round))
        loss = _train(learner, within(steps, started, order.seconds))
        if len(mine) >= MIN_COUNT:
            metrics["train-loss"] = loss
        update = self._difference(learner, received)
        return Result(update, len(mine), metrics | {"seconds": time.monotonic() - started})

    def _difference(self, learner: "Learner", received: Arrays) -> Arrays:
        try:
            learner.check_kept()
        except RuntimeError:
            self._learner = None  # whatever it holds is not what the next update may start from
            raise
        with np.errstate(over="ignore", invalid="ignore"):
            update = [after - before for after, before in zip(learner.values(), received, strict=True)]
        for array in update:
            if not np.isfinite(array).all():
                raise _diverged()
        return update

    def _warm(self, request: PrepareRequest, allow_modules: tuple[str, ...]) -> "Learner":
        """The model of this request: the one in memory where it is the same job, else a freshly built one."""
        wanted = json_digest([request.model_dump(mode="json", exclude={"run"}), list(allow_modules)])
        if self._learner is None or wanted != self._key:
            self._learner = None  # free it first: two models may not fit
            self._learner, self._key = _build(request, allow_modules), wanted
        return self._learner


def _build(request: PrepareRequest, allow_modules: tuple[str, ...]) -> "Learner":
    from .step import Learner

    try:
        return Learner(request, _objective(request.strategy), allow_modules)
    except ModelRefused as error:
        log.warning("run %s: %s", request.run, error)
        expected = "layers of Keras, or of modules this site allows"
        raise DeclinedRequest("model-refused", "architecture", expected) from None
    except ConfigurationError as error:
        log.warning("run %s: %s", request.run, error)
        raise DeclinedRequest("request-invalid", "freeze", "patterns that fit layers and leave some to train") from None


def _objective(config: NamedConfig) -> LocalObjective:
    """What the strategy adds to a site's loss; imports no module the request names."""
    from strategies.registry import local_objective

    try:
        return local_objective(config)
    except ConfigurationError as error:
        log.warning("%s", error)
        raise DeclinedRequest("request-invalid", "strategy", "a strategy this version knows") from None


def _variable_seeds(order: Order) -> Iterator[int]:
    """A seed for each variable, by its position; random layers draw from theirs."""
    seed, count = order.request.train.seed, len(order.request.contract.variables)
    return (seed_for("layer", seed, order.site, order.round, position) % 2**31 for position in range(count))


def within(examples: Iterable[Dataset], started: float, seconds: float | None) -> Iterator[Dataset]:
    """The batches, as long as no more than ``seconds`` have gone by since ``started`` (``time.monotonic``).

    Raises:
        DeclinedRequest: ``policy``, when they have.
    """
    for batch in examples:
        if seconds is not None and time.monotonic() - started > seconds:
            raise DeclinedRequest("policy", "max_seconds", f"at most {seconds:g} seconds of training in a round")
        yield batch


def _train(learner: "Learner", steps: Iterator[Dataset]) -> float:
    """Train on each batch; returns the mean loss of an example when it was used."""
    total, count = 0.0, 0
    for batch in steps:
        loss = learner.step(batch)
        _check_finite(loss)
        total, count = total + loss * len(batch), count + len(batch)
    learner.finish()
    return total / count


def _check_finite(loss: float) -> None:
    if not math.isfinite(loss):
        raise _diverged()


def _diverged() -> DeclinedRequest:
    return DeclinedRequest("training-diverged", "train", "finite loss and weights; a lower learning rate may help")
