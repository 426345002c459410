"""A check: what a site counts about its data and the model's answers, without training (``server.checking``).

A check is asked as the sum "check" (``fedretrain.sums``) at the values of the model in use, and what comes is whole
numbers that add up across sites. Nothing is folded together: the server keeps one answer for each site.

Each site answers for two windows: "reference", its examples before ``since``, and "recent", those from then on. Where
examples have no time, or ``since`` is not given, all are recent. Arrays by key, int64 but for two, -1 in a cell that is
withheld::

    site        float64 [2]     the smallest count that leaves the site; epsilon of the noise on every count, 0: none
    reasons     [sections]      by ``SECTIONS``, a code of ``REASONS``
    examples    [2]             by window: complete examples, which all else is counted over; 0 where they are fewer
                                than the smallest count, and all else but missing and impossible is then -1
    business    float64 [m]     by ``settings.metrics``; 0 where it is not given
    given       [m]             1 where it is
    units       uint8 [m, 16]   UTF-8, zeros behind it
    events      [32, 2]         what a detector saw: position in ``STREAMS``, Unix seconds at the beginning of the day;
                                unused rows are -1

and for each window, in the order of ``WINDOW_FIELDS``, one flat array for each field, its subjects one after another::

    histograms        by feature: cells of its histogram (``fedretrain.contract.Feature``)
    missing           by ``subjects``: rows without a finite value there
    impossible        by ``subjects``: rows with a value that the contract's range or dtype does not allow; rows in
                      either of these two are no complete examples
    constant          by feature: 1 where all examples have one value
    duplicates        examples that repeat an earlier one of the site, inputs and labels alike
    label_noise       labelled examples that the model confidently takes for another label
    labels            by output: examples with each of ``label_names``; of a multilabel output each label counts
    predicted         by output: examples that the model takes for each of the contract's labels
    confusion         by output with one decision: [true, predicted] of labelled examples, row by row
    confidence        by output: examples by their confidence, in ``CONFIDENCE_BINS`` equal bins of 0 to 1
    confidence_sum    by output and bin: sum of the confidences, each rounded to thousandths, in thousandths
    labelled, right   by output and bin: labelled examples, and those of them the model is right about
    age               examples by their age in days on the day of the check, cells between ``AGE_EDGES_DAYS``

Confidence is the greatest of an output's probabilities. A multilabel output is right where all its labels are, and its
confidence is the product of those of its labels. A regression, and an output that decides several times about one
example, have none of the fields that are by output.

The answer's number of examples is that of its complete ones, in both windows. A section that is not given is -1 in all
its cells. A cell below the site's smallest count is -1 unless it is 0: whoever reads it knows that it lies from 0 to
less than that count.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, Strict

from .contract import Contract, OutputSpec, VariableSpec, key
from .errors import ConfigurationError
from .jobtables import Name, NamedConfig
from .watching import SECTIONS, UNKNOWN, WatchSection

__all__ = [
    "AGE_EDGES_DAYS",
    "CONFIDENCE_BINS",
    "CONFIDENCE_UNIT",
    "EVENTS",
    "FAILED",
    "GIVEN",
    "MOST_COLUMNS",
    "MOST_CONFUSED",
    "NOT_ASKED",
    "NOT_DECLARED",
    "NO_LABELS",
    "NO_TIMES",
    "POLICY",
    "REASONS",
    "SECTIONS",
    "STREAMS",
    "SUM",
    "TOO_FEW",
    "UNIT_BYTES",
    "UNKNOWN",
    "WINDOWS",
    "WINDOW_FIELDS",
    "Answer",
    "Cells",
    "CheckSettings",
    "IntArray",
    "WatchSection",
    "blank",
    "decisions",
    "directions",
    "label_names",
    "layout",
    "subjects",
]

SUM = "check"
"""The name under which a check is asked (``fedretrain.sums``)."""
WINDOWS = ("reference", "recent")
REASONS = {
    0: "given",
    1: "policy",
    2: "too few",
    3: "no labels",
    4: "not asked",
    5: "failed",
    6: "no times",
    7: "not declared",  # of the metrics that are asked for
}
GIVEN, POLICY, TOO_FEW, NO_LABELS, NOT_ASKED, FAILED, NO_TIMES, NOT_DECLARED = REASONS
STREAMS = ("error", "confidence")
"""What a streaming detector watches: errors where there are labels, else the model's lack of confidence."""
CONFIDENCE_BINS = 10
CONFIDENCE_UNIT = 1000  # parts of 1 in which sums of confidences are counted
AGE_EDGES_DAYS = (1, 7, 30, 90, 365)
EVENTS = 32  # events of a site in one check
UNIT_BYTES = 16
MOST_CONFUSED = 64  # labels of an output whose confusion matrix is asked for
MOST_COLUMNS = 64  # columns of a flat input that are watched one by one

