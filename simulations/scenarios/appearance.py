"""Appearance changes: a camera takes the place of a flatbed scanner, in another room at every site.

The pictures are those of ``simulations.digits``.

What a digit means stays; what it looks like does not (covariate drift).
"""

from functools import partial

import numpy as np

from simulations.digits import STRENGTHS, Floats, photographed

from .base import Images, Scenario, divided, part, rng, site


def make(seed: int, names: list[str]) -> Scenario:
    """The scenario for sites of these names."""
    images = Images.load()
    rows = divided(len(images.y), names, seed)
    strengths = dict(zip(names, np.linspace(*STRENGTHS, len(names)), strict=True))

    def seen(x: Floats, use: str) -> Floats:
        draw = rng(seed, f"camera {use}")
        rooms = np.full(len(x), strengths[use]) if use in strengths else draw.choice([*strengths.values()], len(x))
        return photographed(x, rooms, draw)

    return Scenario(
        base=part(images, rows.base),
        old=part(images, rows.old),
        new=part(images, rows.new, partial(seen, use="new")),
        sites={
            name: site(
                name,
                part(images, rows.site_old[name]),
                part(images, rows.site_new[name], partial(seen, use=name)),
                seed,
            )
            for name in names
        },
    )
