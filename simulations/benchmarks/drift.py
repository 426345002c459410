"""What the check for drift gets wrong: false alarms where nothing changed, and what it finds where something did.

Checks are drawn (``simulations.benchmarks.drift_worlds``) and analysed as the server analyses them.

Use::

    python -m simulations.benchmarks.drift --into docs/watching.md
    python -m simulations.benchmarks.drift --seeds 500 --only power
"""

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product

import numpy as np

from fedretrain.checks import WatchSection
from fedretrain.errors import FedretrainError
from server.drift.analyse import analyse
from server.drift.findings import KINDS

from .drift_worlds import NOTHING, Change, Guarding, check
from .table import Table, common_arguments, emit

SEEDS = 500
EXAMPLES = (100, 1000, 10_000)
SITES = (2, 10, 50)
_SETTINGS = WatchSection()
GUARDINGS = (
    Guarding("as they are"),
    Guarding("none below 5", 5),
    Guarding("none below 10, noise of epsilon 1", 10, 1.0),
    Guarding("none below 10, noise of epsilon 0.1", 10, 0.1),
)


CHANGES = (
    Change("one of four inputs moves by 0.3 of its spread", "covariate", inputs=0.3),
    Change("by 0.5", "covariate", inputs=0.5),
    Change("by 0.5, at one site in ten", "covariate", inputs=0.5, sites=0.1),
    Change("by 0.5, up at half of the sites and down at the others", "covariate", inputs=0.5, opposite=True),
    Change("an eighth of the examples has label 0 instead", "label", labels=0.125),
    Change("a quarter", "label", labels=0.25),
    Change("a quarter, at one site in ten", "label", labels=0.25, sites=0.1),
    Change("a quarter of a label exchanges names with another", "concept", swapped=0.25),
    Change("half of it", "concept", swapped=0.5),
    Change("half of it, at one site in ten", "concept", swapped=0.5, sites=0.1),
)


@dataclass(frozen=True)
class Case:
    """Checks that are alike but for the seed."""

    n: int
    sites: int
    guarding: Guarding
    change: Change


@dataclass(frozen=True)
class Outcome:
    """Of one check: the kinds that were found, and of how many of the questions there was too little data."""

    kinds: frozenset[str]
    too_little: float


def outcome(case: Case, seed: int) -> Outcome:
    """Draw a check and analyse it."""
    found = analyse(check(seed, case.n, case.sites, case.guarding, case.change), (), _SETTINGS)
    drifted = frozenset(kind for kind in KINDS if found.drifted(kind))
    silent = [f.verdict == "too little data" for f in found.findings]
    return Outcome(drifted, float(np.mean(silent)))


def run(cases: Sequence[Case], seeds: int, workers: int) -> dict[Case, list[Outcome]]:
    """All outcomes of each case; the same whatever the number of workers."""
    asked = list(product(cases, range(seeds)))
    with ProcessPoolExecutor(workers) as pool:
        found = pool.map(_outcome, asked, chunksize=max(1, min(50, len(asked) // (4 * workers))))
        outcomes: dict[Case, list[Outcome]] = {case: [] for case in cases}
        for (case, _), one in zip(asked, found, strict=True):
            outcomes[case].append(one)
    return outcomes


def _outcome(asked: tuple[Case, int]) -> Outcome:
    return outcome(*asked)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.drift", description=__doc__)
    common_arguments(parser)
    parser.add_argument(
        "--seeds", type=int, default=SEEDS, help=f"false alarms: checks of each kind ({SEEDS}); power: a fifth"
    )
    parser.add_argument("--only", choices=("alarms", "power"), help="one of both tables")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes; default: one per core")
    options = parser.parse_args(arguments)
    seeds = 2 if options.smoke else options.seeds
    try:
        made = [table(seeds, options) for name, table in _TABLES.items() if options.only in {None, name}]
        emit(made, options)
    except FedretrainError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _alarms(seeds: int, options: argparse.Namespace) -> Table:
    """False alarms where nothing changed."""
    sites, examples = ((2,), (100,)) if options.smoke else (SITES, EXAMPLES)
    cases = [
        Case(n, s, g, NOTHING) for s in sites for n in examples for g in GUARDINGS if s < SITES[-1] or not g.epsilon
    ]
    found = run(cases, seeds, options.workers)
    table = Table(
        "drift-alarms",
        f"Checks that call something drift where nothing changed, of {seeds} each",
        ("sites", "examples in each window", *(f"counts {g.name}" for g in GUARDINGS)),
        note=_ALARMS,
        command=f"python -m simulations.benchmarks.drift --seeds {seeds}",
    )
    for s, n in product(sites, examples):
        cells: list[str | None] = []
        for g in GUARDINGS:
            outcomes = found.get(Case(n, s, g, NOTHING))
            if outcomes is None:
                cells.append(None)
                continue
            alarms, silent = sum(bool(o.kinds) for o in outcomes), np.mean([o.too_little for o in outcomes])
            cells.append(f"{100 * alarms / seeds:.1f} % ({100 * silent:.0f} %)")
        table.add(f"{s}", f"{n:,}", *cells)
    return table


def _power(seeds: int, options: argparse.Namespace) -> Table:
    """What is found where something changed; power needs fewer seeds than rare alarms do."""
    seeds = max(seeds // 5, 1)
    examples = (100,) if options.smoke else (100, 300, 1000, 10_000)
    changes = CHANGES[:1] if options.smoke else CHANGES
    sites, guarding = (2 if options.smoke else 10), GUARDINGS[1]
    cases = [Case(n, sites, guarding, change) for change in changes for n in examples]
    found = run(cases, seeds, options.workers)
    table = Table(
        "drift-power",
        f"Checks of {sites} sites that find a change, of {seeds} each, by the number of examples in each window",
        ("what changes", "should be", *(f"{n:,}" for n in examples)),
        note=_POWER,
        command=f"python -m simulations.benchmarks.drift --seeds {seeds * 5}",
    )
    for change in changes:
        outcomes = [found[Case(n, sites, guarding, change)] for n in examples]
        table.add(change.name, change.kind, *(_found(of, change) for of in outcomes))
    return table


def _found(outcomes: Sequence[Outcome], change: Change) -> str:
    right = sum(change.kind in o.kinds for o in outcomes)
    told = f"{100 * right / len(outcomes):.0f} %"
    others = {kind: sum(kind in o.kinds for o in outcomes) / len(outcomes) for kind in KINDS if kind != change.kind}
    also = [f"{kind} {100 * share:.0f} %" for kind, share in others.items() if share >= 0.02]
    return f"{told} (also {', '.join(also)})" if also else told


_TABLES = {"alarms": _alarms, "power": _power}

_ALARMS = (
    "Every site has four inputs with histograms of ten cells, five labels, calibration bins and quality counts, all "
    'labelled. In brackets: the share of the questions that are answered with "too little data".'
)
_POWER = (
    "Counts below 5 are suppressed. A percentage is of checks in which something of the kind that it should be is "
    "called drift, at a site or at all together; in brackets what else is, where it is in 2 % or more. Moving an input "
    "changes labels too where it tells labels apart, and other label frequencies move inputs: both are then true."
)


if __name__ == "__main__":
    sys.exit(main())