IntArray = NDArray[np.int64]
Cells = dict[str, dict[str, IntArray]]
"""One window's counts: by field, then by subject ("" where there is but one), in the shape the field has there."""


class CheckSettings(BaseModel):
    """Settings of the sum "check"; ``since`` in seconds since 1970 UTC."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    since: float | None = None
    statistics: Annotated[tuple[str, ...], Strict(False)] = SECTIONS
    labels: Annotated[tuple[str, ...], Strict(False)] = ()
    metrics: Annotated[tuple[Name, ...], Strict(False), Field(max_length=64)] = ()
    detector: NamedConfig | None = None

    @property
    def config(self) -> NamedConfig:
        """The sum as a request names it."""
        return NamedConfig(name=SUM, **self.model_dump(mode="json"))


def subjects(contract: Contract) -> tuple[str, ...]:
    """What missing and impossible values are counted by: columns that are features, else whole inputs."""
    found: list[str] = []
    for spec in contract.inputs:
        columns = [f.name for f in contract.features if f.kind == "column" and f.input == spec.name]
        found += columns or [spec.name]
    return tuple(found)


def decisions(spec: OutputSpec) -> Literal["one", "several", "none"]:
    """How an output decides about one example: for one of its labels, about each of them, or in no way we count."""
    shape = spec.shape[:-1] if spec.kind in {"multiclass", "onehot"} else spec.shape
    if spec.kind == "multilabel" and len(shape) == 1:
        return "several"
    if spec.kind in {"multiclass", "onehot", "binary"} and all(n == 1 for n in shape):
        return "one"
    return "none"


def label_names(spec: OutputSpec, settings: CheckSettings) -> tuple[str, ...]:
    """Labels that are counted of an output: the contract's, those to look for, and all others together."""
    return (*spec.labels, *(name for name in settings.labels if name not in spec.labels), UNKNOWN)


def directions(contract: Contract, size: int, count: int) -> NDArray[np.float32]:
    """Fixed unit vectors that a layer of ``size`` values is projected on, [size, count], the same on every machine.

    Each is a normal vector of length 1, drawn with the architecture's fingerprint for its seed; the first ones are the
    same however many there are.
    """
    columns = []
    for number in range(count):
        seed = [int(contract.architecture[i : i + 8], 16) for i in range(0, 64, 8)]
        drawn = np.random.Generator(np.random.PCG64([*seed, number])).standard_normal(size)
        columns.append((drawn / np.sqrt(np.sum(drawn * drawn))).astype(np.float32))
    return np.stack(columns, axis=1) if columns else np.zeros((size, 0), np.float32)


def _by_feature(contract: Contract, _settings: CheckSettings) -> Iterator[tuple[str, tuple[int, ...]]]:
    return ((feature.name, (feature.cells,)) for feature in contract.features)


def _flags(contract: Contract, _settings: CheckSettings) -> Iterator[tuple[str, tuple[int, ...]]]:
    return ((feature.name, ()) for feature in contract.features)


def _by_subject(contract: Contract, _settings: CheckSettings) -> Iterator[tuple[str, tuple[int, ...]]]:
    return ((name, ()) for name in subjects(contract))


