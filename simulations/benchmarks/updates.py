"""Client updates: CPU seconds for each, how many a second, and what passes until the first round is over.

Use::

    python -m simulations.benchmarks.updates --mnist PATH

McMahan et al.'s setting: MNIST at 100 sites of 600 examples, 10 sites a round, batches of 10, SGD with a rate of 0.1.
All contenders do the same steps (``simulations.benchmarks.race``). Other work on the machine is measured too.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console

from fedretrain.errors import FedretrainError

from .baselines import floor, flower_runs, ours, pfl_runs
from .race import Case, Contender, Timing, Work, race
from .setting import Images, load_mnist, made_up, split_evenly
from .table import Table, common_arguments, emit

FLOOR, OURS = "TensorFlow alone", "fedretrain"
CONTENDERS = {
    "floor": Contender(FLOOR, floor.prepare),
    "xla": Contender("TensorFlow alone, XLA", partial(floor.prepare, compiled=True), models=("2nn",)),
    "ours": Contender(OURS, ours.prepare),
    "validating": Contender("fedretrain, sites evaluate too", partial(ours.prepare, validating=True)),
    "ours-flower": Contender("fedretrain --engine flower", partial(ours.prepare, engine="flower")),
    "pfl": Contender("pfl-research", pfl_runs.prepare),
    "flower": Contender("Flower, quickstart", flower_runs.prepare),
    "flower-keep": Contender("Flower, model kept in the actor", partial(flower_runs.prepare, keep=True)),
}
CASES = (Case("2nn", 1), Case("2nn", 5), Case("cnn", 1))
_COMMAND = "python -m simulations.benchmarks.updates --mnist PATH"
Found = dict[tuple[str, Case], Timing]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    options = _parse(arguments)
    tables = _empty(options)
    folder = Path(tempfile.mkdtemp(prefix="fr-", dir=options.work))
    try:
        found = _measured(folder, options)
    except FedretrainError as error:
        _say(str(error), "red")
        return error.exit_code
    finally:
        if options.work is None:
            shutil.rmtree(folder, ignore_errors=True)
    emit(_filled(tables, found, options), options)
    return 0


def _measured(folder: Path, options: argparse.Namespace) -> Found:
    """All timings. A contender that cannot run is left out, if it is neither ours nor the baseline of all."""
    found: Found = {}
    for case in options.cases:
        data = _write_data(folder, case.model, options)
        work = Work(case, data, per_round=options.per_round, processes=options.processes)
        for key in options.only:
            contender = CONTENDERS[key]
            place = folder / f"{key}-{case.model}-{case.epochs}"
            place.mkdir()
            try:
                if case.model in contender.models:
                    found[key, case] = race(contender, work, place, options.seconds)
                    _say(f"{contender.name}, {case.title}: {found[key, case].text()}", "dim")
            except FedretrainError as error:
                if key in {"floor", "ours"}:
                    raise
                _say(f"{contender.name}, {case.title}: {error}", "red")
            if options.work is None:
                shutil.rmtree(place, ignore_errors=True)
    return found


def _say(text: str, style: str) -> None:
    Console(stderr=True, soft_wrap=True).print(text, style=style, markup=False, highlight=False)


def _write_data(folder: Path, model: str, options: argparse.Namespace) -> Path:
    """The sites' examples as ``Work.data`` has them; made once for each model."""
    data = folder / f"data-{model}"
    if data.exists():
        return data
    train, test = _images(options)
    data.mkdir()
    parts = split_evenly(train, options.sites, options.examples)
    np.save(data / "x.npy", np.stack([part.inputs(model) for part in parts]))
    np.save(data / "y.npy", np.stack([part.y for part in parts]))
    np.save(data / "x_test.npy", test.inputs(model))
    np.save(data / "y_test.npy", test.y)
    return data


def _images(options: argparse.Namespace) -> tuple[Images, Images]:
    return (made_up(200), made_up(200, seed=1)) if options.smoke else load_mnist(options.mnist)


def _empty(options: argparse.Namespace) -> list[Table]:
    """The tables without rows, made before anything is measured: they know what the machine did until then."""
    titles = [case.title for case in options.cases]
    return [
        Table("cpu-per-update", "CPU seconds for a client update", ("", *titles), command=_COMMAND),
        Table(
            "updates-per-second",
            f"Client updates a second, {options.processes} processes",
            ("", *titles),
            command=_COMMAND,
        ),
        Table(
            "start-up",
            "From the command until the first round is over",
            ("", "s until it begins", "s until it is over", "CPU s until it is over"),
            note=f"Median over {', '.join(titles)}.",
            command=_COMMAND,
        ),
    ]


def _filled(tables: list[Table], found: Found, options: argparse.Namespace) -> list[Table]:
    cpu, rate, start = tables
    rows = [key for key in options.only if any(key == other for other, _ in found)]
    for key in rows:
        name = CONTENDERS[key].name
        timings = [found.get((key, case)) for case in options.cases]
        ran = [timing for timing in timings if timing is not None]
        cpu.add(name, *(timing.cpu_per_update if timing else None for timing in timings))
        rate.add(name, *(timing.rate if timing else None for timing in timings))
        stages = [(timing.begun, timing.first, timing.first_cpu) for timing in ran]
        start.add(name, *map(median, zip(*stages, strict=True)))
    if "floor" not in rows:
        return tables
    return [cpu.against(FLOOR), rate.against(FLOOR), start.against(FLOOR)]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.updates", description=__doc__)
    common_arguments(parser)
    cases = {f"{case.model}-{case.epochs}": case for case in CASES}
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), help="some of the contenders")
    parser.add_argument("--cases", nargs="+", choices=list(cases), default=list(cases), help="some of the cases")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each is watched (30)")
    parser.add_argument("--work", type=Path, help="folder in which what is made stays; default: nothing stays")
    options = parser.parse_args(arguments)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    options.sites, options.examples, options.per_round, options.processes = 100, 600, 10, cores
    options.cases = [cases[name] for name in options.cases]
    options.only = options.only or list(CONTENDERS)
    if options.smoke:
        options.sites, options.examples, options.per_round, options.processes = 4, 60, 2, 1
        options.cases, options.seconds, options.only = [CASES[0]], 0.2, ["floor", "ours"]
    return options


if __name__ == "__main__":
    sys.exit(main())
