"""What a site costs in a simulation beside its training: the same images at 10, 100, 1,000 and 10,000 sites.

All sites take part in every round and train with batches of six, so that a round is the same 10,000 steps over the
same 60,000 images however finely they are divided: whatever grows with the number of sites is what a site costs.

Use::

    python -m simulations.benchmarks.sites --mnist mnist.npz --markdown sites.md
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fedretrain.errors import FedretrainError
from simulations.partition import Kind, Scheme, partition

from .environment import Environment
from .setting import Images, load_mnist, made_up, make_model
from .table import Figure, Table, common_arguments, emit
from .watched import Watched, simulate

SITES = (10, 100, 1000, 10_000)
BATCH = 6
_ROUNDS = 5
_SMOKE_IMAGES, _SMOKE_SITES, _SMOKE_ROUNDS = 120, (20,), 3
_GATE_IMAGES = 1000
_JOB = """\
[model]
path = "base.keras"

[train]
rounds = {rounds}
batch_size = {batch}
optimizer = {{ name = "sgd", learning_rate = 0.05 }}
loss = "sparse_categorical_crossentropy"
metrics = ["accuracy"]
validation_fraction = 0.0

[participation]
deadline_s = 3600

[[holdout]]
name = "gate"
path = "gate.npz"
must = "improve"

[simulation]
sites = "sites"
"""


@dataclass(frozen=True)
class Costs:
    """One number of sites.

    Attributes:
        sites: How many.
        prepare: Seconds from the first worker that is asked to the first round.
        seconds: Of a round.
        cpu: CPU seconds of a round.
        memory: The most bytes all processes held at once.
    """

    sites: int
    prepare: float
    seconds: float
    cpu: float
    memory: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.sites", description=__doc__)
    common_arguments(parser)
    parser.add_argument("--sites", type=int, nargs="+", help=f"how many ({' '.join(map(str, SITES))})")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help=f"at least 3; the first is left out ({_ROUNDS})")
    parser.add_argument("--workers", type=int, help="as for `fedretrain simulate`")
    options = parser.parse_args(arguments)
    images, counts, rounds = None, options.sites or SITES, options.rounds
    if options.smoke:
        images, counts, rounds = made_up(_SMOKE_IMAGES), options.sites or _SMOKE_SITES, _SMOKE_ROUNDS
    machine = Environment.now()
    try:
        train = images or load_mnist(options.mnist)[0]
        found = [measure(train, count, rounds, options.workers) for count in counts]
        emit([replace(_table(found, len(train)), environment=machine)], options)
    except FedretrainError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def measure(train: Images, sites: int, rounds: int, workers: int | None = None) -> Costs:
    """Run a simulation of so many sites; raises FedretrainError where it does not end with a verdict."""
    sys.stderr.write(f"{sites} sites\n")
    with tempfile.TemporaryDirectory(prefix="fr-sites-") as made:
        folder = Path(made)
        arrays: dict[str, Any] = {"x": train.inputs("2nn"), "y": train.y.astype(np.int32)}
        np.savez(folder / "all.npz", **arrays)
        np.savez(folder / "gate.npz", **{name: array[:_GATE_IMAGES] for name, array in arrays.items()})
        partition(folder / "all.npz", folder / "sites", Scheme(Kind.iid, sites))
        make_model("2nn").save(folder / "base.keras")
        (folder / "job.toml").write_text(_JOB.format(rounds=rounds, batch=BATCH))
        return costs(sites, simulate(folder / "job.toml", folder / "out", workers=workers))


def costs(sites: int, run: Watched) -> Costs:
    """From a run's events; the first round, in which workers read data and trace the step, is left out."""
    begun, ended = run.of("round-started"), run.of("round-finished")
    steps = list(pairwise(ended))
    return Costs(
        sites=sites,
        prepare=begun[0].seconds - run.of("run-started")[0].seconds,
        seconds=median(after.seconds - before.seconds for before, after in steps),
        cpu=(ended[-1].cpu - ended[0].cpu) / len(steps),
        memory=run.memory,
    )


def _table(found: Sequence[Costs], images: int) -> Table:
    """Every figure beside that of the fewest sites, and what each further site adds to it."""
    base = found[0]
    table = Table(
        "sites",
        f"A round of {images // BATCH:,} steps over {images:,} images, divided among more and more sites",
        ("sites", "prepare, s", "s a round", "CPU s a round", "CPU ms a round, each further site", "memory, MB"),
        baseline=f"{base.sites} sites",
        note=_NOTE,
        command="python -m simulations.benchmarks.sites --mnist mnist.npz",
    )
    for costs_ in found:
        more = costs_.sites - base.sites
        table.add(
            f"{costs_.sites:,}",
            costs_.prepare,
            Figure(costs_.seconds, base.seconds),
            Figure(costs_.cpu, base.cpu),
            1000 * (costs_.cpu - base.cpu) / more if more else None,
            Figure(costs_.memory / 1e6, base.memory / 1e6),
        )
    return table


_NOTE = (
    "2NN, batches of six, all sites in every round, so that the steps are the same in each line. Memory is the most "
    "that all processes held at once, shared pages counted once; CPU time is that of all processes."
)


if __name__ == "__main__":
    sys.exit(main())