def _alone(_contract: Contract, _settings: CheckSettings) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "", ()


def _ages(_contract: Contract, _settings: CheckSettings) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "", (len(AGE_EDGES_DAYS) + 1,)


def _labels(contract: Contract, settings: CheckSettings) -> Iterator[tuple[str, tuple[int, ...]]]:
    decided = (spec for spec in contract.outputs if decisions(spec) != "none")
    return ((spec.name, (len(label_names(spec, settings)),)) for spec in decided)


def _predicted(contract: Contract, _settings: CheckSettings) -> Iterator[tuple[str, tuple[int, ...]]]:
    return ((spec.name, (len(spec.labels),)) for spec in contract.outputs if decisions(spec) != "none")


def _confusion(contract: Contract, _settings: CheckSettings) -> Iterator[tuple[str, tuple[int, ...]]]:
    for spec in contract.outputs:
        if decisions(spec) == "one" and len(spec.labels) <= MOST_CONFUSED:
            yield spec.name, (len(spec.labels), len(spec.labels))


def _bins(contract: Contract, _settings: CheckSettings) -> Iterator[tuple[str, tuple[int, ...]]]:
    return ((spec.name, (CONFIDENCE_BINS,)) for spec in contract.outputs if decisions(spec) != "none")


Shapes = Callable[[Contract, CheckSettings], Iterator[tuple[str, tuple[int, ...]]]]
WINDOW_FIELDS: Mapping[str, tuple[str, Shapes]] = {
    "histograms": ("histogram", _by_feature),
    "missing": ("quality", _by_subject),
    "impossible": ("quality", _by_subject),
    "constant": ("quality", _flags),
    "duplicates": ("quality", _alone),
    "label_noise": ("quality", _alone),
    "labels": ("labels", _labels),
    "predicted": ("predictions", _predicted),
    "confusion": ("confusion", _confusion),
    "confidence": ("confidence", _bins),
    "confidence_sum": ("confidence", _bins),
    "labelled": ("calibration", _bins),
    "right": ("calibration", _bins),
    "age": ("age", _ages),
}
"""What is counted in a window: the section it belongs to, and its subjects with their shapes."""


def blank(contract: Contract, settings: CheckSettings) -> Cells:
    """One window's counts, every cell withheld (-1)."""
    return {
        name: {subject: np.full(shape, -1, np.int64) for subject, shape in shapes(contract, settings)}
        for name, (_, shapes) in WINDOW_FIELDS.items()
    }


def layout(contract: Contract, settings: CheckSettings) -> dict[str, VariableSpec]:
    """The arrays of a site's answer by key; see the module docstring.

    Raises:
        ConfigurationError: A contract without features, or settings that name an unknown section.
    """
    unknown = sorted(set(settings.statistics) - set(SECTIONS))
    if unknown:
        raise ConfigurationError(f"sum check: statistics: expected some of {', '.join(SECTIONS)}, got {unknown}")
    metrics = len(settings.metrics)
    shapes: list[tuple[tuple[int, ...], str]] = [
        ((2,), "float64"),
        ((len(SECTIONS),), "int64"),
        ((len(WINDOWS),), "int64"),
        ((metrics,), "float64"),
        ((metrics,), "int64"),
        ((metrics, UNIT_BYTES), "uint8"),
        ((EVENTS, 2), "int64"),
    ]
    cells = blank(contract, settings)
    sizes = [sum(array.size for array in by_subject.values()) for by_subject in cells.values()]
    shapes += [((size,), "int64") for size in sizes] * len(WINDOWS)
    return {key(i): VariableSpec(shape=s, dtype=dtype, rule="average") for i, (s, dtype) in enumerate(shapes)}


