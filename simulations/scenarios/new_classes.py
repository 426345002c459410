"""Two new classes: the model in use knows the digits 0 to 7; then 8 and 9 are read as well.

What is new at the sites is of the two new classes alone, the hardest case for what the model knows. The holdout
*old* has the eight digits it knows, *new* the two others.
"""

import numpy as np

from .base import Images, Indices, Scenario, divided, part, site

KNOWN = 8


def make(seed: int, names: list[str]) -> Scenario:
    """The scenario for sites of these names."""
    images = Images.load()
    rows = divided(len(images.y), names, seed)
    fresh = images.y >= KNOWN

    def old(positions: Indices) -> Indices:
        return positions[~fresh[positions]]

    def new(positions: Indices) -> Indices:
        return positions[fresh[positions]]

    return Scenario(
        base=part(images, old(rows.base)),
        old=part(images, old(np.concatenate([rows.old, rows.new]))),
        new=part(images, new(np.concatenate([rows.old, rows.new]))),
        sites={
            name: site(
                name,
                part(images, old(rows.site_old[name])),
                part(images, new(np.concatenate([rows.site_old[name], rows.site_new[name]]))),
                seed,
            )
            for name in names
        },
        known=KNOWN,
    )
