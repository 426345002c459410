"""Whether XLA makes a job's training steps faster on this machine: both ways, tried.

Use::

    python -m simulations.benchmarks.compiling JOB.toml

What it finds is for the job: ``[train] jit_compile = true`` or ``false``. Without a word in the job, its sites follow
the rule in ``client.compiling``, which no machine's speed decides, because compiled steps have other last bits.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedretrain.errors import FedretrainError
from fedretrain.job import Job, load_job
from fedretrain.messages import PrepareRequest

from .table import Figure, Table, common_arguments, emit

if TYPE_CHECKING:
    from client.step import Learner

_CALLS, _SMOKE_CALLS = 20, 2
_WAYS = {"TensorFlow": False, "XLA": True}


@dataclass(frozen=True)
class Trial:
    """CPU seconds: of the first call, which traces and compiles, and of a step in the fastest of the others."""

    first: float
    step: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    options = _parse(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from client.trainer import configure_process

    configure_process()
    try:
        request, allowed = _request(load_job(options.job))
        emit([_table(request, allowed, options.calls)], options)
    except FedretrainError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.compiling", description=__doc__)
    parser.add_argument("job", type=Path, help="the job whose model and optimizer are tried")
    common_arguments(parser)
    parser.add_argument("--calls", type=int, help=f"the fastest counts ({_CALLS}; with --smoke {_SMOKE_CALLS})")
    options = parser.parse_args(arguments)
    options.calls = options.calls or (_SMOKE_CALLS if options.smoke else _CALLS)
    return options


def _request(job: Job) -> tuple[PrepareRequest, tuple[str, ...]]:
    from server.plan import make_plan

    plan = make_plan(job, "trial")
    request = PrepareRequest(
        run=plan.run,
        contract=plan.contract,
        architecture=plan.base.architecture,
        freeze=job.model.freeze,
        train=plan.train,
        strategy=job.strategy,
    )
    return request, job.model.allow_modules


def _table(request: PrepareRequest, allowed: tuple[str, ...], calls: int) -> Table:
    from client.trainer import build_learner

    rule = build_learner(request, allowed).compiled
    columns = ["", "CPU ms a step", "first call, CPU s"]
    so = "compiled" if rule else "not compiled"
    note = f"Steps of {request.train.batch_size} examples, {so} in this job. Empty: XLA does not take the model."
    table = Table("compiling", "Training steps with and without XLA", columns, note=note)
    for name, compiled in _WAYS.items():
        learner = build_learner(request, allowed, compiled)
        found = _tried(learner, calls)
        taken = learner.compiled == compiled  # XLA does not know every operation
        table.add(name, Figure(1000 * found.step) if taken else None, Figure(found.first) if taken else None)
    return table.against("TensorFlow").ended()


def _tried(learner: "Learner", calls: int) -> Trial:
    """From zeros: neither values nor labels change what a step costs."""
    import tensorflow as tf

    received = [tf.zeros(spec.shape, spec.dtype) for spec in learner.contract.changing_specs]
    piece, seconds = _zeros(learner), []
    for _ in range(1 + calls):
        learner.start(received, lambda _: 0)
        started = time.process_time()
        float(learner.train(tf.constant(0, tf.float64), piece))
        seconds.append(time.process_time() - started)
    return Trial(seconds[0], min(seconds[1:]) / learner.graph.steps)


def _zeros(learner: "Learner") -> Any:
    """Examples for one call of as many steps as are compiled together."""
    import tensorflow as tf

    from client.graph import Piece, examples_signature

    count = learner.graph.steps * learner.graph.batch
    x, y, _ = examples_signature(learner.contract, weighted=False)
    x, y = ([tf.zeros([count, *(n or 1 for n in spec.shape[1:])], spec.dtype) for spec in specs] for specs in (x, y))
    return Piece((x, y, []), np.arange(count, dtype=np.int32))


if __name__ == "__main__":
    sys.exit(main())
