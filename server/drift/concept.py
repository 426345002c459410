"""Whether inputs mean something else than they did: the model is wrong more often where nothing else explains it.

Two explanations are ruled out first, each by comparing like with like, and only what neither explains is left:

    new inputs        the recent share of wrong answers in each confidence bin against the reference share in the same
                      bin. Where only inputs changed, and the model's confidence is worth the same, none rises
    new frequencies   the same in each true class. Where only label frequencies changed, none rises

Both are means over the strata weighted as the recent window is (importance weighting by the stratum), tested by
Mantel-Haenszel; the finding has the smaller effect and the larger p-value (an intersection-union test, Berger,
Technometrics 24 (1982) 295-300). What inputs that moved can explain at most, their share, is part of the threshold:
accuracy differs between two distributions of inputs by no more than their total variation. Where labels changed their
frequency, the share by which these moved is not counted again.

Limits. Features show some changes of inputs and not all. Where a model is as sure of itself on unfamiliar inputs as it
was on familiar ones and the features do not show that they are unfamiliar, its errors there count as a change of
meaning: from counts the two are the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from .question import Question, at
from .tests import Rise, rises
from .windows import Windows

Floats = NDArray[Any]

FLOOR = 0.03
"""A fall of accuracy, at equal inputs, below which nobody would act."""
BLUNT = 0.1
"""A fall that must not go unseen where the answer is "no drift"."""


@dataclass(frozen=True, eq=False)
class Strata:
    """Wrong answers by stratum, of one site or several: float64 [2, S], in the reference and in the recent window.

    Attributes:
        alike: With suppressed counts read against a rise: the most wrong before, the fewest since.
        apart: The other way round.
        of: Labelled examples; 0 where they are suppressed.
        noise: Variance of the noise on each number of wrong answers, float64 [S].
    """

    alike: Floats
    apart: Floats
    of: Floats
    noise: Floats


Explain = Callable[[Windows, str], Strata]


def by_confidence(windows: Windows, output: str) -> Strata:
    """Wrong answers in each confidence bin."""
    pairs = [(w.right[output], w.labelled[output]) for w in (windows.reference, windows.recent)]
    return _strata(pairs, windows)


def by_class(windows: Windows, output: str) -> Strata:
    """Wrong answers in each true class."""
    pairs = []
    for window in (windows.reference, windows.recent):
        rows = window.confusion[output]
        pairs.append((tuple(row[k] for k, row in enumerate(rows)), window.labels[output][: len(rows)]))
    return _strata(pairs, windows)


def _strata(pairs: Sequence[tuple[Sequence[int | None], Sequence[int | None]]], windows: Windows) -> Strata:
    least, most, of = [], [], []
    for rights, labelled in pairs:
        n = np.array([c or 0 for c in labelled], np.float64)
        low = np.array([0 if c is None else c for c in rights], np.float64)
        high = np.array([windows.min_count - 1 if c is None else c for c in rights], np.float64)
        least.append(n - np.clip(high, 0, n))
        most.append(n - np.clip(low, 0, n))
        of.append(n)
    noise = np.full(len(of[0]), 2 * windows.noise)
    return Strata(np.stack([most[0], least[1]]), np.stack([least[0], most[1]]), np.stack(of), noise)


def joined(strata: Sequence[Strata]) -> Strata:
    """Strata of several sites, each compared with itself."""
    alike, apart, of = (np.concatenate([getattr(s, n) for s in strata], axis=1) for n in ("alike", "apart", "of"))
    return Strata(alike, apart, of, np.concatenate([s.noise for s in strata]))


EXPLANATIONS: tuple[tuple[tuple[str, ...], Explain], ...] = (
    (("calibration",), by_confidence),
    (("confusion", "labels"), by_class),
)
"""The sections that each takes, and its strata."""


def ask_concept(  # noqa: PLR0913, PLR0917 - what the answer depends on
    sites: Sequence[Windows], output: str, site: str | None, moved: float, labels_changed: bool, level: float
) -> Question | None:
    """Whether an output's meaning changed at these sites.

    Args:
        sites: One, or all of them.
        output: Its name.
        site: The finding's; None for all together.
        moved: What new inputs explain at most.
        labels_changed: Whether labels came more or less often than before: then it takes a confusion matrix to tell.
        level: Of the threshold.

    Returns:
        None where nothing could be asked: no labels, or not given.
    """
    asked = {explain: _joined(sites, output, sections, explain) for sections, explain in EXPLANATIONS}
    pairs = {explain: rises(s.alike, s.apart, s.of, s.noise) for explain, s in asked.items() if s}
    risen = {explain: pair for explain, pair in pairs.items() if pair}
    if not risen:
        return None
    of = next(s.of for explain, s in asked.items() if s and explain in risen)
    examples = (round(of[0].sum()), round(of[1].sum()))
    question = _question(output, site, list(risen.values()), examples, moved, level)
    if labels_changed and by_class not in risen:
        why = "labels changed their frequency, and there is no confusion matrix to tell that from a change of meaning"
        return replace(question, p=None, unclear=why)
    return question


def _joined(sites: Sequence[Windows], output: str, sections: tuple[str, ...], explain: Explain) -> Strata | None:
    given = [w for w in sites if w.has(*sections)]
    if not given or (explain is by_class and output not in given[0].recent.confusion):
        return None
    return joined([explain(w, output) for w in given])


def _question(  # noqa: PLR0913, PLR0917 - the numbers of one sentence
    output: str,
    site: str | None,
    readings: Sequence[tuple[Rise, Rise]],
    examples: tuple[int, int],
    moved: float,
    level: float,
) -> Question:
    risen, doubted = zip(*readings, strict=True)
    z = float(ndtri(1 - level))
    chance = z * max(r.error for r in risen)
    threshold = max(chance, FLOOR, moved)
    effect = min(r.effect for r in risen)
    ps = [r.p for r in risen if r.p is not None]
    p = max(ps) if len(ps) == len(risen) else None
    worst = min(r.effect for r in doubted)
    doubtful = all(r.p is not None and r.p <= level for r in doubted) and worst > threshold >= effect
    unclear = ""
    if p is None or chance > BLUNT:
        unclear = f"a fall of accuracy by {max(chance, BLUNT):.2f} could be chance"
    elif doubtful:
        unclear = "it depends on what the suppressed counts are"
    explained = f", {moved:.2f} of the inputs moved" if moved else ""
    return Question(
        kind="concept",
        subject=output,
        site=site,
        statistic=effect,
        threshold=threshold,
        p=p,
        effect=effect,
        n_reference=examples[0],
        n_recent=examples[1],
        large=effect > threshold,
        unclear=unclear,
        name=f"what the model should answer ({output}) {at(site)}",
        numbers=f"accuracy at equal inputs and labels {_fell(effect)}, threshold {threshold:.3f}{explained}",
    )


def _fell(by: float) -> str:
    return f"fell by {by:.3f}" if by >= 0 else f"rose by {-by:.3f}"
