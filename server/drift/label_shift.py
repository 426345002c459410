"""Whether labels come more or less often than they did.

Where both windows are labelled, their label counts are compared. Where the recent one is not, the model's answers are
(black box shift detection), and the recent frequencies are estimated from them (Lipton, Wang and Smola, ICML 2018)::

    C[i, j] = share of the reference examples of label j that the model takes for i
    estimate = C^-1 (shares of the answers), negative ones set to 0, made to add up to 1

The effect is the PSI between the estimates of both windows. It holds as long as the examples of each label look as they
did, and it needs a C that can be inverted: below ``LEAST_SINGULAR`` there is too little data, whatever n is. C is the
site's own, or that of all sites together where it has fewer than ``ENOUGH`` labelled examples.

An output with several labels at once is asked about each label by itself: examples that have it, and those that do not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.checking.document import Window

from .correct import Counts, Pair
from .psi import compare
from .question import Question, about_distance, at
from .windows import ENOUGH, Windows

Floats = NDArray[Any]

LEAST_SINGULAR = 0.1
LABELLED = 0.5
"""Share of the recent examples with a label from which on labels are asked and not answers."""
_SCARCE = 5


def ask_labels(
    sites: Sequence[Windows], output: str, labels: Sequence[str], asked: tuple[float, float]
) -> list[Question]:
    """The questions about one output, at each site and at all together.

    Args:
        sites: All of them.
        output: Its name.
        labels: What its labels are called, as counted.
        asked: The level and the floor of the effect.
    """
    labelled = [w for w in sites if w.has("labels") and _labelled(w, output)]
    found: list[Question] = []
    if labelled:
        for where, which in [(None, labelled), *((w.site, [w]) for w in labelled)]:
            found += _by_labels(which, output, labels, where, asked)
    silent = [w for w in sites if w not in labelled and w.has("predictions")]
    known = [w for w in sites if _has_confusion(w, output)]
    groups: list[tuple[str | None, list[Windows]]] = [(w.site, [w]) for w in silent]
    if silent and not labelled:
        groups.insert(0, (None, silent))
    for where, which in groups:
        own = [w for w in known if w in which]
        enough = sum(_total(row) for w in own for row in w.reference.confusion[output]) >= ENOUGH
        found.append(_by_answers(which, output, own if enough else known, where, asked))
    return found


def _labelled(windows: Windows, output: str) -> bool:
    """Whether most recent examples have a label, and some before."""
    recent = _total(windows.recent.labels[output])
    return recent >= LABELLED * windows.recent.examples and _total(windows.reference.labels[output]) > 0


def _total(counts: Counts) -> int:
    return sum(c or 0 for c in counts)


def _has_confusion(windows: Windows, output: str) -> bool:
    return windows.has("confusion") and output in windows.reference.confusion


def _by_labels(
    sites: Sequence[Windows], output: str, labels: Sequence[str], site: str | None, asked: tuple[float, float]
) -> Iterator[Question]:
    examples = tuple(sum(_total(getattr(w, which).labels[output]) for w in sites) for which in ("reference", "recent"))
    sizes = (examples[0], examples[1])
    if all(output in w.recent.confusion for w in sites):
        pairs = [w.pair(w.reference.labels[output], w.recent.labels[output]) for w in sites]
        name = f"how often labels come ({output}) {at(site)}"
        yield about_distance("label", (output, site, name), compare(pairs, asked[0], ordered=False), sizes, asked)
        return
    for i, label in enumerate(labels):
        pairs = [w.pair(_one_of(w.reference, output, i), _one_of(w.recent, output, i)) for w in sites]
        name = f"how often label {label} comes ({output}) {at(site)}"
        about = (f"{output} {label}", site, name)
        yield about_distance("label", about, compare(pairs, asked[0], ordered=False), sizes, asked)


def _one_of(window: Window, output: str, label: int) -> Counts:
    """Examples that have a label, and those that do not."""
    count = window.labels[output][label]
    total = _total(window.labelled[output]) or window.examples
    return (count, None if count is None else max(total - count, 0))


def _by_answers(
    sites: Sequence[Windows], output: str, known: Sequence[Windows], site: str | None, asked: tuple[float, float]
) -> Question:
    pairs = [w.pair(w.reference.predicted[output], w.recent.predicted[output]) for w in sites]
    sizes = (sum(w.reference.examples for w in sites), sum(w.recent.examples for w in sites))
    about = (output, site, f"how often labels come ({output}, estimated from the model's answers) {at(site)}")
    compared = compare(pairs, asked[0], ordered=False)
    question = about_distance("label", about, compared, sizes, asked)
    effect = estimated_effect(pairs, known, output)
    if compared is None or effect is None:
        why = question.unclear if compared is None else "no labels by which the model's answers could be read"
        return replace(question, p=None, large=False, unclear=why)
    large = compared.alike.psi > compared.alike.threshold and effect >= asked[1]
    return replace(question, effect=effect, large=large)


def estimated_effect(pairs: Sequence[Pair], known: Sequence[Windows], output: str) -> float | None:
    """PSI between the label frequencies that the answers of both windows are the likeliest from.

    Args:
        pairs: Answers by label, of each site.
        known: Sites with a confusion matrix of the reference window.
        output: Its name.

    Returns:
        None where the matrix is lacking, or cannot be inverted.
    """
    if not known:
        return None
    matrix = np.sum([_confusion(w, output) for w in known], axis=0)
    of_label = matrix.sum(axis=1)
    used = of_label >= _SCARCE
    if used.sum() < 2:
        return None
    c = (matrix[used][:, used] / of_label[used, None]).T
    if np.linalg.svd(c, compute_uv=False)[-1] < LEAST_SINGULAR:
        return None
    before = _estimated(c, np.sum([p.reference.mean(axis=0) for p in pairs], axis=0)[used])
    since = _estimated(c, np.sum([p.recent.mean(axis=0) for p in pairs], axis=0)[used])
    return float(((since - before) * np.log(since / before)).sum())


def _estimated(c: Floats, answers: Floats) -> Floats:
    """Shares of the labels that these answers come from, half an example added to each."""
    n = float(answers.sum())
    examples = np.clip(np.linalg.solve(c, answers), 0, None)
    shares: Floats = examples / max(float(examples.sum()), 1e-9) * n + 0.5
    total = shares.sum()
    return np.asarray(shares / total)


def _confusion(windows: Windows, output: str) -> Floats:
    """[true, answered] of the reference; what a row's label count leaves is shared by the row's suppressed cells.

    Without label counts a suppressed cell is read as half of what it can be.
    """
    rows, most = [], max(windows.min_count - 1, 0)
    totals = windows.reference.labels[output] if windows.has("labels") else ()
    for k, row in enumerate(windows.reference.confusion[output]):
        seen = np.array([c or 0 for c in row], np.float64)
        hidden = np.array([c is None for c in row])
        total = totals[k] if k < len(totals) else None
        if hidden.any():
            seen[hidden] = most / 2 if total is None else min(max(total - seen.sum(), 0.0) / hidden.sum(), most)
        rows.append(seen)
    return np.stack(rows)
