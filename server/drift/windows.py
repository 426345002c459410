"""What is compared with what: each site's recent window with its reference, and where that one comes from.

The reference is the check's own, examples before the release in use. Where a site has fewer than ``FEW`` of them, it is
what the earliest comparable check saw as recent: the same contract, features, labels and release. That one may have
drifted before anybody looked, so a few examples from before are worth more than many of such.

How right the model is, is judged by examples that it cannot have been trained on. A release may have been trained on
all that a site had before it, and a model is more often right about those, and no less sure: compared with them, every
new release would seem to become worse. So for those questions the reference of a release is what the earliest
comparable check saw as recent, and its first check has none. A model that is not a release was not trained here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from server.checking.document import Check, SiteCheck, Window

from .correct import Counts, Pair, noise_variance, pair

FEW = 30
"""Examples from before the release with which a site is compared with its own past."""
ENOUGH = 100
"""Examples that the recent window of an earlier check has to have to be compared with."""


@dataclass(frozen=True)
class Windows:
    """One site's two windows.

    Attributes:
        site: Its name.
        reference: What it was like.
        recent: What it is like.
        withheld: Sections that either of them lacks.
        min_count: The larger of both windows' smallest counts.
        epsilon: The smaller of both windows' epsilons; None where neither has noise.
    """

    site: str
    reference: Window
    recent: Window
    withheld: frozenset[str]
    min_count: int
    epsilon: float | None

    def has(self, *sections: str) -> bool:
        """Whether both windows have examples and give these sections."""
        return bool(self.reference.examples and self.recent.examples) and not self.withheld.intersection(sections)

    def pair(self, reference: Counts, recent: Counts) -> Pair:
        """Counts of both windows with what is known of suppression and noise."""
        return pair(reference, recent, self.min_count, self.epsilon)

    @property
    def noise(self) -> float:
        """Variance of the noise on one count."""
        return noise_variance(self.epsilon)


def windows_of(check: Check, earlier: Sequence[Check]) -> list[Windows]:
    """The windows of each site, by name.

    Args:
        check: The one that is asked about.
        earlier: Checks before it, in any order.
    """
    found = []
    for name, site in sorted(check.sites.items()):
        past = _first(check, earlier, name) if site.reference.examples < FEW else None
        found.append(_between(site, past, past.recent) if past else _between(site, site, site.reference))
    return found


def untrained_of(check: Check, earlier: Sequence[Check]) -> list[Windows]:
    """Windows of which neither has examples that the model may have been trained on, of the sites that have them."""
    if check.release is None:
        return windows_of(check, earlier)
    firsts = {name: _first(check, earlier, name) for name in sorted(check.sites)}
    return [_between(check.sites[name], past, past.recent) for name, past in firsts.items() if past]


def _first(check: Check, earlier: Sequence[Check], site: str) -> SiteCheck | None:
    """The site in the earliest comparable check in which it has enough recent examples."""
    comparable = (c for c in earlier if _key(c) == _key(check) and c.at < check.at and site in c.sites)
    for past in sorted(comparable, key=lambda c: c.at):
        if past.sites[site].recent.examples >= ENOUGH:
            return past.sites[site]
    return None


def _key(check: Check) -> tuple[object, ...]:
    return check.contract, check.release, check.features, tuple(sorted(check.labels.items()))


def _between(site: SiteCheck, source: SiteCheck, reference: Window) -> Windows:
    epsilons = [e for e in (site.epsilon, source.epsilon) if e is not None]
    return Windows(
        site=site.site,
        reference=reference,
        recent=site.recent,
        withheld=frozenset({*site.withheld, *source.withheld}),
        min_count=max(site.min_count, source.min_count),
        epsilon=min(epsilons, default=None),
    )
