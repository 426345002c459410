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
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.dataset import Dataset
from fedretrain.digest import json_digest
from fedretrain.errors import ConfigurationError, DeclinedRequest, ModelRefused
from fedretrain.job import NamedConfig
from fedretrain.messages import PrepareRequest
from strategies.objective import LocalObjective

from . import sums
from .outgoing import Update, difference, finite, is_large
from .pace import Pace
from .sampling import MIN_COUNT, Indices, epochs, in_order, pieces, seed_for, steps_of
from .stages import stage_of, staged
from .training import at_once, check_finite, in_pieces, only

if TYPE_CHECKING:
    from .checking.predictions import Answers
    from .resident import Examples
    from .selection import Selection
    from .step import Learner

log = logging.getLogger(__name__)

Arrays = list[NDArray[Any]]

RESIDENT_BYTES = 512 << 20
_EVALUATIONS = 16  # batches of one call in evaluation


@dataclass(frozen=True)
class Order:
    """What is to be trained: a prepared run, at one site, in one round.

    ``seconds`` is how long that may take, where the site's policy sets a limit. ``later`` allows for a large update to
    be made variable by variable when it is used, which is before anything else is asked of the trainer. ``selection``
    says which rows of the data are used, where that is not the split of all of them. ``given`` has the arrays that the
    objective asks for, by group (``strategies.objective``), but for those that the trainer has itself: one array per
    variable that trains. ``personal`` are the site's own values of ``contract.personal``; None for the base model's.
    """

    request: PrepareRequest
    site: str
    round: int
    allow_modules: tuple[str, ...] = ()
    seconds: float | None = None
    later: bool = False
    selection: "Selection | None" = None
    personal: Sequence[NDArray[Any]] | None = None
    given: Mapping[str, Sequence[NDArray[Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What comes of it.

    Attributes:
        update: Trained minus received, in the order and dtypes of ``contract.changing_specs``.
        examples: Training examples.
        metrics: ``train-loss`` (mean over the examples used, each before its step), ``val-loss`` and ``val-<metric>``
            (of the received values, before training), as far as they are about enough examples; ``seconds``.
        steps: Optimizer steps that were taken.
        personal: The values of ``contract.personal`` after training.
    """

    update: Update
    examples: int
    metrics: dict[str, float]
    steps: int = 0
    personal: Sequence[NDArray[Any]] = ()


def configure_process(threads: int = 1, gpu: int | None = None) -> None:
    """Set up TensorFlow in this process so that results do not depend on it; before TensorFlow computes anything.

    Args:
        threads: Threads for one operation. Sums are split by it, so all processes of a job need the same number.
        gpu: The one GPU that this process uses, by its number; None for whatever TensorFlow sees. A GPU's memory is
            taken as it is needed, so that several processes can share one.
    """
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        devices = tf.config.list_physical_devices("GPU")
        if gpu is not None:
            devices = devices[gpu : gpu + 1]
            tf.config.set_visible_devices(devices, "GPU")
        for device in devices:
            tf.config.experimental.set_memory_growth(device, enable=True)
    except RuntimeError:
        log.warning("TensorFlow is already in use with its own threads; the last bits of results may differ by machine")
    tf.config.experimental.enable_op_determinism()


class Trainer:
    """See the module docstring. Not for use by two threads at once.

    Called again with the same ``received`` and ``data`` objects, as a simulation does with many sites and rounds, it
    finds them on the device; their arrays must not be written to as long as they are passed.

    Args:
        compile: Whether XLA compiles the steps. The last bits depend on it, so everyone who trains in a run, and a
            simulation and what it stands for, decide alike: None, by the job alone (``compiling.chosen``).
        resident_bytes: The most that examples may take on the device; a site with more is streamed.
    """

    def __init__(self, *, compile: bool | None = None, resident_bytes: int = RESIDENT_BYTES) -> None:  # noqa: A002
        self._compile = compile
        self._resident_bytes = resident_bytes
        self._request: tuple[PrepareRequest, tuple[str, ...], int | None] | None = None
        self._key = ""
        self._learner: Learner | None = None
        self._partitions: Any = None
        self._received: Any = None
        self._groups: dict[str, Any] = {}
        self._beside: Trainer | None = None

    @property
    def beside(self) -> "Trainer":
        """Another one, for a second model of the same sites; kept as warm as this."""
        if self._beside is None:
            self._beside = Trainer(compile=self._compile, resident_bytes=self._resident_bytes)
        return self._beside

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever runs this should know of how the models at hand train, each text once."""
        own = (self._learner.note,) if self._learner is not None and self._learner.note else ()
        return tuple(dict.fromkeys(own + (self._beside.notes if self._beside else ())))

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
        pace = Pace(order.seconds)
        learner = self._warm(order.request, order.allow_modules, order.round)
        if not learner.loaded:
            learner.load(base())
        learner.take_own(order.personal)
        learner.supply.give({group: self._given(group, order) for group in learner.supply.asks})
        later = order.later and is_large(received)
        values = received if later else self._received.tensors(received)
        seed_of = partial(_variable_seed, order)
        examples = self._partitions.of(data, order.request.contract)
        mine, held = _rows(order, examples)
        metrics: dict[str, float] = {}
        if len(held):
            learner.start(values, seed_of)
            size = learner.graph.evaluated * (1 if pace.limited else _EVALUATIONS)
            chosen = (held[i] for i in in_order(len(held), size))
            found = learner.evaluate(pace.through(examples.filled(chosen)), examples.unjudged(held))
            metrics |= {f"val-{name}": v for name, v in found.items()}
            check_finite(metrics["val-loss"])
        runs = _runs(mine, order, lambda: pace.steps(learner.graph.steps))
        made: tuple[float, Any] | None = None
        if learner.at_once and not (later or pace.limited):
            one, runs = only(runs)
            if one:
                made = at_once(learner, examples.filled(iter(one)), values, None if len(held) else seed_of)
        if made is None:
            if not len(held):
                learner.start(values, seed_of)
            loss = in_pieces(learner, examples.filled(runs), pace)
            changes: Any = difference(learner.values(), received) if later else learner.update(values)
            made = loss, changes
        loss, update = made
        for place in learner.untouched(examples.lacking):
            update[place] = np.zeros_like(received[place])
        if len(mine) >= MIN_COUNT:
            metrics["train-loss"] = loss
        self._check_kept(learner)
        metrics["seconds"] = pace.elapsed
        steps = steps_of(len(mine), order.request.train)
        return Result(update if later else finite(update), len(mine), metrics, steps, finite(learner.own()))

    def sum(
        self, order: Order, what: NamedConfig, base: Callable[[], Arrays], received: Arrays, data: Dataset
    ) -> "sums.Total":
        """A mean over the site's examples at the received values (``client.sums``); what it is was checked.

        Args:
            order: Of the run; its round is 0.
            what: The sum, with its settings.
            base: As of ``train``.
            received: As of ``train``.
            data: As of ``train``.

        Raises:
            DeclinedRequest: As ``client.sums.compute``, or as ``prepare``.
        """
        learner = self._as_received(order, base, received)
        examples = self._partitions.of(data, order.request.contract)
        task = sums.Task(learner, examples, data, order.request, order.site, Pace(order.seconds))
        return sums.compute(what, task)

    def answers(self, order: Order, base: Callable[[], Arrays], received: Arrays, data: Dataset) -> "Answers":
        """What the model says about examples at the received values, for a check (``client.checking``).

        Args:
            order: Of the run; its round is 0.
            base: As of ``train``.
            received: As of ``train``.
            data: At least one example, as of ``train``.

        Raises:
            DeclinedRequest: As ``client.checking.predictions.compute``, or as ``prepare``.
        """
        from .checking.predictions import compute
        from .sums.tensors import OutputLosses

        request = order.request
        model = self._as_received(order, base, received).model
        logits = OutputLosses(request.train, request.contract.outputs).logits
        return compute(model, request.contract, data, logits, Pace(order.seconds))

    def _as_received(self, order: Order, base: Callable[[], Arrays], received: Arrays) -> "Learner":
        """The model of a run at these values, as an update would start from them."""
        learner = self._warm(order.request, order.allow_modules, order.round)
        if not learner.loaded:
            learner.load(base())
        learner.take_own(order.personal)
        learner.start(self._received.tensors(received), lambda position: _variable_seed(order, position))
        return learner

    def _check_kept(self, learner: "Learner") -> None:
        try:
            learner.check_kept()
        except RuntimeError:
            self._learner = None  # whatever it holds is not what the next update may start from
            raise

    def _warm(self, request: PrepareRequest, allow_modules: tuple[str, ...], round_: int = 1) -> "Learner":
        """The model of this request in a round: the one in memory where it is the same, else a freshly built one."""
        stage = stage_of(request.train, round_)
        last = self._request
        if last is not None and request is last[0] and last[1:] == (allow_modules, stage) and self._learner is not None:
            return self._learner
        mine = staged(request, stage)
        wanted = json_digest([mine.model_dump(mode="json", exclude={"run"}), list(allow_modules)])
        if self._learner is None or wanted != self._key:
            self._learner = None  # free it first: two models may not fit
            self._learner, self._key = build_learner(mine, allow_modules, self._compile), wanted
            self._keep()
        self._request = request, allow_modules, stage
        return self._learner

    def _keep(self) -> None:
        from .resident import Partitions, Received

        self._partitions, self._received = Partitions(self._resident_bytes), Received()
        self._groups = {}

    def _given(self, group: str, order: Order) -> list[Any]:
        """The arrays of a group on the device, as long as they are the same ones."""
        from .resident import Received

        if group not in order.given:
            raise DeclinedRequest("request-invalid", group, "arrays that the objective asks for")
        found: list[Any] = self._groups.setdefault(group, Received()).tensors(list(order.given[group]))
        return found


def build_learner(request: PrepareRequest, allow_modules: tuple[str, ...], compiled: bool | None = None) -> "Learner":
    """The model of a request; raises DeclinedRequest as ``Trainer.prepare``."""
    from .step import Learner

    try:
        return Learner(request, _objective(request), allow_modules, compiled=compiled)
    except ModelRefused as error:
        log.warning("run %s: %s", request.run, error)
        expected = "layers of Keras, or of modules this site allows"
        raise DeclinedRequest("model-refused", "architecture", expected) from None
    except ConfigurationError as error:
        log.warning("run %s: %s", request.run, error)
        raise DeclinedRequest("request-invalid", "freeze", "patterns that fit layers and leave some to train") from None


def _objective(request: PrepareRequest) -> LocalObjective:
    """What the strategy adds to a site's loss, fitted to the model; imports no module the request names."""
    from strategies.registry import local_objective

    try:
        return local_objective(request.strategy).fitted(request.contract, request.train)
    except ConfigurationError as error:
        log.warning("%s", error)
        expected = "a strategy and objectives that this version knows and that fit the model"
        raise DeclinedRequest("request-invalid", "strategy", expected) from None


def _variable_seed(order: Order, position: int) -> int:
    """The seed of the variable at a position; random layers draw from theirs."""
    return seed_for("layer", order.request.train.seed, order.site, order.round, position) % 2**31


def _rows(order: Order, examples: "Examples") -> tuple[Indices, Indices]:
    """Rows that a round trains on, and rows that are validated on."""
    chosen, train = order.selection, order.request.train
    if chosen is None:
        return examples.split(train, order.site)
    return chosen.of_round(train, order.site, order.round), chosen.held


def _runs(mine: Indices, order: Order, steps: Callable[[], int]) -> Iterator[Indices]:
    """The rows ``mine`` in the order in which they are used, in runs of at most so many batches."""
    train = order.request.train
    orders = (mine[positions] for positions in epochs(len(mine), train, order.site, order.round))
    return pieces(orders, train.batch_size, steps)
