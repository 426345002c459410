"""Label shift: all digits look as before, but from then on the sites meet hardly any but 0 to 4.

What is new at the sites has fifty times as many of the digits 0 to 4 as of the others; so has the holdout *new*. The
holdout *old* has all digits alike, and a model that learns from the new data alone may forget half of them.
"""

from .base import Images, Indices, Scenario, divided, part, rng, site

FREQUENT = 5  # digits below it
_KEPT = 0.02  # of the others


def make(seed: int, names: list[str]) -> Scenario:
    """The scenario for sites of these names."""
    images = Images.load()
    rows = divided(len(images.y), names, seed)

    def shifted(positions: Indices, use: str) -> Indices:
        rare = rng(seed, f"rare {use}").random(len(positions)) < _KEPT
        return positions[(images.y[positions] < FREQUENT) | rare]

    return Scenario(
        base=part(images, rows.base),
        old=part(images, rows.old),
        new=part(images, shifted(rows.new, "new")),
        sites={
            name: site(name, part(images, rows.site_old[name]), part(images, shifted(rows.site_new[name], name)), seed)
            for name in names
        },
    )
