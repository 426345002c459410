"""What is compared with what: each site's recent window with its reference, and where that one comes from.

The reference is the check's own, examples before the release in use. Where a site has fewer than ``ENOUGH`` of them,
it is what the earliest comparable check saw as recent: the same contract, features, labels and release.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.checking.document import Check, SiteCheck, Window

from .correct import Counts, Pair, noise_variance, pair

ENOUGH = 100
"""Examples that a window to compare with should have."""


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
    comparable = sorted((c for c in earlier if _key(c) == _key(check) and c.at < check.at), key=lambda c: c.at)
    return [_of_site(site, comparable) for _, site in sorted(check.sites.items())]


def _key(check: Check) -> tuple[object, ...]:
    labels: Mapping[str, tuple[str, ...]] = check.labels
    return check.contract, check.release, check.features, tuple(sorted(labels.items()))


def _of_site(site: SiteCheck, comparable: Sequence[Check]) -> Windows:
    reference, source = site.reference, site
    if reference.examples < ENOUGH:
        for check in comparable:
            past = check.sites.get(site.site)
            if past is not None and past.recent.examples >= ENOUGH:
                reference, source = past.recent, past
                break
    epsilons = [e for e in (site.epsilon, source.epsilon) if e is not None]
    return Windows(
        site=site.site,
        reference=reference,
        recent=site.recent,
        withheld=frozenset({*site.withheld, *source.withheld}),
        min_count=max(site.min_count, source.min_count),
        epsilon=min(epsilons, default=None),
    )
