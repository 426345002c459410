"""From a check's counts to its findings: which inputs, labels, meanings and data changed, where, and how sure that is.

Pure: the same checks and settings have the same findings, in whatever order sites answered and earlier checks come.

Told apart. Changed inputs and changed label frequencies are found by themselves; that inputs mean something else is
called only where neither explains that the model is wrong more often (``server.drift.concept``).
"""

from collections.abc import Sequence

from fedretrain.checks import WatchSection
from server.checking.document import Check

from .concept import ask_concept
from .covariate import ask_inputs, compare_inputs
from .findings import Findings
from .label_shift import ask_labels
from .performance import performance
from .quality import ask_quality
from .question import Question, answer, at
from .stream import ask_streams
from .windows import Windows, untrained_of, windows_of


def analyse(check: Check, earlier: Sequence[Check], settings: WatchSection) -> Findings:
    """What a check comes to.

    Args:
        check: What the sites counted.
        earlier: Checks before it, in any order: where a site has too few examples in the reference window, the
            earliest comparable one takes its place (``server.drift.windows``).
        settings: The level and the least effect.
    """
    sites, untrained = windows_of(check, earlier), untrained_of(check, earlier)
    asked = (settings.significance, settings.effect)
    looks = _ask_looks(sites, check, asked)
    explaining = looks if check.release is None else _ask_looks(untrained, check, asked)
    changed = {(f.kind, f.subject, f.site) for f in answer(explaining, settings.significance) if f.verdict == "drift"}
    known = [q for q in explaining if (q.kind, q.subject, q.site) in changed]
    questions = [
        *looks,
        *(q for output in sorted(check.labels) for q in _ask_meanings(untrained, output, known, settings.significance)),
        *ask_quality(sites, untrained, settings.significance),
        *ask_streams(check),
    ]
    return Findings(
        check=check.check,
        at=check.at,
        findings=answer(questions, settings.significance),
        performance=performance(sites, untrained, sorted(check.labels)),
    )


def _ask_looks(sites: Sequence[Windows], check: Check, asked: tuple[float, float]) -> list[Question]:
    """Whether inputs look different, and labels come more or less often."""
    inputs = compare_inputs(sites, check.features, asked[0])
    labels = (q for output, names in sorted(check.labels.items()) for q in ask_labels(sites, output, names, asked))
    return [*ask_inputs(sites, check.features, inputs, *asked), *labels]


def _ask_meanings(sites: Sequence[Windows], output: str, known: Sequence[Question], level: float) -> list[Question]:
    """Whether what an output should answer changed, at all sites together and at each with labels.

    Args:
        sites: Those with examples that the model was not trained on.
        output: Its name.
        known: What is known to have changed between the same windows: inputs and label frequencies.
        level: Of the threshold.
    """
    found = []
    for where, which in [(None, list(sites)), *((w.site, [w]) for w in sites)]:
        labels = any(q.kind == "label" and q.site == where for q in known)
        question = ask_concept(which, output, where, _moved(sites, known, where), labels, level)
        found += [question] if question else []
    return found or [_unlabelled(sites, output)]


def _moved(sites: Sequence[Windows], known: Sequence[Question], site: str | None) -> float:
    """The share of recent examples whose inputs moved, beyond what label frequencies moved; 0 where none did.

    Of all sites together no less than the mean of the sites, as opposite changes cancel in the sum.
    """
    inputs, labels = (
        max((q.moved for q in known if q.kind == kind and q.site == site), default=0.0)
        for kind in ("covariate", "label")
    )
    here = max(0.0, inputs - labels)
    if site is not None:
        return here
    total = sum(w.recent.examples for w in sites) or 1
    return max(here, sum(w.recent.examples / total * _moved(sites, known, w.site) for w in sites))


def _unlabelled(sites: Sequence[Windows], output: str) -> Question:
    return Question(
        kind="concept",
        subject=output,
        site=None,
        statistic=0.0,
        threshold=0.0,
        p=None,
        effect=0.0,
        n_reference=sum(w.reference.examples for w in sites),
        n_recent=sum(w.recent.examples for w in sites),
        large=False,
        unclear="no site gives right answers about labelled examples from two times that the model was not trained on",
        name=f"what the model should answer ({output}) {at(None)}",
        numbers="",
    )
