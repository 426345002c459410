"""A site's answer to a check: each section counted by itself, so that one that is withheld or fails costs no other."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.checks import (
    CONFIDENCE_UNIT,
    FAILED,
    GIVEN,
    NO_LABELS,
    NO_TIMES,
    NOT_ASKED,
    NOT_DECLARED,
    POLICY,
    TOO_FEW,
    WINDOW_FIELDS,
    WINDOWS,
    Answer,
    CheckSettings,
    decisions,
)
from fedretrain.contract import Contract, OutputSpec
from fedretrain.dataset import Dataset
from fedretrain.features import histogram, values

from . import counting, quality
from .business import Metrics, arrays_of
from .predictions import Answers
from .reading import Found
from .suppress import Guard
from .windows import Mask, windows

Array = NDArray[Any]
Numbers = dict[str, tuple[float, str]]


@dataclass(frozen=True)
class Rules:
    """What of a check may leave the site, and how.

    Attributes:
        guard: For counts.
        may: Whether a section may leave at all.
        metrics: Gives the business metrics of these names, of the recent examples' arrays (``business.reader``).
        failed: Is told which section failed of what; nothing is raised.
        now: The check's time, seconds since 1970 UTC.
    """

    guard: Guard
    may: Callable[[str], bool]
    metrics: Metrics
    failed: Callable[[str, Exception], None]
    now: float


def answered(
    found: Found, contract: Contract, settings: CheckSettings, answers: Answers | None, rules: Rules
) -> tuple[Answer, Mask | None]:
    """The site's answer, and which of its complete examples have suspected labels.

    Args:
        found: The site's data.
        contract: What was counted by; has the features.
        settings: What is asked.
        answers: The model's, about ``found.data``; None where there are none.
        rules: The site's.
    """
    counted = _Counted(found, contract, settings, answers, rules)
    return counted.whole(), counted.doubted()


class _Counted:
    """The sections of one answer, each a method that returns a code of ``fedretrain.checks.REASONS``."""

    def __init__(
        self, found: Found, contract: Contract, settings: CheckSettings, answers: Answers | None, rules: Rules
    ) -> None:
        self._found, self._contract, self._settings = found, contract, settings
        self._answers, self._rules, self._guard = answers, rules, rules.guard
        self._answer = Answer.blank(contract, settings, rules.guard.least, rules.guard.epsilon)
        self._rows = windows(found.data.time, settings.since, len(found.data))
        self._outputs = [spec for spec in contract.outputs if decisions(spec) != "none"]
        self._events: tuple[tuple[str, int], ...] = ()
        self._business: Numbers = {}
        for window, rows in self._rows.items():
            told = self._guard.count(int(rows.sum()), "examples", window)
            self._answer.examples[window] = max(told, 0)

    def whole(self) -> Answer:
        """All sections, in their order."""
        sections: dict[str, Callable[[], int]] = {
            "histogram": self._histogram,
            "labels": self._labels,
            "predictions": self._predictions,
            "confusion": self._confusion,
            "confidence": self._confidence,
            "calibration": self._calibration,
            "quality": self._quality,
            "age": self._age,
            "business": self._of_business,
            "stream": self._stream,
        }
        for section, count in sections.items():
            if section not in self._settings.statistics:
                continue
            self._answer.reasons[section] = self._code(section, count)
            if self._answer.reasons[section] != GIVEN:
                self._take_back(section)
        return dataclasses.replace(self._answer, business=self._business, events=self._events)

    def _code(self, section: str, count: Callable[[], int]) -> int:
        if not self._rules.may(section):
            return POLICY
        if not self._open and section not in {"business", "quality"}:
            return TOO_FEW
        try:
            return count()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one section must not cost the others
            self._rules.failed(section, error)
            return FAILED

    def _take_back(self, section: str) -> None:
        """What a section wrote before it failed does not leave."""
        for field, (of, _) in WINDOW_FIELDS.items():
            for window in WINDOWS if of == section else ():
                for cells in self._answer.windows[window][field].values():
                    cells[...] = -1
        if section == "stream":
            self._events = ()

    @property
    def _open(self) -> list[str]:
        """The windows with enough examples."""
        return [window for window in WINDOWS if self._answer.examples[window] > 0]

    @property
    def _labelled(self) -> list[OutputSpec]:
        """The outputs of which any example has a label."""
        labelled = self._found.labelled
        return [spec for spec in self._outputs if spec.name in labelled and labelled[spec.name].any()]

    @cached_property
    def _numbers(self) -> dict[str, Array]:
        """The features that there are, by name."""
        plain = [feature for feature in self._contract.features if feature.kind != "projection"]
        found: dict[str, Array] = dict(values(self._contract, plain, self._found.data.x))
        return found | (self._answers.features if self._answers else {})

    @cached_property
    def _digests(self) -> list[bytes]:
        return quality.digests(self._found.data, self._contract)

    @cached_property
    def suspected(self) -> Mask | None:
        """Which examples have a suspected label; None where that cannot be said."""
        return quality.suspects(self._found, self._contract, self._answers) if self._answers else None

    def doubted(self) -> Mask | None:
        """``suspected``; None where it fails."""
        try:
            return self.suspected
        except Exception as error:  # noqa: BLE001 - as with a section
            self._rules.failed("quality", error)
            return None

    def _tell(self, field: str, subject: str, window: str, counts: Array, unit: int = 1) -> None:
        told = self._guard.told(counts.astype(np.int64), field, subject, window, unit=unit)
        self._answer.windows[window][field][subject][...] = told

    def _histogram(self) -> int:
        if not self._contract.features:
            return NOT_ASKED
        for feature in self._contract.features:
            for window in self._open if feature.name in self._numbers else []:
                numbers = self._numbers[feature.name][self._rows[window]]
                self._tell("histograms", feature.name, window, histogram(numbers, feature.edges))
        return GIVEN if self._numbers else FAILED

    def _labels(self) -> int:
        for spec in self._labelled:
            for window in self._open:
                names = self._answer.windows[window]["labels"][spec.name].size
                given = self._found.labels[spec.name][self._rows[window]]
                self._tell("labels", spec.name, window, counting.by_label(given, names))
        return GIVEN if self._labelled else NO_LABELS

    def _predictions(self) -> int:
        if self._answers is None:
            return FAILED
        for spec in self._outputs:
            predicted = self._answers.predicted(spec)
            for window in self._open:
                counts = counting.by_label(predicted[self._rows[window]], len(spec.labels))
                self._tell("predicted", spec.name, window, counts)
        return GIVEN if self._outputs else NOT_ASKED

    def _confusion(self) -> int:
        if self._answers is None:
            return FAILED
        if not self._labelled:
            return NO_LABELS
        asked = self._answer.windows[WINDOWS[0]]["confusion"]
        for spec in [spec for spec in self._labelled if spec.name in asked]:
            predicted, given = self._answers.predicted(spec), self._found.labels[spec.name]
            for window in self._open:
                rows = self._rows[window]
                counts = counting.confusion(given[rows], predicted[rows], len(spec.labels))
                self._tell("confusion", spec.name, window, counts)
        return GIVEN if asked else NOT_ASKED

    def _confidence(self) -> int:
        if self._answers is None:
            return FAILED
        for spec in self._outputs:
            confidence = self._answers.confidence(spec)
            for window in self._open:
                of_window = confidence[self._rows[window]]
                cells = counting.confidence_cells(of_window)
                self._tell("confidence", spec.name, window, counting.by_cell(cells, np.ones(len(cells), bool)))
                sums = counting.confidence_sums(of_window, cells)
                self._tell("confidence_sum", spec.name, window, sums, unit=CONFIDENCE_UNIT)
                self._hide_with(window, spec.name, "confidence", "confidence_sum")
        return GIVEN if self._outputs else NOT_ASKED

    def _calibration(self) -> int:
        if self._answers is None:
            return FAILED
        for spec in self._labelled:
            cells = counting.confidence_cells(self._answers.confidence(spec))
            labelled = self._found.labelled[spec.name]
            right = labelled & self._answers.right(spec, self._found.labels[spec.name])
            for window in self._open:
                rows = self._rows[window]
                self._tell("labelled", spec.name, window, counting.by_cell(cells[rows], labelled[rows]))
                self._tell("right", spec.name, window, counting.by_cell(cells[rows], right[rows]))
                self._hide_with(window, spec.name, "labelled", "right")
        return GIVEN if self._labelled else NO_LABELS

    def _hide_with(self, window: str, output: str, counts: str, about: str) -> None:
        """What is told about the examples of a cell is withheld where their number is."""
        fields = self._answer.windows[window]
        fields[about][output][fields[counts][output] == -1] = -1

    def _quality(self) -> int:
        """Rows that are no complete examples are told of also where no others are left, as when a device fails."""
        found = self._found
        rows_of_all = windows(found.time, self._settings.since, len(found.complete))
        read = [window for window in WINDOWS if self._is_read(window, int(rows_of_all[window].sum()))]
        for window in read:
            for field, by_subject in (("missing", found.missing), ("impossible", found.impossible)):
                for subject, bad in by_subject.items():
                    self._tell_one(field, subject, window, bad[rows_of_all[window]])
        repeated = quality.repeats(self._digests, found.data.time)
        for window in self._open:
            rows = self._rows[window]
            self._tell_one("duplicates", "", window, repeated[rows])
            if self.suspected is not None:
                self._tell_one("label_noise", "", window, self.suspected[rows])
            for name, numbers in self._numbers.items() if self._guard.epsilon is None else ():
                own = numbers[rows]
                self._answer.windows[window]["constant"][name][...] = len(own) > 0 and bool((own == own[0]).all())
        return GIVEN if read else TOO_FEW

    def _is_read(self, window: str, rows: int) -> bool:
        """Whether a window has enough rows, complete or not."""
        return window in self._open or self._guard.count(rows, "rows", window) > 0

    def _tell_one(self, field: str, subject: str, window: str, rows: Mask) -> None:
        count = self._guard.count(int(rows.sum()), field, subject, window)
        self._answer.windows[window][field][subject][...] = count

    def _age(self) -> int:
        time = self._found.data.time
        if time is None or not np.isfinite(time).any():
            return NO_TIMES
        for window in self._open:
            self._tell("age", "", window, counting.ages(time[self._rows[window]], self._rules.now))
        return GIVEN

    def _of_business(self) -> int:
        if not self._settings.metrics:
            return NOT_ASKED
        found = self._rules.metrics(self._settings.metrics, lambda: arrays_of(self._recent, self._contract))
        self._business = {name: number for name, number in found.items() if number is not None}
        if self._business:
            return GIVEN
        return FAILED if found else NOT_DECLARED

    @property
    def _recent(self) -> Dataset:
        rows = self._rows[WINDOWS[1]]
        return self._found.data if rows.all() else self._found.data.take(rows)

    def _stream(self) -> int:
        """Events among the recent examples: of errors where at least half of them have labels, else of confidence."""
        from client.streaming import events

        detector, time = self._settings.detector, self._found.data.time
        if detector is None:
            return NOT_ASKED
        if self._answers is None:
            return FAILED
        if time is None:
            return NO_TIMES
        recent = self._rows[WINDOWS[1]] & np.isfinite(time)
        seen: set[tuple[str, int]] = set()
        for spec in self._outputs:
            labelled = recent & self._found.labelled.get(spec.name, np.zeros(len(recent), bool))
            if labelled.sum() >= max(self._guard.least, recent.sum() / 2):
                kind, rows = "error", labelled
                of = 1.0 - self._answers.right(spec, self._found.labels[spec.name])
            else:
                kind, rows, of = "confidence", recent, 1.0 - self._answers.confidence(spec)
            seen |= {(kind, event.day) for event in events(of[rows], time[rows], detector)}
        self._events = tuple(sorted(seen, key=lambda event: (event[1], event[0])))
        return GIVEN if recent.sum() >= self._guard.least else TOO_FEW
