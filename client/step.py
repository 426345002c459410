"""One job's model at a site: built, frozen, compiled, with calculations that are traced once.

Invariants:

- Which variables train is settled before the calculations exist: layers are frozen, then the model is compiled. Flags
  set after that would change nothing in what is traced.
- Every update starts from the same state, whatever was trained before: variables that travel as received, personal
  ones as the site has them, all others as in the base model, seeds as given, the optimizer as a fresh one.
- A variable that neither travels nor is personal comes out of an update with the bits it went in with.

A model whose class has a training step of its own, or whose layers cannot be traced, trains through Keras' ``fit``.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fedretrain.architecture import build, set_weights
from fedretrain.contract import key
from fedretrain.errors import DeclinedRequest
from fedretrain.messages import PrepareRequest
from fedretrain.variables import freeze, variable_specs
from strategies.objective import LocalObjective

from .atonce import AtOnce
from .compiling import chosen
from .fitting import fit, trains_itself
from .graph import Graph, Piece, traced
from .initial import InitialState
from .labelled import untouched
from .settings import make_losses, make_metrics, make_optimizer
from .state import State, array_of
from .supply import Supply

log = logging.getLogger(__name__)

Arrays = list[NDArray[Any]]


class Learner:
    """The model of one request, with its optimizer, losses and metrics; ``loaded`` once it has the base model's values.

    Args:
        request: What the server asked to prepare.
        objective: What the strategy adds to the loss, fitted to the model.
        allow_modules: Modules of this site whose layer classes may be built.
        compiled: Whether XLA compiles the steps; None where the job alone decides (``compiling.chosen``).

    Attributes:
        graph: Its steps and evaluations.
        note: What whoever runs it should know of how it trains; empty where that is as usual.
        supply: What the objective is given beside what is received; to be brought before ``start``.

    Raises:
        ModelRefused: A layer outside the allow-list, or a model larger than the contract's.
        ConfigurationError: A freeze pattern that fits no layer, or nothing left to train.
        DeclinedRequest: ``model-mismatch`` where the frozen model's variables are not the contract's;
            ``request-invalid`` where optimizer or loss cannot be made.
    """

    def __init__(
        self,
        request: PrepareRequest,
        objective: LocalObjective,
        allow_modules: Sequence[str],
        *,
        compiled: bool | None = None,
    ) -> None:
        self.contract = request.contract
        largest = sum(math.prod(spec.shape) for spec in self.contract.variables)
        self._model = build(request.architecture, allow_modules, largest)
        freeze(self._model, request.freeze)
        _check_variables(self._model, request)
        self._variables = list(self._model.variables)
        self._trained = self._training()
        training = set(map(id, self._trained))
        positions = [i for i, variable in enumerate(self._variables) if id(variable) in training]
        self._personal = [self._variables[position] for position in self.contract.personal]
        self._first: Arrays = []  # values of the personal variables at a site that has none of its own yet
        self._kept: list[tuple[Any, NDArray[Any]]] = []
        self._untouched: dict[frozenset[str], tuple[int, ...]] = {}
        self.loaded = False
        metrics = make_metrics(request.train, self.contract.outputs)
        optimizer = make_optimizer(request.train.optimizer)
        self._model.compile(optimizer, make_losses(request.train, self.contract.outputs), jit_compile=False)
        self._model.optimizer.build(self._trained)
        self._initial = InitialState(self._model.optimizer, self._trained)
        self._teacher = build(request.architecture, allow_modules, largest) if objective.teacher else None
        self.graph = Graph(self._model, self._trained, metrics, objective, request, self._teacher)
        self.supply = Supply(self.contract, self._variables, positions, self.graph.descent.others)
        self._state = State(self.contract, self._variables, self._initial, positions, self.graph.descent.seed)
        self._start = traced(self._state.begin, list(self._state.signature))
        self._subtract = traced(self._state.minus, [self._state.signature[0]])
        self._at_once = AtOnce(self.graph, self._state)
        self.compiled = chosen(self._model, request.train) if compiled is None else compiled
        self._fits, self.note = False, ""
        if trains_itself(self._model):
            self._fit_from_now_on("it has a training step of its own")

    @property
    def model(self) -> Any:
        """The model, as it is at the moment."""
        return self._model

    def load(self, base: Arrays) -> None:
        """Take the base model's variables; those that do not travel keep these values. Raises ModelRefused."""
        set_weights(self._model, base)
        self._first = [base[position] for position in self.contract.personal]
        pairs = zip(self._variables, base, self.contract.variables, strict=True)
        self._kept = [(variable, array) for variable, array, spec in pairs if spec.rule == "keep"]
        if self._teacher is not None:
            set_weights(self._teacher, base)
            self._teacher.trainable = False  # a tape would record it for nothing
        self.supply.load()
        self.loaded = True

    def untouched(self, names: frozenset[str]) -> tuple[int, ...]:
        """Places among the variables that travel of those that serve these outputs alone."""
        if names not in self._untouched:
            self._untouched[names] = untouched(self._model, self.contract, names)
        return self._untouched[names]

    def take_own(self, personal: Sequence[NDArray[Any]] | None) -> None:
        """Take a site's own values of the personal variables, before ``start``; None for the base model's."""
        for variable, values in zip(self._personal, self._first if personal is None else personal, strict=True):
            variable.assign(values)

    def own(self) -> Arrays:
        """The values of the personal variables; read-only, and lasting."""
        return [array_of(variable.value) for variable in self._personal]

    def start(self, received: Sequence[Any], seed_of: Any) -> None:
        """Put everything into the state an update starts from.

        Args:
            received: Values of the variables that travel, in the order of ``contract.changing``: tensors, or arrays,
                which are taken one after the other, so that no two copies of them are in memory.
            seed_of: Gives a seed in [0, 2**31) for a position of the model's variables; asked where that is a seed.
        """
        if any(isinstance(value, np.ndarray) for value in received):
            received = self._state.placed(received)
        self._start(list(received), self._state.seeds(seed_of))
        if not self._initial.constant:
            self._initial.reset()
        self._given = self._state.given(self.graph.descent.groups, received, self.supply.tensors)

    def train(self, total: Any, piece: Piece) -> Any:
        """Steps over the examples of a piece; the last batch may be smaller.

        Args:
            total: What the last piece returned, 0 for the first; float64 tensor.
            piece: Examples in the order in which they are used.

        Returns:
            The sum of losses times examples, each loss as before its step; float64 tensor.
        """
        if self._fits:
            return total + fit(self._model, piece, self.graph.batch)
        try:
            return self.graph.train(total, piece, self._given, compiled=self.compiled)
        except Exception as error:  # noqa: BLE001 - a layer of the site's own raises what it likes when it is traced
            self._simplify(error)
        return self.train(total, piece)

    def finish(self) -> None:
        """What an optimizer does after its last step, such as putting averages in place."""
        self._model.optimizer.finalize_variable_values(self._trained)

    @property
    def at_once(self) -> bool:
        """Whether ``train_at_once`` may be tried: all that an update consists of can be traced."""
        optimizer = self._model.optimizer
        inherited = type(optimizer).finalize_variable_values is keras.optimizers.Optimizer.finalize_variable_values
        finishes = optimizer.use_ema or not inherited
        return self.graph.traced and not self._fits and self._initial.constant and not finishes

    def train_at_once(self, piece: Piece, received: Sequence[Any], seed_of: Any) -> tuple[Any, Arrays] | None:
        """``start``, ``train``, ``finish`` and ``update`` in one call, with the same bits.

        Args:
            piece: All examples of the update, at most ``graph.steps`` batches.
            received: As ``start`` has it; tensors.
            seed_of: As ``start`` has it; None where ``start`` was called.

        Returns:
            What ``train`` returns, and the update. None where the model does not take it; nothing is trained then.
        """
        seeds = self._state.seeds(seed_of) if seed_of else []
        try:
            function = self._at_once.function(piece, begins=seed_of is not None, compiled=self.compiled)
        except Exception as error:  # noqa: BLE001 - as in ``train``
            self._simplify(error)
            return None
        try:
            total, changes = function(list(received), seeds, self.supply.tensors, piece.parts, tf.constant(piece.rows))
        except tf.errors.OpError as error:
            self._simplify(error)
            return None
        return total, list(map(array_of, changes))

    def evaluate(self, pieces: Iterable[Piece], lacking: frozenset[str] = frozenset()) -> dict[str, float]:
        """Loss (mean over examples, regularisation included) and metrics of the model as it is, by name.

        Metrics take no account of sample weights; those that are not finite are left out, the loss is not. So are those
        of outputs in ``lacking``, for which there are no labels.
        """
        total, count = tf.constant(0, tf.float64), 0
        metrics: list[Any] = []
        for piece in pieces:
            total, metrics = self._evaluate(total, piece, first=not count)
            count += len(piece.rows)
        values = zip(self.graph.metric_names, map(float, metrics), strict=True)
        known = self.graph.metric_names_of(lacking)
        return {"loss": float(total) / count} | {n: v for n, v in values if np.isfinite(v) and n not in known}

    def values(self) -> Arrays:
        """The variables that travel, in the order of ``contract.changing``; read-only, and lasting."""
        return [array_of(self._variables[p].value) for p in self.contract.changing]

    def update(self, received: Sequence[Any]) -> Arrays:
        """The variables that travel minus ``received``, tensors in the order of ``contract.changing``; in one call."""
        return list(map(array_of, self._subtract(list(received))))

    def check_kept(self) -> None:
        """Raises RuntimeError where a variable that does not travel changed: a fault of ours, never of a peer."""
        for variable, array in self._kept:
            if not np.array_equal(_bytes(array_of(variable.value)), _bytes(array)):
                raise RuntimeError(f"variable {variable.path} must not change in training, but did")

    def _training(self) -> list[Any]:
        """The variables that train, in the order of their positions: what the contract says, and no stage freezes."""
        trainable = set(map(id, self._model.trainable_variables))
        pairs = zip(self._variables, self.contract.variables, strict=True)
        return [v for v, s in pairs if s.rule in {"train", "personal"} and id(v) in trainable]

    def _evaluate(self, total: Any, piece: Piece, *, first: bool) -> tuple[Any, list[Any]]:
        try:
            return self.graph.evaluate(total, piece, first=first)
        except tf.errors.OpError:
            raise
        except Exception as error:
            if not self.graph.traced:
                raise
            self.graph.traced = False
            why = f"it cannot be traced, {type(error).__name__}"
            self._tell(f"{why}; it is computed operation by operation, more slowly")
            return self.graph.evaluate(total, piece, first=first)

    def _simplify(self, error: Exception) -> None:
        """Leave out what a model did not take when it was to be trained; raises ``error`` where that is nothing."""
        if not isinstance(error, tf.errors.OpError):
            self._fit_from_now_on(f"its step cannot be traced, {type(error).__name__}")
            self._model.run_eagerly = True
            return
        if not self.compiled:
            raise error
        log.warning("XLA does not take this model, it is trained without: %s", str(error).split("\n")[0])
        self.compiled = False

    def _fit_from_now_on(self, why: str) -> None:
        """Train through Keras; said once for a model. Raises DeclinedRequest where the strategy adds to the loss."""
        if not self.graph.descent.plain:
            log.warning("model %s: %s", self._model.name, why)
            expected = "one without objectives in a step, for this model trains by a step of its own"
            raise DeclinedRequest("request-invalid", "strategy", expected)
        self._tell(f"{why}; it trains through Keras' fit, more slowly")
        self._fits = True

    def _tell(self, text: str) -> None:
        self.note = f"model {self._model.name}: {text}"
        log.warning("%s", self.note)


def _check_variables(model: Any, request: PrepareRequest) -> None:
    """The frozen model's variables are the contract's; in a stage some of those that change may stay."""
    contract, found = request.contract, variable_specs(model, request.strategy)
    if len(found) != len(contract.variables):
        raise DeclinedRequest("model-mismatch", "architecture", f"{len(contract.variables)} variables")
    for position, (got, expected) in enumerate(zip(found, contract.variables, strict=True)):
        stays = bool(request.train.stages) and got.rule == "keep" and expected.rule != "local"
        if got != (expected.model_copy(update={"rule": "keep"}) if stays else expected):
            text = f"{expected.dtype} {list(expected.shape)}, rule {expected.rule}, as the contract has it"
            raise DeclinedRequest("model-mismatch", f"variable {key(position)}", text)


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
