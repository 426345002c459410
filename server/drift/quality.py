"""Whether the data became worse: missing and impossible values, suspected label noise, repeated and constant ones.

Shares are compared as in ``server.drift.tests.rise``; what is in no window is not asked about. Two have no share that
a test could take:

- Repeated examples grow more frequent by themselves as a site's data grow where few different ones exist. They are a
  change where they are ten times as frequent as before and their share rose by a tenth.
- A feature with one value where it had several: its p-value is the chance to draw all recent examples from the fullest
  cell of its histogram.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.special import ndtri
from scipy.stats import hypergeom

from .question import Question, at
from .tests import rises
from .windows import ENOUGH, Windows

FLOOR = 0.02
"""A rise of a share below which nobody would act."""
BLUNT = 0.1
"""A rise that must not go unseen where the answer is "no drift"."""
REPEATED_RISE, REPEATED_TIMES = 0.1, 10.0

Count = int | None


@dataclass(frozen=True)
class Counted:
    """How often something is in a site's windows: reference and recent; None where suppressed."""

    windows: Windows
    hits: tuple[Count, Count]
    of: tuple[int, int]

    def reading(self, *, apart: bool) -> tuple[float, float]:
        """The hits, with suppressed ones read against a rise, or for one."""
        most = max(self.windows.min_count - 1, 0)
        before, since = self.hits
        return (
            float(before) if before is not None else 0.0 if apart else float(min(most, self.of[0])),
            float(since) if since is not None else float(min(most, self.of[1])) if apart else 0.0,
        )


def ask_quality(sites: Sequence[Windows], untrained: Sequence[Windows], level: float) -> list[Question]:
    """The questions about the sites' data, at each and at all together.

    Args:
        sites: All of them.
        untrained: Windows without examples that the model was trained on, for what the model is asked about.
        level: Of the thresholds.
    """
    given, read = [w for w in sites if w.has("quality")], [w for w in sites if _is_read(w)]
    found: list[Question] = []
    for subject, name, count in _shares(read):
        asked = [w for w in untrained if w.has("quality")] if count is _noise else read
        counted = [c for c in map(count, asked) if any(c.hits) or {*c.hits} == {None, 0}]
        if counted:
            found += [q for where, which in _groups(counted) if (q := _risen(subject, name, where, which, level))]
    for windows in given:
        found += [_repeated(windows)] if windows.recent.duplicates is not None else []
        found += _constant(windows)
    return found


def _is_read(windows: Windows) -> bool:
    """Whether rows were read in both windows: a device that fails leaves no complete examples."""
    recent = windows.recent
    rows = recent.examples or any([*recent.missing.values(), *recent.impossible.values()])
    return bool(windows.reference.examples and rows) and "quality" not in windows.withheld


def _shares(sites: Sequence[Windows]) -> Iterator[tuple[str, str, Callable[[Windows], Counted]]]:
    """What is counted as a share: its subject, its name, and how often it is."""
    for field in ("missing", "impossible"):
        for column in sorted({column for w in sites for column in getattr(w.recent, field)}):
            yield f"{field} {column}", f"{field} values of {column}", partial(_values, field=field, column=column)
    yield "label noise", "labels that the model confidently takes for others", _noise


def _values(windows: Windows, field: str, column: str) -> Counted:
    before, since = (getattr(w, field).get(column) for w in (windows.reference, windows.recent))
    of = (windows.reference.examples + (before or 0), windows.recent.examples + (since or 0))
    return Counted(windows, (before, since), of)


def _noise(windows: Windows) -> Counted:
    both = (windows.reference, windows.recent)
    of = [sum(sum(c or 0 for c in counts) for counts in w.labelled.values()) or w.examples for w in both]
    return Counted(windows, (both[0].label_noise, both[1].label_noise), (of[0], of[1]))


def _groups(counted: Sequence[Counted]) -> Iterator[tuple[str | None, Sequence[Counted]]]:
    yield None, counted
    for each in counted:
        yield each.windows.site, [each]


def _risen(subject: str, name: str, site: str | None, counted: Sequence[Counted], level: float) -> Question | None:
    of = np.array([c.of for c in counted], np.float64).T
    noise = np.array([c.windows.noise for c in counted])
    alike, apart = (np.array([c.reading(apart=how) for c in counted]).T for how in (False, True))
    found = rises(np.minimum(alike, of), np.minimum(apart, of), of, noise)
    if found is None:
        return None
    near, far = found
    chance = float(ndtri(1 - level)) * near.error
    threshold = max(chance, FLOOR)
    unclear = ""
    if (near.p is None and far.effect > FLOOR) or chance > BLUNT:
        unclear = f"a rise of the share by {max(chance, FLOOR):.2f} could be chance"
    elif far.p is not None and far.p <= level and far.effect > threshold >= near.effect:
        unclear = "it depends on what the suppressed counts are"
    return Question(
        kind="quality",
        subject=subject,
        site=site,
        statistic=near.effect,
        threshold=threshold,
        p=near.p,
        effect=near.effect,
        n_reference=int(of[0].sum()),
        n_recent=int(of[1].sum()),
        large=near.effect > threshold,
        unclear=unclear,
        name=f"the share of {name} {at(site)}",
        numbers=f"it {'rose' if near.effect >= 0 else 'fell'} by {abs(near.effect):.3f}, threshold {threshold:.3f}",
    )


def _repeated(windows: Windows) -> Question:
    before, since = windows.reference, windows.recent
    low, high = (since.duplicates or 0) / since.examples, _share(before.duplicates, before.examples, windows.min_count)
    few = min(before.examples, since.examples) < ENOUGH
    risen = low - high
    return Question(
        kind="quality",
        subject="duplicates",
        site=windows.site,
        statistic=risen,
        threshold=REPEATED_RISE,
        p=None,
        effect=risen,
        n_reference=before.examples,
        n_recent=since.examples,
        large=not few and risen > REPEATED_RISE and low > REPEATED_TIMES * high,
        unclear=f"it takes {ENOUGH} examples in each window" if few else "",
        name=f"the share of repeated examples {at(windows.site)}",
        numbers=f"{low:.3f} of the examples repeat earlier ones, {high:.3f} before",
        certain=True,
    )


def _share(count: Count, of: int, min_count: int) -> float:
    return (max(min_count - 1, 0) if count is None else count) / of


def _constant(windows: Windows) -> Iterator[Question]:
    """Features that have one value only and had several."""
    before, since = windows.reference, windows.recent
    for feature in sorted(set(since.constant) - set(before.constant)):
        cells = [c or 0 for c in before.histograms.get(feature, ())]
        n, m, fullest = sum(cells), since.examples, max(cells, default=0)
        known = n > 0 and windows.has("histogram")
        p = float(hypergeom.sf(m - 1, n + m, fullest + m, m)) if known else None
        yield Question(
            kind="quality",
            subject=f"constant {feature}",
            site=windows.site,
            statistic=1.0,
            threshold=0.0,
            p=p,
            effect=1.0,
            n_reference=before.examples,
            n_recent=m,
            large=True,
            unclear="" if known else "no histogram from before to compare with",
            name=f"input {feature} {at(windows.site)}",
            numbers="it has one value only, and had several",
        )
