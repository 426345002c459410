"""What a drift is made of: a model in use, what the sites have, and two central holdouts, all of real digits.

Invariants:

- Every image is in exactly one part, so no holdout has an example that somebody trains on.
- The same seed gives the same arrays, at any number of sites that it was asked for.
- Every site has old and new examples, and says when each was made; ``SINCE`` lies between.

The images are scikit-learn's handwritten digits, 1797 of 8 by 8 pixels, so nothing is downloaded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from simulations.digits import Floats, Part, load_images

SINCE = datetime(2026, 6, 1, tzinfo=UTC)
"""Examples from then on are new."""
_FIRST, _LAST = datetime(2025, 6, 1, tzinfo=UTC), datetime(2026, 9, 1, tzinfo=UTC)
SITES = 5
_PARTS = {"base": 0.28, "old": 0.18, "new": 0.18, "site_old": 0.15}  # the rest is what sites have that is new
_UNEVEN = 2.0  # Dirichlet concentration of the sites' sizes

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SiteData:
    """What one site has: images and labels, and when each was made, float64 [n], seconds since 1970 UTC."""

    part: Part
    time: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scenario:
    """A drift.

    Attributes:
        base: What the model in use was trained on.
        old: Holdout of what it could do.
        new: Holdout of what has come.
        sites: By name.
        labels: Names of all labels, by position in ``y``.
        known: How many of them, from the first on, the model in use knows.
    """

    base: Part
    old: Part
    new: Part
    sites: Mapping[str, SiteData]
    labels: tuple[str, ...] = field(default_factory=lambda: tuple(map(str, range(10))))
    known: int = 10


@dataclass(frozen=True, eq=False)
class Rows:
    """Positions of images, by what they are for; sites by name."""

    base: Indices
    old: Indices
    new: Indices
    site_old: Mapping[str, Indices]
    site_new: Mapping[str, Indices]


@dataclass(frozen=True, eq=False)
class Images:
    """Images float32 [n, 8, 8], 0 for white and 1 for black, and digits int [n]."""

    x: Floats
    y: Indices

    @classmethod
    def load(cls) -> "Images":
        """All of them; raises ConfigurationError where scikit-learn is missing."""
        x, y = load_images()
        return cls(x, y.astype(np.int64))


def rng(seed: int, use: str) -> np.random.Generator:
    """Random numbers for one use."""
    return np.random.default_rng([seed, *use.encode()])


def divided(count: int, names: list[str], seed: int) -> Rows:
    """All positions below ``count``, at random."""
    order = rng(seed, "parts").permutation(count)
    cuts = np.round(np.cumsum(list(_PARTS.values())) * count).astype(int)
    base, old, new, site_old, site_new = np.split(order, cuts)
    return Rows(base, old, new, among(site_old, names, seed, "old"), among(site_new, names, seed, "new"))


def among(rows: Indices, names: list[str], seed: int, use: str) -> dict[str, Indices]:
    """The rows divided among sites of different sizes, none of them empty."""
    shares = rng(seed, f"sizes {use}").dirichlet([_UNEVEN] * len(names)) * 0.6 + 0.4 / len(names)
    cuts = np.round(np.cumsum(shares)[:-1] * len(rows)).astype(int)
    return dict(zip(names, np.split(rows, cuts), strict=True))


def site(name: str, old: Part, new: Part, seed: int) -> SiteData:
    """A site's examples, old and new, in the order in which they were made."""
    draw = rng(seed, f"time {name}")
    first, since, last = _FIRST.timestamp(), SINCE.timestamp(), _LAST.timestamp()
    times = np.sort(draw.uniform(first, since, len(old.y))), np.sort(draw.uniform(since, last, len(new.y)))
    whole = Part(np.concatenate([old.x, new.x]), np.concatenate([old.y, new.y]))
    return SiteData(whole, np.floor(np.concatenate(times)))


def part(images: Images, rows: Indices, seen: Callable[[Floats], Floats] | None = None) -> Part:
    """Images float32 [n, 8, 8, 1] and labels int32 [n]; ``seen`` changes how the images look."""
    x = images.x[rows] if seen is None else seen(images.x[rows])
    return Part(x[..., None], images.y[rows].astype(np.int32))
