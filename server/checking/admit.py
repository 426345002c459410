"""Whether an answer to a check can be one: counts that no examples can have cost the site that sends them its answer.

Pure: values in, a ``SiteCheck`` or ``RejectedUpdate`` out. What cannot be checked is believed of that site alone: its
counts stand beside the others' and are never folded into them here.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from fedretrain.arrays import malformed, plain
from fedretrain.checks import (
    CONFIDENCE_BINS,
    CONFIDENCE_UNIT,
    GIVEN,
    REASONS,
    WINDOW_FIELDS,
    WINDOWS,
    Answer,
    Cells,
    CheckSettings,
    IntArray,
    decisions,
)
from fedretrain.contract import Contract
from server.admission import CLAIM_LIMIT, EXAMPLES_LIMIT

from .document import Counts, SiteCheck, Window

LEAST_EPSILON = 0.001
_SPREAD = 40.0  # times 1 / epsilon: a count's noise is below that but once in 10^8, at a sensitivity of 2
_DAY = 86_400
_WHOLE = ("histograms", "confidence")  # each example is in one cell of these


def site_check(answer: Answer, site: str, declared: int, contract: Contract, settings: CheckSettings) -> SiteCheck:
    """The answer as the document has it, if it can be true.

    Args:
        answer: As it came, of the right arrays.
        site: Whose.
        declared: Examples that the site declared when it was prepared.
        contract: With the features.
        settings: What was asked.

    Raises:
        RejectedUpdate: ``malformed``, with the first thing that cannot be.
    """
    _check_frame(answer, declared)
    for window in WINDOWS:
        for field, (section, _) in WINDOW_FIELDS.items():
            for subject, cells in answer.windows[window][field].items():
                where = f"{window} {field} {subject}".rstrip()
                _check_cells(cells, where, given=answer.reasons[section] == GIVEN)
        _check_window(answer, window, contract)
    _check_business(answer, settings)
    _check_events(answer)
    detector = settings.detector.name if settings.detector else ""
    return SiteCheck(
        site=site,
        reference=_window(answer.examples["reference"], answer.windows["reference"]),
        recent=_window(answer.examples["recent"], answer.windows["recent"]),
        withheld={section: REASONS[code] for section, code in answer.reasons.items() if code != GIVEN},
        min_count=answer.min_count,
        epsilon=answer.epsilon,
        business=answer.business,
        events=tuple((f"{detector} {stream}", day) for stream, day in answer.events),
    )


def _check_frame(answer: Answer, declared: int) -> None:
    """What all the rest is judged by."""
    if not 1 <= answer.min_count <= EXAMPLES_LIMIT:
        malformed(f"smallest count: expected at least 1, got {answer.min_count}")
    if answer.epsilon is not None and not LEAST_EPSILON <= answer.epsilon <= CLAIM_LIMIT:
        malformed(f"epsilon: expected at least {LEAST_EPSILON}, or 0 for no noise, got {answer.epsilon:g}")
    for section, code in answer.reasons.items():
        if code not in REASONS:
            malformed(f"reason of {section}: expected one of {list(REASONS)}, got {code}")
    total = sum(answer.examples.values())
    if min(answer.examples.values()) < 0 or total > declared + _slack(answer, len(WINDOWS)):
        malformed(f"examples: expected at most {declared}, as declared, got {list(answer.examples.values())}")


def _check_cells(cells: IntArray, where: str, *, given: bool) -> None:
    if np.any(cells < -1) or np.any(cells > EXAMPLES_LIMIT * CONFIDENCE_UNIT):
        malformed(f"{where}: expected counts, or -1 where they are withheld")
    if not given and np.any(cells != -1):
        malformed(f"{where}: expected -1, as the section is withheld")


def _check_window(answer: Answer, window: str, contract: Contract) -> None:
    """Counts over one window against how many examples it has."""
    examples, fields = answer.examples[window], answer.windows[window]
    for field, subject, cells, whole in _partitions(fields, contract):
        where = f"{window} {field} {subject}".rstrip()
        known = int(cells[cells >= 0].sum())
        slack = _slack(answer, cells.size)
        if known > examples + slack:
            malformed(f"{where}: expected at most {examples} examples, got {known}")
        if whole and known < examples - slack and not np.any(cells < 0):
            malformed(f"{where}: expected {examples} examples, got {known}")
    if any(np.any(flag > 1) for flag in fields["constant"].values()):
        malformed(f"{window} constant: expected 0 or 1")
    if answer.epsilon is None:
        _check_bins(window, fields)


def _partitions(fields: Cells, contract: Contract) -> Iterator[tuple[str, str, IntArray, bool]]:
    """Cells that an example is in once at most: field, subject, cells, and whether it is in one of them for certain."""
    one = {spec.name for spec in contract.outputs if decisions(spec) == "one"}
    for field in ("histograms", "confidence", "age", "labelled", "right", "confusion"):
        yield from ((field, subject, cells, field in _WHOLE) for subject, cells in fields[field].items())
    for field in ("labels", "predicted"):
        for subject, cells in fields[field].items():
            if subject in one:
                yield field, subject, cells, field == "predicted"
            else:
                yield from ((field, f"{subject} {i}", cells[i : i + 1], False) for i in range(cells.size))
    for field in ("duplicates", "label_noise"):
        yield field, "", fields[field][""].reshape(1), False


def _check_bins(window: str, fields: Cells) -> None:
    """Without noise: the right are among the labelled, these among all, and confidences lie in their bin."""
    for output, confidence in fields["confidence"].items():
        labelled, right = fields["labelled"][output], fields["right"][output]
        for less, more, what in ((right, labelled, "right"), (labelled, confidence, "labelled")):
            if np.any((less > more) & (more >= 0)):
                malformed(f"{window} {what} {output}: expected no more than there are in the bin")
        total, bins = fields["confidence_sum"][output], np.arange(CONFIDENCE_BINS)
        width = CONFIDENCE_UNIT / CONFIDENCE_BINS
        low, high = (bins * width - 1) * confidence, ((bins + 1) * width + 1) * confidence
        if np.any((total >= 0) & (confidence >= 0) & ((total < low) | (total > high))):
            malformed(f"{window} confidence_sum {output}: expected sums of numbers that lie in their bin")


def _check_business(answer: Answer, settings: CheckSettings) -> None:
    if answer.business and answer.reasons["business"] != GIVEN:
        malformed("business: expected nothing, as the section is withheld")
    for name in settings.metrics:
        value, unit = answer.business.get(name, (0.0, ""))
        if not math.isfinite(value) or abs(value) > CLAIM_LIMIT or plain(unit) != unit:
            malformed(f"business {name}: expected a finite number with a printable unit")


def _check_events(answer: Answer) -> None:
    if answer.events and answer.reasons["stream"] != GIVEN:
        malformed("events: expected none, as the section is withheld")
    if any(day < 0 or day % _DAY or day > EXAMPLES_LIMIT for _, day in answer.events):
        malformed("events: expected times at the beginning of a day")


def _slack(answer: Answer, cells: int) -> int:
    """How far noise on so many counts may carry their sum."""
    return 0 if answer.epsilon is None else math.ceil(_SPREAD * cells / answer.epsilon)


def _window(examples: int, cells: Cells) -> Window:
    unit = float(CONFIDENCE_UNIT)
    sums = {name: _counts(found) for name, found in cells["confidence_sum"].items()}
    return Window(
        examples=examples,
        histograms=_all(cells["histograms"]),
        missing={name: _count(found) for name, found in cells["missing"].items()},
        impossible={name: _count(found) for name, found in cells["impossible"].items()},
        constant=tuple(name for name, found in cells["constant"].items() if found == 1),
        duplicates=_count(cells["duplicates"][""]),
        label_noise=_count(cells["label_noise"][""]),
        labels=_all(cells["labels"]),
        predicted=_all(cells["predicted"]),
        confusion={name: tuple(map(_counts, found)) for name, found in cells["confusion"].items()},
        confidence=_all(cells["confidence"]),
        confidence_sum={name: tuple(None if c is None else c / unit for c in found) for name, found in sums.items()},
        right=_all(cells["right"]),
        labelled=_all(cells["labelled"]),
        age=_counts(cells["age"][""]),
    )


def _all(cells: Mapping[str, IntArray]) -> dict[str, Counts]:
    return {name: _counts(found) for name, found in cells.items()}


def _counts(cells: IntArray) -> Counts:
    return tuple(map(_count, cells))


def _count(cell: IntArray) -> int | None:
    return None if cell < 0 else int(cell)
