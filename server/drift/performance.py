"""How often the model is right: counted where there are labels, expected from its own confidence elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from server.checking.document import Window

from .correct import Counts
from .findings import Estimate, Performance
from .tests import share
from .windows import Windows


def performance(
    sites: Sequence[Windows], untrained: Sequence[Windows], outputs: Sequence[str]
) -> tuple[Performance, ...]:
    """Accuracy of each output at all sites together and at each, in this order.

    Args:
        sites: All of them.
        untrained: Windows without examples that the model was trained on: their reference is what accuracy was.
        outputs: Their names.
    """
    before_of = {w.site: w for w in untrained}
    found = []
    for output in outputs:
        for where, which in [(None, list(sites)), *((w.site, [w]) for w in sites)]:
            before = _accuracy([before_of[w.site] for w in which if w.site in before_of], output, recent=False)
            since = _accuracy(which, output, recent=True)
            expected = _expected(which, output)
            if before or since or expected is not None:
                found.append(Performance(output, where, before, since, expected))
    return tuple(found)


@dataclass(frozen=True)
class _Right:
    """Right answers among labelled ones: the least and the most, and of how many at most."""

    least: float
    most: float
    of: float

    @property
    def width(self) -> float:
        """How far apart the accuracies are that it may stand for."""
        return (self.most - self.least) / self.of


def _accuracy(sites: Sequence[Windows], output: str, *, recent: bool) -> Estimate | None:
    """Right answers among labelled ones, of each site from the section that leaves less open by what it suppresses."""
    found, noise, examples = [], 0.0, 0
    for windows in sites:
        window = windows.recent if recent else windows.reference
        counted = [_by_bin(windows, window, output), _by_class(windows, window, output)]
        known = [each for each in counted if each is not None]
        if known:
            found.append(min(known, key=lambda each: each.width))
            noise += 2 * windows.noise * len(window.right[output])
            examples += window.examples
    least, most, of = (sum(getattr(each, name) for each in found) for name in ("least", "most", "of"))
    told = share((least, most), of, noise)
    return replace(told, n=min(told.n, examples)) if told else None  # suppressed counts may be less than assumed


def _by_bin(windows: Windows, window: Window, output: str) -> _Right | None:
    if "calibration" in windows.withheld or output not in window.right:
        return None
    return _right(window.right[output], window.labelled[output], windows.min_count)


def _by_class(windows: Windows, window: Window, output: str) -> _Right | None:
    """By true label; those that the contract does not have are never answered right."""
    if windows.withheld.intersection({"confusion", "labels"}) or output not in window.confusion:
        return None
    rows, labels = window.confusion[output], window.labels[output]
    rights = [*(row[k] for k, row in enumerate(rows)), *(0 for _ in labels[len(rows) :])]
    return _right(rights, labels, windows.min_count)


def _right(rights: Counts, of: Counts, min_count: int) -> _Right | None:
    """From the counts of each stratum; None without any that is told."""
    if not any(of):
        return None
    hidden = max(min_count - 1, 0)
    told = [(right, n) for right, n in zip(rights, of, strict=True) if n is not None]
    open_ = hidden * (len(of) - len(told))  # examples that may be there, and right, or wrong
    least = sum(min(right or 0, n) for right, n in told)
    most = sum(min(hidden if right is None else right, n) for right, n in told)
    return _Right(least, most + open_, sum(n for _, n in told) + open_)


def _expected(sites: Sequence[Windows], output: str) -> float | None:
    """Mean confidence of recent examples: the accuracy of a model whose confidence is worth what it says."""
    total, of = 0.0, 0
    for windows in sites:
        window: Window = windows.recent
        if not window.examples or "confidence" in windows.withheld or output not in window.confidence:
            continue
        for count, confidence in zip(window.confidence[output], window.confidence_sum[output], strict=True):
            if count and confidence is not None:
                total += confidence
                of += count
    return min(max(total / of, 0.0), 1.0) if of else None
