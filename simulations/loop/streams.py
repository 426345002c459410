"""A world that goes on, step by step: what each site reads, and what is read everywhere, all of it real digits.

Invariants:

- The same scenario, seed and number of steps give the same arrays, whatever is asked for first.
- The 1797 images are divided once: what sites read, what a model is measured on, and what holdouts and the model in use
  were made from are different images throughout.
- Every example is made from an image by a small shift and the scanner's or camera's noise, so that a hundred steps do
  not run out of them. Examples are drawn with replacement: an interval over a holdout of 500 made from 200 images is
  narrower than it should be, and a model that learnt what a site has is better there than on what is current.

Time: a step is 30 days, the first begins at ``START``; before it lie ``HISTORY`` steps of what sites have read before.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from fedretrain.errors import ConfigurationError
from simulations.digits import Floats, Part, photographed, site_names
from simulations.scenarios.base import Images, Indices, SiteData, rng

from .conditions import ABOUT, DIGITS, KNOWN, Conditions, changed, conditions

START = datetime(2025, 1, 1, tzinfo=UTC)
STEP = timedelta(days=30)
HISTORY = 3
SITES = 5
RUN = "step-"
"""Of the name of a run at the end of a step, which its number follows."""
FEWEST_STEPS, MOST_STEPS = 4, 120

_POOLS = {"base": 400, "old": 150, "new": 200, "current": 250}  # the other images are the sites'
_TRAINED_ON, _HOLDOUT, _MEASURED_ON = 1500, 500, 500
_A_STEP = (60, 121)  # examples of a site in one step
_HABITS = 20.0  # Dirichlet concentration of a site's own mixture of digits
_SHIFT = 0.4  # pixels at most, along both axes


@dataclass(frozen=True, eq=False)
class Step:
    """What one step brings.

    Attributes:
        sites: What each site has read in it; a site that is not there yet has no entry.
        current: What a model is measured on: the same world, other images.
        new: A holdout of the same world.
        old: A holdout of what was right before the change and still is.
    """

    sites: dict[str, SiteData]
    current: Part
    new: Part
    old: Part


class Stream:
    """One world.

    Args:
        scenario: One of ``simulations.loop.conditions.ABOUT``.
        seed: Decides everything that is drawn.
        steps: How many.
        sites: How many take part at the end.

    Raises:
        ConfigurationError: An unknown scenario, an impossible number, or scikit-learn is missing.
    """

    def __init__(self, scenario: str, seed: int, steps: int, sites: int = SITES) -> None:
        if scenario not in ABOUT:
            raise ConfigurationError(f"--scenario: expected one of {', '.join(ABOUT)}, got {scenario!r}")
        if not FEWEST_STEPS <= steps <= MOST_STEPS:
            raise ConfigurationError(f"--steps: expected {FEWEST_STEPS} to {MOST_STEPS}, got {steps}")
        self.scenario, self.seed, self.steps = scenario, seed, steps
        self.names = site_names(sites)
        self._images = Images.load()
        order = rng(seed, "pools").permutation(len(self._images.y))
        cuts = np.cumsum([*_POOLS.values()])
        self._pools = dict(zip([*_POOLS, "sites"], np.split(order, cuts), strict=True))
        draw = rng(seed, "sites")
        self._habits = dict(zip(self.names, draw.dirichlet([_HABITS] * DIGITS, sites), strict=True))
        self._sizes = dict(zip(self.names, draw.integers(*_A_STEP, sites).tolist(), strict=True))

    @property
    def known(self) -> int:
        """How many digits the model in use knows, from 0 on."""
        return KNOWN if self.scenario == "new-classes" else DIGITS

    @property
    def changed(self) -> int | None:
        """The first step in which the world is another; None where nothing changes."""
        return None if self.scenario == "none" else 0 if self.scenario == "seasonal" else changed(self.steps)

    def ends(self, step: int) -> datetime:
        """When a step is over; the first begins at ``START``."""
        return START + (step + 1) * STEP

    def when(self, run: str) -> datetime:
        """When a run was, in the world's time; what is not of a step was before the first."""
        step = run.removeprefix(RUN)
        return self.ends(int(step)) if step != run else START

    def base(self) -> Part:
        """What the model in use was trained on."""
        return self._everywhere("base", -1, _TRAINED_ON)

    def history(self) -> dict[str, SiteData]:
        """What the sites have read before the first step."""
        parts = [self._read(step) for step in range(-HISTORY, 0)]
        return {name: joined([part[name] for part in parts]) for name in parts[0]}

    def step(self, step: int) -> Step:
        """One step, from 0 on."""
        return Step(
            sites=self._read(step),
            current=self._everywhere("current", step, _MEASURED_ON),
            new=self._everywhere("new", step, _HOLDOUT),
            old=self._kept(step),
        )

    def _read(self, step: int) -> dict[str, SiteData]:
        """What each site that is there reads in a step, in the order in which it reads it."""
        now = conditions(self.scenario, step, self.steps, self.names)
        found = {}
        for name in self.names:
            if not now.share[name]:
                continue
            draw = rng(self.seed, f"{name} {step}")
            count = round(self._sizes[name] * now.share[name] * len(self.names))
            rows = self._drawn("sites", count, np.array(now.frequency) * self._habits[name], draw)
            part = self._seen(rows, np.full(count, now.strength[name]), now, draw)
            begins = (START + step * STEP).timestamp()
            found[name] = SiteData(part, np.floor(np.sort(draw.uniform(begins, begins + STEP.total_seconds(), count))))
        return found

    def _everywhere(self, pool: str, step: int, count: int) -> Part:
        """Examples as all sites together read them in a step."""
        now = conditions(self.scenario, step, self.steps, self.names)
        draw = rng(self.seed, f"{pool} {step}")
        rows = self._drawn(pool, count, np.array(now.frequency), draw)
        site = draw.choice(len(self.names), count, p=[now.share[name] for name in self.names])
        return self._seen(rows, np.array([now.strength[name] for name in self.names])[site], now, draw)

    def _kept(self, step: int) -> Part:
        """The old holdout: what was read before, without the digits whose name has changed."""
        before, now = (conditions(self.scenario, at, self.steps, self.names) for at in (-1, step))
        frequency = np.array(before.frequency)
        if now.exchanged is not None:
            frequency[list(now.exchanged)] = 0
        draw = rng(self.seed, "kept")
        rows = self._drawn("old", _HOLDOUT, frequency, draw)
        return self._seen(rows, np.zeros(_HOLDOUT), before, draw)

    def _drawn(self, pool: str, count: int, frequency: NDArray[np.float64], draw: np.random.Generator) -> Indices:
        """Positions of images, each digit as often as ``frequency`` [10] says."""
        rows = self._pools[pool]
        digits = self._images.y[rows]
        weight = (frequency / np.maximum(np.bincount(digits, minlength=DIGITS), 1))[digits]
        return np.asarray(draw.choice(rows, count, p=weight / weight.sum()))

    def _seen(self, rows: Indices, strength: NDArray[np.float64], now: Conditions, draw: np.random.Generator) -> Part:
        images = photographed(shifted(self._images.x[rows], draw), strength, draw)
        labels = self._images.y[rows]
        if now.exchanged is not None:
            one, other = now.exchanged
            labels = np.where(labels == one, other, np.where(labels == other, one, labels))
        return Part(images[..., None], labels.astype(np.int32))


def shifted(images: Floats, draw: np.random.Generator) -> Floats:
    """Images [n, 8, 8], each moved by a part of a pixel along both axes; beyond the edge is paper."""
    for axis in (1, 2):
        by = draw.uniform(-_SHIFT, _SHIFT, len(images)).reshape(-1, 1, 1)
        padded = np.pad(images, [(0, 0), *((1, 1) if at == axis else (0, 0) for at in (1, 2))])
        before, after = (np.take(padded, np.arange(at, at + 8), axis=axis) for at in (0, 2))
        images = ((1 - np.abs(by)) * images + np.where(by > 0, by * before, -by * after)).astype(np.float32)
    return images


def joined(parts: list[SiteData]) -> SiteData:
    """The same examples, one part after the other."""
    whole = Part(np.concatenate([one.part.x for one in parts]), np.concatenate([one.part.y for one in parts]))
    return SiteData(whole, np.concatenate([one.time for one in parts]))
