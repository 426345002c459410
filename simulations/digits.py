"""The demo's data: scikit-learn's handwritten digits, real and without a download, and how their appearance changed.

Invariants:

- Every one of the 1797 images is in exactly one part: base, old, new or one site. Nothing is augmented, so the number
  of examples is a number of distinct images; only a site that is made to be wrong has each of its own many times.
- The same seed gives the same arrays; the number of sites changes only how the private images are divided.

What changed, and why it is realistic. The digits were read by a flatbed scanner: paper is 0, ink is up to 1, edges are
sharp, because the scanner brings its own light and its white reference. That is how the *base* and *old* parts look.
The partner sites have replaced it by a camera above the desk, as happens wherever paper forms are read. A camera sees
the light of the room: paper is grey instead of white and ink is paler (``background`` and ``contrast``), the lens is
softer (``softness``), and the sensor adds noise, with 8 bits per pixel. The dimmer the room the stronger all of it, and
every site has its own room (``STRENGTHS``: 0 would be the scanner, 1 is the dimmest room). Nobody told the model.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.errors import ConfigurationError

IMAGES = 1797
BASE, OLD, NEW = 500, 450, 400
FEWEST_SITES, MOST_SITES, FEWEST_IMAGES = 2, 40, 8
REPEATED = 20  # a site that is wrong about one picture each is outvoted and changes little
STRENGTHS = (0.7, 1.0)
_CONTRAST, _BACKGROUND, _SOFTNESS, _NOISE = 0.5, 0.3, 0.4, 0.02
_CONCENTRATION = 1.0

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Part:
    """Images float32 [n, 8, 8, 1], 0 for white and 1 for black, and labels int32 [n]."""

    x: Floats
    y: NDArray[np.int32]


@dataclass(frozen=True)
class Digits:
    """All parts; ``sites`` by name."""

    base: Part
    old: Part
    new: Part
    sites: dict[str, Part]


def make_digits(seed: int, sites: int, permuted: str | None = None) -> Digits:
    """Divide the digits and change the appearance of what is new.

    Args:
        seed: Decides everything that is drawn.
        sites: How many private parts, from 2 to 40.
        permuted: A site that has each of its images ``REPEATED`` times and every digit under another's name, so that
            it outweighs the others and is wrong; or None.

    Raises:
        ConfigurationError: An impossible number of sites, or scikit-learn is not installed.
    """
    names = site_names(sites)
    images, labels = load_images()
    order = _rng(seed, "parts").permutation(IMAGES)
    base, old, new, private = np.split(order, np.cumsum([BASE, OLD, NEW]))
    strengths = dict(zip(names, np.linspace(*STRENGTHS, sites), strict=True))
    rooms = _rng(seed, "rooms").choice(np.array([*strengths.values()]), NEW)
    divided = _divide(labels, private, names, _rng(seed, "sites"))
    if permuted is not None:
        divided[permuted] = np.tile(divided[permuted], REPEATED)
    return Digits(
        base=_part(images[base], labels[base]),
        old=_part(images[old], labels[old]),
        new=_part(photographed(images[new], rooms, _rng(seed, "new")), labels[new]),
        sites={
            name: _part(
                photographed(images[mine], np.full(len(mine), strengths[name]), _rng(seed, name)),
                exchanged(labels[mine], _rng(seed, "exchange")) if name == permuted else labels[mine],
            )
            for name, mine in divided.items()
        },
    )


def site_names(sites: int) -> list[str]:
    """``hospital-a`` and so on, numbers where letters do not suffice; raises ConfigurationError."""
    if not FEWEST_SITES <= sites <= MOST_SITES:
        raise ConfigurationError(f"--sites: expected {FEWEST_SITES} to {MOST_SITES} for the demo, got {sites}")
    if sites > 26:
        return [f"hospital-{i:02d}" for i in range(1, sites + 1)]
    return [f"hospital-{chr(ord('a') + i)}" for i in range(sites)]


def photographed(images: Floats, strength: NDArray[Any], rng: np.random.Generator) -> Floats:
    """How the camera sees images [n, 8, 8] in rooms of ``strength`` [n] from 0 to 1 (see the module docstring)."""
    s = strength.reshape(-1, 1, 1)
    soft = (1 - _SOFTNESS * s) * images + _SOFTNESS * s * _blurred(images)
    seen = _BACKGROUND * s + (1 - _CONTRAST * s) * soft + rng.normal(0, _NOISE, images.shape)
    stored: Floats = (np.round(np.clip(seen, 0, 1) * 255) / 255).astype(np.float32)
    return stored


def exchanged(labels: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Every digit under another digit's name, consistently."""
    cycle = rng.permutation(10)
    name = np.empty(10, labels.dtype)
    name[cycle] = np.roll(cycle, 1)
    found: NDArray[Any] = name[labels]
    return found


def load_images() -> tuple[Floats, NDArray[Any]]:
    """Images float32 [1797, 8, 8] from 0 to 1, and labels."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ConfigurationError(
            "the demo's digits come with scikit-learn, which is not installed; install fedretrain[simulation]"
        ) from None
    digits = load_digits()
    return (digits.images / 16).astype(np.float32), digits.target


def _divide(
    labels: NDArray[Any], private: NDArray[Any], names: list[str], rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Positions by site: shares of each digit from a Dirichlet distribution, and no site nearly empty."""
    share = rng.dirichlet([_CONCENTRATION] * len(names), size=10) * np.linspace(0.6, 1.6, len(names))
    share /= share.sum(axis=1, keepdims=True)
    owner = np.empty(len(private), int)
    for digit in range(10):
        mine = np.flatnonzero(labels[private] == digit)
        cuts = np.round(np.cumsum(share[digit])[:-1] * len(mine)).astype(int)
        for site, part in enumerate(np.split(mine, cuts)):
            owner[part] = site
    while (counts := np.bincount(owner, minlength=len(names))).min() < FEWEST_IMAGES:
        owner[np.flatnonzero(owner == counts.argmax())[0]] = counts.argmin()
    return {name: private[owner == site] for site, name in enumerate(names)}


def _blurred(images: Floats) -> NDArray[Any]:
    """A 3 by 3 binomial blur; beyond the edge is paper."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    rows = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    return np.asarray((rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4)


def _part(images: Floats, labels: NDArray[Any]) -> Part:
    return Part(images[..., None], labels.astype(np.int32))


def _rng(seed: int, use: str) -> np.random.Generator:
    return np.random.default_rng([seed, *use.encode()])
