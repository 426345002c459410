"""Sites whose data change in one way or not at all, as the checks that they would answer: counts, without examples.

Sites are unlike each other: each has label frequencies of its own (Dirichlet, 5) and inputs around a place of its own.
An example has four inputs, normal around a place for its label, and one of five labels; the model knows the labels'
places and not what is peculiar to a site. What a site counts is drawn from the shares that 50,000 such examples have.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.checking.suppress import hidden
from fedretrain.checks import AGE_EDGES_DAYS, CONFIDENCE_BINS
from fedretrain.contract import Feature
from server.checking.document import Check, Counts, SiteCheck, Window

Floats = NDArray[Any]

LABELS = 5
INPUTS = 4
CELLS = 10
_SPREAD = 1.1  # of the labels' places, in standard deviations of an input
_DRAWN = 50_000
_MISSING = 0.02


@dataclass(frozen=True)
class Guarding:
    """What sites do to their counts: the smallest one that leaves, and epsilon of the noise on each."""

    name: str
    min_count: int = 1
    epsilon: float | None = None


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
