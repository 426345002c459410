"""Meaning changes at one site: from then on, what is a 3 elsewhere is a 5 there, and the other way round.

The holdouts are as everywhere else: *new* is of the same kind as *old*, so that a run that follows the one site is
seen to lose, and one that keeps to what the others say is not.
"""

import numpy as np

from simulations.digits import Part

from .base import Images, Scenario, divided, part, site

EXCHANGED = (3, 5)


def make(seed: int, names: list[str]) -> Scenario:
    """The scenario for sites of these names; it is the last that changes."""
    images = Images.load()
    rows = divided(len(images.y), names, seed)
    return Scenario(
        base=part(images, rows.base),
        old=part(images, rows.old),
        new=part(images, rows.new),
        sites={
            name: site(
                name,
                part(images, rows.site_old[name]),
                _exchanged(part(images, rows.site_new[name]))
                if name == names[-1]
                else part(images, rows.site_new[name]),
                seed,
            )
            for name in names
        },
    )


def _exchanged(of: Part) -> Part:
    one, other = EXCHANGED
    labels = np.where(of.y == one, other, np.where(of.y == other, one, of.y)).astype(np.int32)
    return Part(of.x, labels)
