"""How often the model is right: counted where there are labels, expected from its own confidence elsewhere."""

from collections.abc import Sequence

import numpy as np

from server.checking.document import Window

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


def _accuracy(sites: Sequence[Windows], output: str, *, recent: bool) -> Estimate | None:
    """Right answers among labelled ones; bins whose labelled examples are suppressed are left out."""
    hits, of, noise = np.zeros(2), 0, 0.0
    for windows in sites:
        window = windows.recent if recent else windows.reference
        if not window.examples or "calibration" in windows.withheld or output not in window.right:
            continue
        for right, labelled in zip(window.right[output], window.labelled[output], strict=True):
            if not labelled:
                continue
            most = min(windows.min_count - 1, labelled)
            hits += (0, most) if right is None else (right, right)
            of += labelled
            noise += 2 * windows.noise
    return share((float(hits[0]), float(hits[1])), of, noise)


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