@dataclass(frozen=True, eq=False)
class Answer:
    """One site's answer, before it travels or after it was admitted.

    Attributes:
        min_count: The smallest count that leaves the site.
        epsilon: Of the noise on every count; None where there is none.
        reasons: By section, a code of ``REASONS``.
        examples: By window.
        windows: By window, its counts; made by ``blank``, and filled in place.
        business: By metric: value and unit.
        events: (one of ``STREAMS``, Unix seconds at the beginning of the day), in order of time.
    """

    min_count: int
    epsilon: float | None
    reasons: dict[str, int]
    examples: dict[str, int]
    windows: dict[str, Cells]
    business: dict[str, tuple[float, str]]
    events: tuple[tuple[str, int], ...]

    @classmethod
    def blank(cls, contract: Contract, settings: CheckSettings, min_count: int, epsilon: float | None) -> "Answer":
        """An answer that gives nothing yet; sections that are asked for have failed until they are filled in."""
        return cls(
            min_count,
            epsilon,
            {name: FAILED if name in settings.statistics else NOT_ASKED for name in SECTIONS},
            dict.fromkeys(WINDOWS, 0),
            {window: blank(contract, settings) for window in WINDOWS},
            {},
            (),
        )

    def to_arrays(self, settings: CheckSettings) -> list[NDArray[Any]]:
        """The arrays in the order of ``layout``; of more than ``EVENTS`` events the latest."""
        value = np.array([self.business.get(name, (0.0, ""))[0] for name in settings.metrics], np.float64)
        given = np.array([name in self.business for name in settings.metrics], np.int64)
        units = np.zeros((len(settings.metrics), UNIT_BYTES), np.uint8)
        for row, name in enumerate(settings.metrics):
            cut = self.business.get(name, (0.0, ""))[1].encode()[:UNIT_BYTES]
            text = cut.decode(errors="ignore").encode()
            units[row, : len(text)] = np.frombuffer(text, np.uint8)
        events = np.full((EVENTS, 2), -1, np.int64)
        for row, (stream, day) in enumerate(self.events[-EVENTS:]):
            events[row] = STREAMS.index(stream), day
        arrays: list[NDArray[Any]] = [
            np.array([self.min_count, self.epsilon or 0.0], np.float64),
            np.array([self.reasons[name] for name in SECTIONS], np.int64),
            np.array([self.examples[window] for window in WINDOWS], np.int64),
            value,
            given,
            units,
            events,
        ]
        for window in WINDOWS:
            for by_subject in self.windows[window].values():
                flat = [array.reshape(-1) for array in by_subject.values()]
                arrays.append(np.concatenate(flat).astype(np.int64) if flat else np.zeros(0, np.int64))
        return arrays

    @classmethod
    def from_arrays(cls, arrays: list[NDArray[Any]], contract: Contract, settings: CheckSettings) -> "Answer":
        """What arrays of ``layout`` say, whatever it is; ``server.checking.ask`` judges it.

        Raises:
            ValueError: A unit that is no text, or an event of no stream.
        """
        site, reasons, examples, value, given, units, events = arrays[:7]
        windows = {window: blank(contract, settings) for window in WINDOWS}
        fields = [by_subject for window in WINDOWS for by_subject in windows[window].values()]
        for by_subject, array in zip(fields, arrays[7:], strict=True):
            start = 0
            for cells in by_subject.values():
                cells[...] = array[start : start + cells.size].reshape(cells.shape)
                start += cells.size
        texts = [bytes(row).rstrip(b"\0").decode() for row in units]
        metrics = zip(settings.metrics, value, given, texts, strict=True)
        seen = [(int(stream), int(day)) for stream, day in events if stream != -1 or day != -1]
        if any(not 0 <= stream < len(STREAMS) for stream, _ in seen):
            raise ValueError("an event of no stream")
        return cls(
            int(site[0]),
            float(site[1]) or None,
            dict(zip(SECTIONS, map(int, reasons), strict=True)),
            dict(zip(WINDOWS, map(int, examples), strict=True)),
            windows,
            {name: (float(number), unit) for name, number, there, unit in metrics if there},
            tuple((STREAMS[stream], day) for stream, day in seen),
        )
