"""Whether XLA compiles the steps of a model: a rule on the job, and where one machine alone decides, a timed trial.

Compiled steps have other last bits than TensorFlow's. All who train in one run, and a simulation and the deployment it
stands for, have to decide alike, so the rule asks nothing but the job: a site goes by it. ``probe`` is for a party
that decides for all others, as the local engine does for its workers: it tries what the rule allows, and drops it
where it is clearly slower on this machine.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fedretrain import atomic
from fedretrain.architecture import all_layers
from fedretrain.digest import json_digest
from fedretrain.job import TrainSection
from fedretrain.messages import PrepareRequest

log = logging.getLogger(__name__)

MOST_PARAMETERS = 4_000_000
"""Where products take most of the time XLA gains nothing, and its loop holds the variables twice."""

FEWEST_ROUNDS = 20
"""Compiling takes each process a second or two, which a run of few rounds does not earn back."""

_SLOWER = 1.25
_SUITED = frozenset(
    {
        *("InputLayer", "Dense", "Flatten", "Reshape", "Permute", "RepeatVector", "Activation", "ReLU", "LeakyReLU"),
        *("PReLU", "ELU", "Softmax", "Dropout", "AlphaDropout", "GaussianDropout", "GaussianNoise", "Normalization"),
        *("BatchNormalization", "LayerNormalization", "UnitNormalization", "Rescaling", "ActivityRegularization"),
        *("Add", "Average", "Concatenate", "Dot", "Maximum", "Minimum", "Multiply", "Subtract", "Identity"),
        *("Sequential", "Functional"),
    }
)
_remembered: dict[str, bool] = {}


def chosen(model: "keras.Model", train: TrainSection) -> bool:
    """The rule: a model that is ``suited``, in a run long enough."""
    return train.rounds >= FEWEST_ROUNDS and suited(model)


def suited(model: "keras.Model") -> bool:
    """Whether the model is of the kind that XLA makes faster on CPUs: dense layers and what goes between them, small.

    Convolutions in a loop are many times slower with it; recurrent layers and a site's own classes are left alone.
    """
    if any(None in tensor.shape[1:] for tensor in model.inputs) or model.count_params() > MOST_PARAMETERS:
        return False
    return all(type(layer).__name__ in _SUITED and _of_keras(layer) for layer in all_layers(model))


def probe(request: PrepareRequest, allow_modules: Sequence[str] = (), folder: Path | None = None) -> bool:
    """Whether to compile, by the rule and a trial of both ways; every worker of a run must be given the same answer.

    Args:
        request: What the server asks to prepare.
        allow_modules: Modules whose layer classes may be built.
        folder: Where answers are remembered from one process to the next; None: in this process alone.

    Raises:
        FedretrainError: As ``step.Learner``.
    """
    train = request.train.model_dump(mode="json", include={"optimizer", "loss", "batch_size"})
    machine = [tf.__version__, _cpu(), tf.config.threading.get_intra_op_parallelism_threads()]
    name = json_digest([request.contract.digest, list(request.freeze), train, request.strategy.model_dump(), machine])
    if name not in _remembered:
        _remembered[name] = _known(name, folder, lambda: _try(request, allow_modules))
    return _remembered[name]


def _known(name: str, folder: Path | None, find: Callable[[], bool]) -> bool:
    """What is written about ``name``, or what is found, which is written."""
    file = folder / f"compile-{name[:32]}.json" if folder else None
    if file is not None and file.exists():
        try:
            return bool(json.loads(file.read_bytes())["compile"])
        except (OSError, ValueError, TypeError, KeyError):
            log.warning("%s: damaged, tried again", file)
    answer = find()
    if file is not None:
        atomic.write_json(file, {"compile": answer})
    return answer


def _try(request: PrepareRequest, allow_modules: Sequence[str]) -> bool:
    from .trainer import build_learner

    learner = build_learner(request, tuple(allow_modules))
    if not learner.compiled:
        return False
    data = _made_up(learner)
    plain, compiled = (_seconds(learner, data, compiled=choice) for choice in (False, True))
    log.info("steps compiled by XLA take %.2g s, others %.2g s", compiled, plain)
    return compiled < _SLOWER * plain


def _made_up(learner: Any) -> Any:
    """Zeros for one call of the compiled steps."""
    from .graph import Piece, examples_signature

    count = learner.graph.steps * learner.graph.batch
    x, y, _ = examples_signature(learner.contract, weighted=False)
    x, y = ([tf.zeros([count, *spec.shape[1:]], spec.dtype) for spec in specs] for specs in (x, y))
    return Piece((x, y, []), np.arange(count, dtype=np.int32))


def _seconds(learner: Any, piece: Any, *, compiled: bool) -> float:
    """The fastest of a few calls, after the first, which traces."""
    specs = learner.contract.changing_specs
    received = [tf.zeros(spec.shape, spec.dtype) for spec in specs]
    learner.compiled, fastest = compiled, float("inf")
    for attempt in range(4):
        learner.start(received, lambda _: 0)
        started = time.process_time()
        float(learner.train(tf.constant(0, tf.float64), piece))
        if attempt:
            fastest = min(fastest, time.process_time() - started)
    return fastest


def _of_keras(layer: Any) -> bool:
    return type(layer).__module__.startswith("keras.")


def _cpu() -> str:
    """What tells one kind of machine from another."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "cpu family", "model\t", "flags")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))
