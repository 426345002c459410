"""What the check for drift gets wrong: false alarms where nothing changed, and what it finds where something did.

Sites are unlike each other: each has label frequencies of its own (Dirichlet, 5) and inputs around a place of its own.
An example has four inputs, normal around a place for its label, and one of five labels; the model knows how they hang
together, up to the sites' frequencies, and is right about three in four. What a site counts is drawn from the shares
that 50,000 such examples have, so that a check costs no examples. Checks are analysed as the server analyses them.

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
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.checking.suppress import hidden
from fedretrain.checks import AGE_EDGES_DAYS, CONFIDENCE_BINS, WatchSection
from fedretrain.contract import Feature
from fedretrain.errors import FedretrainError
from server.checking.document import Check, Counts, SiteCheck, Window
from server.drift.analyse import analyse
from server.drift.findings import KINDS

from .table import Table, common_arguments, emit

Floats = NDArray[Any]

SEEDS = 500
EXAMPLES = (100, 1000, 10_000)
SITES = (2, 10, 50)
LABELS = 5
INPUTS = 4
CELLS = 10
_SPREAD = 1.1  # of the labels' places, in standard deviations of an input
_DRAWN = 50_000
_MISSING = 0.02
_SETTINGS = WatchSection()


@dataclass(frozen=True)
class Guarding:
    """What sites do to their counts: the smallest one that leaves, and epsilon of the noise on each."""

    name: str
    min_count: int = 1
    epsilon: float | None = None


GUARDINGS = (
    Guarding("as they are"),
    Guarding("none below 5", 5),
    Guarding("none below 10, noise of epsilon 1", 10, 1.0),
    Guarding("none below 10, noise of epsilon 0.1", 10, 0.1),
)


@dataclass(frozen=True)
class Change:
    """What happens between the windows, at a share of the sites.

    Attributes:
        name: In words.
        kind: What should be found.
        inputs: How far the first input moves, in standard deviations of its own.
        labels: How much of the examples becomes label 0 instead.
        swapped: Share of the examples of label 0, or of label 1 where it is rarer, that exchange names with as many
            of the other.
        sites: At which share of the sites.
        opposite: Whether every second of them moves the other way.
    """

    name: str
    kind: str
    inputs: float = 0.0
    labels: float = 0.0
    swapped: float = 0.0
    sites: float = 1.0
    opposite: bool = False


NOTHING = Change("nothing", "")
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


@dataclass(frozen=True, eq=False)
class Shares:
    """How probable a site's cells are: of each input's histogram [inputs, cells], and [true, answer, confidence]."""

    inputs: Floats
    answers: Floats
    confidence: Floats


@lru_cache(maxsize=1024)
def shares(site: int, change: Change) -> Shares:
    """Of a site by its number, which has its own frequencies and place, after a change."""
    drawing = np.random.default_rng([7, site])
    priors = drawing.dirichlet(np.full(LABELS, 5.0))
    place = drawing.normal(0, 0.3, INPUTS)
    places = _SPREAD * np.random.default_rng(5).normal(size=(LABELS, INPUTS))
    frequencies = (1 - change.labels) * priors + change.labels * np.eye(LABELS)[0]
    y = drawing.choice(LABELS, _DRAWN, p=frequencies)
    x = places[y] + place + drawing.normal(size=(_DRAWN, INPUTS))
    if change.inputs:  # labels follow from inputs as they did
        x[:, 0] += change.inputs * x[:, 0].std()
        probable = _posterior(x - place, places, priors)
        y = (drawing.random((_DRAWN, 1)) > probable.cumsum(axis=1)).sum(axis=1).clip(max=LABELS - 1)
    if change.swapped:
        as_many = frequencies[:2].min() / frequencies[y.clip(max=1)]  # of one label as of the other
        swapped = (drawing.random(_DRAWN) < change.swapped * as_many) & (y < 2)
        y = np.where(swapped, 1 - y, y)
    return _shares(x, y, _posterior(x, places, np.full(LABELS, 1 / LABELS)))


def _posterior(x: Floats, places: Floats, priors: Floats) -> Floats:
    logits = x @ places.T - (places**2).sum(axis=1) / 2 + np.log(priors)
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def _shares(x: Floats, y: NDArray[Any], known: Floats) -> Shares:
    cells = np.stack([np.searchsorted(_edges(), column, side="right") for column in x.T])
    inputs = np.stack([np.bincount(column, minlength=CELLS) for column in cells]) / len(x)
    sure = known.max(axis=1)
    bins = np.minimum((sure * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
    joint = np.zeros((LABELS, LABELS, CONFIDENCE_BINS))
    np.add.at(joint, (y, known.argmax(axis=1), bins), 1)
    total = np.bincount(bins, minlength=CONFIDENCE_BINS)
    mean = np.bincount(bins, sure, minlength=CONFIDENCE_BINS) / np.maximum(total, 1)
    return Shares(inputs, joint / len(x), mean)


def _edges() -> Floats:
    return np.linspace(-2.4, 2.4, CELLS - 1)


def window(drawn: np.random.Generator, of: Shares, n: int, guarding: Guarding) -> Window:
    """A window's counts, as they leave a site."""

    def told(counts: NDArray[np.int64]) -> list[Any]:
        if guarding.epsilon is None:
            plain = hidden(counts, guarding.min_count)
        else:
            stop = 1 - np.exp(-guarding.epsilon)  # the difference of two geometric variables is discrete Laplace
            noisy = counts + drawn.geometric(stop, counts.shape) - drawn.geometric(stop, counts.shape)
            plain = np.where((noisy > 0) & (noisy < guarding.min_count), -1, np.maximum(noisy, 0))
        return [[None if c < 0 else int(c) for c in row] for row in np.atleast_2d(plain)]

    def flat(counts: NDArray[np.int64]) -> Counts:
        return tuple(told(counts)[0])

    answers = drawn.multinomial(n, of.answers.reshape(-1)).reshape(of.answers.shape)
    right = np.einsum("kkb->b", answers)
    per_bin = answers.sum(axis=(0, 1))
    missing = drawn.binomial(n, _MISSING, INPUTS)
    return Window(
        examples=n,
        histograms={f"x{i}": flat(drawn.multinomial(n, row)) for i, row in enumerate(of.inputs)},
        missing={f"x{i}": flat(np.array([count]))[0] for i, count in enumerate(missing)},
        impossible={f"x{i}": 0 for i in range(INPUTS)},
        constant=(),
        duplicates=0,
        label_noise=flat(np.array([drawn.binomial(n, _MISSING)]))[0],
        labels={"y": flat(np.append(answers.sum(axis=(1, 2)), 0))},
        predicted={"y": flat(answers.sum(axis=(0, 2)))},
        confusion={"y": tuple(tuple(row) for row in told(answers.sum(axis=2)))},
        confidence={"y": flat(per_bin)},
        confidence_sum={"y": tuple(float(c) for c in per_bin * of.confidence)},
        right={"y": flat(right)},
        labelled={"y": flat(per_bin)},
        age=(0,) * (len(AGE_EDGES_DAYS) + 1),
    )


def check(seed: int, n: int, sites: int, guarding: Guarding, change: Change) -> Check:
    """A check of as many sites, whose windows have n examples each, ``change`` between them."""
    drawn = np.random.default_rng([seed, n, sites])
    answers = {}
    for number in range(sites):
        changed = change if number < max(1, round(change.sites * sites)) else NOTHING
        if change.opposite and number % 2:
            changed = Change("the other way", change.kind, inputs=-change.inputs)
        name = f"site-{number:02}"
        reference, recent = (window(drawn, shares(number, c), n, guarding) for c in (NOTHING, changed))
        answers[name] = SiteCheck(
            name, reference, recent, {"stream": "not asked"}, guarding.min_count, guarding.epsilon, {}, ()
        )
    features = tuple(
        Feature(name=f"x{i}", kind="column", input="x", index=i, edges=tuple(map(float, _edges())))
        for i in range(INPUTS)
    )
    labels = {"y": (*map(str, range(LABELS)), "unknown")}
    return Check("check", "", "job", None, "contract", None, labels, features, answers, {}, 0.0, 0)


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
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"checks of each kind ({SEEDS})")
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
    """What is found where something changed."""
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
        command=f"python -m simulations.benchmarks.drift --seeds {seeds}",
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
