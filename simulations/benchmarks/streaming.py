"""How often a site's detector of change fires on a stream without one, and how soon on a stream with one.

Streams are drawn: errors, each with the same probability, or one minus the confidence of a model, which lies near 0
mostly. Numpy alone, about a minute with 500 seeds.

Use::

    python -m simulations.benchmarks.streaming --into docs/watching.md
    python -m simulations.benchmarks.streaming --detector '{ name = "adwin" }'      (with the extra river)
"""

import argparse
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.streaming import DAY, events
from fedretrain.detectors import DEFAULT, RIVER, check_detector
from fedretrain.errors import ConfigurationError, FedretrainError
from fedretrain.jobtables import NamedConfig

from .table import Table, common_arguments, emit

LENGTHS = (100, 1_000, 10_000)
RATES = (0.02, 0.1, 0.3, 0.5)
CHANGES = ((0.02, 0.05), (0.02, 0.1), (0.1, 0.05), (0.1, 0.1), (0.1, 0.2), (0.3, 0.1), (0.3, 0.2))
"""Error rate before, and by how much it rises."""
BEFORE, AFTER = 1_000, 2_000
_SMOKE_SEEDS = 2
_UNSURE = 0.1  # mean of one minus the confidence
_NOTE_ALARMS = "Streams with at least one event, in percent. {seeds} streams a cell; `{detector}`."
_NOTE_DELAY = (
    "Errors become more after {before:,} examples, all at once. Found: streams with an event within the next {after:,} "
    "examples, in percent; examples: how many of these had gone by when the first was found, the median of the streams "
    "in which it was. Events before the change are left out: the stream goes on behind them. {seeds} streams a row; "
    "`{detector}`."
)
Draw = Callable[[np.random.Generator, int], NDArray[Any]]


@dataclass(frozen=True)
class Found:
    """How many streams of a row had an event after the change, and how many examples it took in those."""

    streams: int
    delays: tuple[int, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    options = _parse(arguments)
    try:
        detector = _detector(options.detector)
        check_detector(detector)
        emit([alarm_table(detector, options.seeds), delay_table(detector, options.seeds)], options)
    except FedretrainError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def alarm_table(detector: NamedConfig, seeds: int) -> Table:
    """False alarms by kind of stream and its length."""
    made = Table(
        "streaming-alarms",
        "Events in streams in which nothing changes, % of the streams",
        ("", *(f"n = {n:,}" for n in LENGTHS)),
        note=_NOTE_ALARMS.format(seeds=seeds, detector=_text(detector)),
        command="python -m simulations.benchmarks.streaming",
    )
    streams: dict[str, Draw] = {f"errors, {rate:.0%}": _errors(rate) for rate in RATES}
    if not RIVER.get(detector.name):  # which take errors alone
        streams[f"one minus confidence, mean {_UNSURE:.0%}"] = _unsure
    for number, (name, draw) in enumerate(streams.items()):
        shares = (100 * false_alarms(detector, draw, n, seeds, number) / seeds for n in LENGTHS)
        made.add(name, *(f"{share:.1f}" for share in shares))
    return made


def delay_table(detector: NamedConfig, seeds: int) -> Table:
    """Changes found, and the examples it took, by error rate before and rise."""
    made = Table(
        "streaming-delay",
        "How soon a rise of the error rate is found",
        ("error rate, %", "found, %", "examples, median"),
        note=_NOTE_DELAY.format(before=BEFORE, after=AFTER, seeds=seeds, detector=_text(detector)),
        command="python -m simulations.benchmarks.streaming",
    )
    for number, (rate, rise) in enumerate(CHANGES):
        found = changes_found(detector, rate, rise, seeds, number)
        delay = int(median(found.delays)) if found.delays else None
        made.add(f"{100 * rate:g} to {100 * (rate + rise):g}", f"{100 * len(found.delays) / found.streams:.0f}", delay)
    return made


def false_alarms(detector: NamedConfig, draw: Draw, n: int, seeds: int, stream: int) -> int:
    """How many of ``seeds`` streams of ``n`` examples have an event."""
    return sum(bool(_positions(draw(np.random.default_rng((0, stream, n, s)), n), detector)) for s in range(seeds))


def changes_found(detector: NamedConfig, rate: float, rise: float, seeds: int, stream: int) -> Found:
    """Of ``seeds`` streams whose error rate rises from ``rate`` after ``BEFORE`` examples."""
    delays = []
    for seed in range(seeds):
        rng = np.random.default_rng((1, stream, seed))
        values = np.concatenate([_errors(rate)(rng, BEFORE), _errors(rate + rise)(rng, AFTER)])
        delays += [at + 1 - BEFORE for at in _positions(values, detector) if at >= BEFORE][:1]
    return Found(seeds, tuple(delays))


def _positions(values: NDArray[Any], detector: NamedConfig) -> list[int]:
    """Where events are: with one example a day, the day is the position."""
    return [event.day // DAY for event in events(values, DAY * np.arange(len(values), dtype=np.float64), detector)]


def _errors(rate: float) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> NDArray[Any]:
        return (rng.random(n) < rate).astype(np.float64)

    return draw


def _unsure(rng: np.random.Generator, n: int) -> NDArray[Any]:
    """Beta(0.3, 2.7): near 0 mostly, mean 0.1."""
    return rng.beta(3 * _UNSURE, 3 * (1 - _UNSURE), n)


def _detector(text: str | None) -> NamedConfig:
    if text is None:
        return DEFAULT
    try:
        return NamedConfig(**tomllib.loads(f"detector = {text}")["detector"])
    except (tomllib.TOMLDecodeError, TypeError, ValueError):
        raise ConfigurationError(f'--detector: expected a table such as {{ name = "adwin" }}, got {text}') from None


def _text(detector: NamedConfig) -> str:
    settings = "".join(f", {key} = {value}" for key, value in detector.settings.items())
    return f'{{ name = "{detector.name}"{settings} }}'


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.streaming", description=__doc__)
    common_arguments(parser)
    parser.add_argument("--seeds", type=int, help=f"streams of each cell (500; with --smoke {_SMOKE_SEEDS})")
    parser.add_argument("--detector", metavar="TABLE", help="as in [watch] detector of a job (page-hinkley)")
    options = parser.parse_args(arguments)
    options.seeds = options.seeds or (_SMOKE_SEEDS if options.smoke else 500)
    return options


if __name__ == "__main__":
    raise SystemExit(main())
