"""How far two windows' histograms are apart: the population stability index, with a threshold that scales with n.

With p the recent and q the reference share of a cell, B cells::

    PSI = sum of (p - q) ln(p / q)

Where nothing changed it is nearly (1/n + 1/m) times a chi-squared variable with B - 1 degrees of freedom (Yurdakul and
Naranjo, Journal of Risk Model Validation 14 (2020)), so its mean is (1/n + 1/m) (B - 1) and its threshold
(1/n + 1/m) chi2_{0.99, B-1}. The textbook's 0.1 is below that for small windows. Over several sites q is what the
recent mixture of sites would have had before: the mean of their reference shares, weighted by recent examples;
1/n becomes the sum of (m_s / m)^2 / n_s. Noise adds its own mean. Half an example in each cell keeps logarithms finite.

Cells are joined until each is expected to hold ``FEWEST`` examples in the smaller window and noise on it is no larger
than chance: neighbours where cells have an order, the rarest otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from .correct import Pair, least_alike, most_alike
from .tests import FEWEST, homogeneity

Floats = NDArray[Any]

LARGE = 0.25
"""A PSI that every textbook calls a large change; windows in which even that need not show are too small."""


@dataclass(frozen=True)
class Distance:
    """Two windows compared, of one or several sites.

    Attributes:
        psi: As defined above, over the joined cells.
        threshold: What chance and noise alone leave it below, at the level that was asked.
        effect: ``psi`` without what chance and noise add on average, at least 0.
        p: Of ``server.drift.tests.homogeneity``.
        moved: Share of the recent examples that lie in other cells than before (total variation), at least 0 after
            what chance adds on average is taken off.
        reference: Examples before.
        recent: Examples since.
    """

    psi: float
    threshold: float
    effect: float
    p: float
    moved: float
    reference: int
    recent: int

    def is_drift(self, level: float, floor: float) -> bool:
        """Whether this one comparison, asked alone, is significant and large enough."""
        return self.p <= level and self.is_large(floor)

    def is_large(self, floor: float) -> bool:
        """Whether it is above its threshold and the floor."""
        return self.psi > self.threshold and self.effect >= floor

    @property
    def is_blunt(self) -> bool:
        """Whether even a large change may stay below the threshold."""
        return self.threshold > LARGE


@dataclass(frozen=True)
class Compared:
    """Both readings of the suppressed counts.

    Attributes:
        alike: With the windows as alike as they can be: what drift is judged by.
        apart: As far apart as they can be: what has to be harmless for "no drift".
    """

    alike: Distance
    apart: Distance


def compare(sites: Sequence[Pair], level: float, *, ordered: bool) -> Compared | None:
    """Compare the windows of one site, or of several that add up.

    Args:
        sites: Counts over the same cells; sites that tell no count of a window are left out.
        level: The threshold's, such as 0.01.
        ordered: Whether neighbouring cells belong together.

    Returns:
        None where fewer than two cells can be told apart: too few examples, or too much noise.
    """
    alike = _readings(sites, apart=False)
    if not len(alike.noise):
        return None
    groups = _groups(alike, ordered=ordered)
    if len(groups) < 2:
        return None
    near = _distance(alike.joined(groups), level)
    if not any(site.suppressed for site in sites):
        return Compared(near, near)
    return Compared(near, _distance(_readings(sites, apart=True).joined(groups), level))


@dataclass(frozen=True, eq=False)
class _Reading:
    """Counts of all sites that have examples in both windows, each float64 [S, B]."""

    reference: Floats
    recent: Floats
    noise: Floats

    def joined(self, groups: Sequence[Sequence[int]]) -> "_Reading":
        """The counts over joined cells."""
        into = np.zeros((self.reference.shape[1], len(groups)))
        for i, group in enumerate(groups):
            into[list(group), i] = 1
        return _Reading(self.reference @ into, self.recent @ into, self.noise @ into)


def _readings(sites: Sequence[Pair], *, apart: bool) -> _Reading:
    read = least_alike if apart else most_alike
    told = [s for s in sites if s.reference[0].any() and s.recent[0].any()]
    used = [(*read(s), np.full(s.recent.shape[1], s.noise)) for s in told]
    if not used:
        return _Reading(*(np.zeros((0, 0)) for _ in range(3)))
    return _Reading(*(np.stack(part) for part in zip(*used, strict=True)))


def _groups(counts: _Reading, *, ordered: bool) -> list[list[int]]:
    """Cells to be joined, by position."""
    n, m = counts.reference.sum(axis=1, keepdims=True), counts.recent.sum(axis=1, keepdims=True)
    both, total = counts.reference + counts.recent, n + m
    expected: list[float] = (both * np.minimum(n, m) / total).sum(axis=0).tolist()
    chance: list[float] = (both * n * m / total**2).sum(axis=0).tolist()
    noise: list[float] = (counts.noise * (n**2 + m**2) / total**2).sum(axis=0).tolist()
    order = sorted(range(len(expected)), key=lambda i: i if ordered else (expected[i], i))
    groups: list[list[int]] = []
    held: list[int] = []
    for cell in order:
        held.append(cell)
        enough = sum(expected[i] for i in held) >= FEWEST
        if enough and sum(noise[i] for i in held) <= sum(chance[i] for i in held):
            groups.append(held)
            held = []
    if held and groups:
        groups[-1] += held
    return groups


def _distance(counts: _Reading, level: float) -> Distance:
    n, m = counts.reference.sum(axis=1), counts.recent.sum(axis=1)
    recent, cells = float(m.sum()), counts.recent.shape[1]
    weights = m / recent
    before = (weights / n) @ counts.reference
    p, q = _smooth(counts.recent.sum(axis=0), recent), _smooth(before * recent, recent)
    psi = float(((p - q) * np.log(p / q)).sum())
    by_noise = counts.noise.sum(axis=0) / recent**2 + ((weights / n) ** 2) @ counts.noise
    scale = 1 / recent + float((weights**2 / n).sum())
    mean = scale * (cells - 1) + float((by_noise * (1 - q) / q).sum())
    spread = np.sqrt(scale * q * (1 - q) + by_noise)
    return Distance(
        psi=psi,
        threshold=mean / (cells - 1) * float(chdtri(cells - 1, level)),
        effect=max(0.0, psi - mean),
        p=homogeneity(counts.reference, counts.recent, counts.noise),
        moved=max(0.0, float(np.abs(p - q).sum() / 2 - spread.sum() / np.sqrt(2 * np.pi))),
        reference=round(n.sum()),
        recent=round(recent),
    )


def _smooth(counts: Floats, total: float) -> Floats:
    smoothed: Floats = (counts + 0.5) / (total + 0.5 * len(counts))
    return smoothed
