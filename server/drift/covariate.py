"""Whether inputs changed: each feature's histogram, at each site and at all together."""

from collections.abc import Mapping, Sequence

from fedretrain.contract import Feature

from .psi import Compared, compare
from .question import Question, about_distance, at
from .windows import Windows

Inputs = Mapping[tuple[str, str | None], Compared | None]
"""By feature and site, None for all together; None where too little can be told apart."""


def compare_inputs(sites: Sequence[Windows], features: Sequence[Feature], level: float) -> Inputs:
    """Each feature's windows compared; sites that withhold histograms are in none."""
    given = [w for w in sites if w.has("histogram")]
    found: dict[tuple[str, str | None], Compared | None] = {}
    for name in (feature.name for feature in features):
        pairs = {w.site: w.pair(w.reference.histograms[name], w.recent.histograms[name]) for w in given}
        found[name, None] = compare(list(pairs.values()), level, ordered=True)
        for site, pair in pairs.items():
            found[name, site] = compare([pair], level, ordered=True)
    return found


def ask_inputs(
    sites: Sequence[Windows], features: Sequence[Feature], inputs: Inputs, level: float, floor: float
) -> list[Question]:
    """One question for each feature and site."""
    projections = {feature.name for feature in features if feature.kind == "projection"}
    of: dict[str | None, tuple[int, int]] = {
        w.site: (w.reference.examples, w.recent.examples) for w in sites if w.has("histogram")
    }
    of[None] = (sum(w.reference.examples for w in sites), sum(w.recent.examples for w in sites))
    found = []
    for (feature, site), compared in inputs.items():
        what = f"the model's inner view {feature}" if feature in projections else f"input {feature}"
        about = (feature, site, f"{what} {at(site)}")
        found.append(about_distance("covariate", about, compared, of[site], (level, floor)))
    return found
