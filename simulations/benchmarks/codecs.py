"""Bytes and accuracy of each codec: the 2NN of McMahan et al. 2017 on MNIST, 100 sites with 600 random images each.

A tenth of the sites a round, one pass over their images, batches of 10, plain SGD. Every codec has the same sites,
initial weights, choices of sites and orders of images, so that a row differs from the one above by its codec alone.
Bytes are those of arrays as the run's records count them, with their headers.

Use::

    python -m simulations.benchmarks.codecs --mnist mnist.npz --work FOLDER --markdown codecs.md

What is in FOLDER is not measured again, so that a table can be made in pieces.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from fedretrain import atomic
from fedretrain.codecs import make_codec
from fedretrain.contract import VariableSpec
from fedretrain.errors import FedretrainError
from fedretrain.job import NamedConfig

from .curves import Curve
from .environment import Environment
from .mcmahan_job import Setting, write_job
from .setting import Images, load_mnist, made_up
from .table import Cell, Figure, Table, common_arguments, emit
from .watched import simulate

CODECS = {
    "float32": '"float32"',
    "float16": '"float16"',
    "int8": '"int8"',
    "int8, block = 4096": '{ name = "int8", block = 4096 }',
    "topk, share = 0.1": '{ name = "topk", share = 0.1 }',
    "topk, share = 0.01": '{ name = "topk", share = 0.01 }',
}
RATE = 0.1
TARGET = 0.95
_LAST = 10  # rounds whose accuracy is averaged
_SMOKE_IMAGES = 1200
_SHAPES = ((784, 200), (200,), (200, 200), (200,), (200, 10), (10,))  # the 2NN's variables
_REPEATS = 20
_NOTE = (
    "Down is what a site receives in a round, float32 whatever the codec; up is what it sends. Accuracy "
    "is the mean of the test accuracies after the last ten rounds, then of all seeds; a difference below the spread "
    "over seeds says nothing. Coding is CPU time for one update of the 2NN, at the site and at the server together, "
    "without the file in which topk keeps what it leaves out; what that is, a site adds to its update when it is next "
    "asked, here in {asked:.0%} of the rounds."
)


@dataclass(frozen=True)
class Outcome:
    """One run: bytes of one reply and of one request, and test accuracy after each round, the initial model first."""

    made: dict[str, Any]
    up: float
    down: float
    accuracy: tuple[float, ...]
    crossing: float | None

    @property
    def final(self) -> float:
        """Accuracy at the end, less noisy than the last round's alone."""
        return mean(self.accuracy[1:][-_LAST:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    options = _parse(arguments)
    work = options.work or Path(tempfile.mkdtemp(prefix="fr-codecs-"))
    machine = Environment.now()
    try:
        train, test = (made_up(_SMOKE_IMAGES), made_up(400, seed=1)) if options.smoke else load_mnist(options.mnist)
        setting = Setting("2nn", "iid", epochs=1, target=1.0, rate=RATE, rounds=options.rounds)
        setting = replace(setting, sites=10, fraction=0.3) if options.smoke else setting
        found = {
            codec: [_outcome(codec, setting, work, train, test, seed) for seed in range(options.seeds)]
            for codec in options.codec
        }
        emit([replace(_table(setting, found), environment=machine)], options)
    except FedretrainError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    finally:
        if options.work is None:
            shutil.rmtree(work, ignore_errors=True)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.codecs", description=__doc__)
    common_arguments(parser)
    parser.add_argument("--codec", action="append", choices=CODECS, help="one row, may be given again (all)")
    parser.add_argument("--rounds", type=int, help="of each run (100; with --smoke 2)")
    parser.add_argument("--seeds", type=int, help="runs of each codec (3; with --smoke 1)")
    parser.add_argument("--work", type=Path, help="folder in which what is measured stays; default: nothing stays")
    options = parser.parse_args(arguments)
    chosen = options.codec or (["topk, share = 0.1"] if options.smoke else list(CODECS))
    options.codec = chosen if options.smoke else list(dict.fromkeys(["float32", *chosen]))
    options.rounds = options.rounds or (2 if options.smoke else 100)
    options.seeds = options.seeds or (1 if options.smoke else 3)
    return options


def _outcome(codec: str, setting: Setting, work: Path, train: Images, test: Images, seed: int) -> Outcome:  # noqa: PLR0913, PLR0917
    """One run: from its file, or measured."""
    made = {**asdict(setting), "codec": CODECS[codec], "seed": seed, "images": len(train)}
    file = work / f"{codec.replace(', ', '-').replace(' = ', '')}-seed{seed}.json"
    if file.exists():
        known = json.loads(file.read_bytes())
        if known["made"] == made:
            return Outcome(**known | {"accuracy": tuple(known["accuracy"])})
    sys.stderr.write(f"{codec}, seed {seed}\n")
    with tempfile.TemporaryDirectory(prefix="fr-codecs-") as folder:
        job = write_job(Path(folder) / "job", setting, train, test, seed)
        with job.open("a", encoding="utf-8") as text:
            text.write(f"\n[messages]\ncodec = {CODECS[codec]}\n")
        run = simulate(job, Path(folder) / "out")
    rounds = [moment.event for moment in run.of("round-finished")]
    up, down = (
        sum(r[key] for r in rounds) / sum(r[count] for r in rounds)
        for key, count in (("bytes_up", "replies"), ("bytes_down", "requests"))
    )
    curve = Curve.of(made, run)
    outcome = Outcome(made, up, down, tuple(p.accuracy for p in curve.points), curve.crossing(TARGET))
    atomic.make_folder(work)
    atomic.write_json(file, asdict(outcome))
    return outcome


def _table(setting: Setting, found: Mapping[str, Sequence[Outcome]]) -> Table:
    table = Table(
        "codecs",
        f"What a codec saves and costs: 2NN on MNIST, {setting.sites} sites, {setting.rounds} rounds",
        (
            *("[messages] codec", "kB up", "kB down", "accuracy, %", "spread over seeds, points"),
            *("difference, points", f"rounds to {100 * TARGET:g} %", "coding, ms"),
        ),
        baseline="float32",
        note=_NOTE.format(asked=setting.fraction),
        command="python -m simulations.benchmarks.codecs --mnist mnist.npz",
    )
    plain = found.get("float32")
    for codec, outcomes in found.items():
        finals = [100 * outcome.final for outcome in outcomes]
        others = plain if codec != "float32" else None
        table.add(
            f"`{CODECS[codec]}`",
            Figure(outcomes[0].up / 1000, others[0].up / 1000 if others else None),
            outcomes[0].down / 1000,
            f"{mean(finals):.2f}",
            f"{max(finals) - min(finals):.2f}" if len(finals) > 1 else None,
            f"{mean(finals) - mean(100 * outcome.final for outcome in others):+.2f}" if others else None,
            _rounds(outcomes),
            1000 * coding_seconds(CODECS[codec]),
        )
    return table


def _rounds(outcomes: Sequence[Outcome]) -> Cell:
    """The mean over seeds; None where one did not get there."""
    crossings = [outcome.crossing for outcome in outcomes if outcome.crossing is not None]
    return round(mean(crossings), 1) if len(crossings) == len(outcomes) else None


def coding_seconds(codec: str) -> float:
    """CPU seconds for encoding and decoding one update of the 2NN, the least of some attempts."""
    value = tomllib.loads(f"codec = {codec}")["codec"]
    coded = make_codec(NamedConfig(**value) if isinstance(value, dict) else NamedConfig(name=value))
    rng = np.random.default_rng(0)
    update = [
        (VariableSpec(shape=s, dtype="float32", rule="train"), rng.standard_normal(s, np.float32)) for s in _SHAPES
    ]
    taken = []
    for _ in range(_REPEATS):
        start = time.process_time()
        for spec, values in update:
            coded.decode(coded.encode(values, spec, 0), spec)
        taken.append(time.process_time() - start)
    return min(taken)


if __name__ == "__main__":
    raise SystemExit(main())
