"""What the runs of each way came to, over the seeds: means and spreads, as values, as a table and as JSON.

A spread is the standard deviation between seeds, with n - 1 in the denominator; one seed has none. Accuracies and their
differences are percentages in tables and fractions everywhere else.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from simulations.benchmarks.environment import Environment
from simulations.benchmarks.table import Table, number

from .outcome import Outcome, Refused
from .run import Comparison, Found

SHARES = ("old", "new", "at_sites", "backward_transfer", "forgetting")
MEASURES = ("old_before", "new_before", *SHARES, "megabytes", "seconds")
COLUMNS = ("way", "old, %", "new, %", "at sites, %", "backward transfer", "forgetting", "MB", "seconds", "released")
IN_USE = "model in use"


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds; no deviation of a single one."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value; what is not a number is left out unless nothing else is there."""
        finite = [value for value in values if math.isfinite(value)] or [math.nan]
        return cls(statistics.fmean(finite), statistics.stdev(finite) if len(finite) > 1 else None)

    def text(self, scale: float = 1.0, digits: int = 1) -> str:
        """Such as "96.9 ± 0.4"."""
        if not math.isfinite(self.mean):
            return "-"
        deviation = "" if self.deviation is None else f" ± {scale * self.deviation:.{digits}f}"
        return f"{scale * self.mean:.{digits}f}{deviation}"


@dataclass(frozen=True)
class Way:
    """All runs of one way.

    Attributes:
        name: Of its job.
        runs: By seed.
    """

    name: str
    runs: Mapping[int, Outcome | Refused]

    @property
    def outcomes(self) -> list[Outcome]:
        """Of the runs that were not refused."""
        return [run for run in self.runs.values() if isinstance(run, Outcome)]

    @property
    def released(self) -> str:
        """Such as "2 of 3", with the reason where a run was refused."""
        reasons = {run.why: None for run in self.runs.values() if isinstance(run, Refused)}
        count = f"{sum(outcome.released for outcome in self.outcomes)} of {len(self.runs)}"
        answers = "; ".join(f"refused: {why}" for why in reasons)
        return answers if reasons and not self.outcomes else f"{count}; {answers}" if reasons else count

    def over_seeds(self) -> dict[str, Spread]:
        """The measures by name; empty where every run was refused."""
        rows = [_measures(outcome) for outcome in self.outcomes]
        return {name: Spread.of([row[name] for row in rows]) for name in MEASURES} if rows else {}


def ways(what: Comparison, found: Sequence[Found]) -> list[Way]:
    """What was found, by way, in the order of the comparison."""
    return [Way(name, {seed: of for way, seed, of in found if way == name}) for name in what.ways]


def table(what: Comparison, found: Sequence[Way], environment: Environment, command: str) -> Table:
    """One row for the model in use and one for each way."""
    title = f"{what.scenario}: accuracy on what is old and what is new, {told(what.seeds)}"
    made = Table(f"compare-{what.scenario}", title, COLUMNS, command=command, environment=environment)
    for row in rows(found):
        made.add(*row)
    return made


def told(seeds: Sequence[int]) -> str:
    """Such as "3 seeds" or "seed 7"."""
    return f"{len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"


def rows(found: Sequence[Way]) -> Iterator[tuple[str, ...]]:
    """The table's cells."""
    for way in found:
        if way.outcomes:
            spreads = way.over_seeds()
            before = (spreads[name].text(100) for name in ("old_before", "new_before"))
            yield (IN_USE, *before, *[""] * (len(COLUMNS) - 3))
            break
    for way in found:
        spreads = way.over_seeds()
        shares = [spreads[name].text(100) if spreads else "" for name in SHARES]
        costs = [number(spreads[name].mean) if spreads else "" for name in ("megabytes", "seconds")]
        yield (way.name, *shares, *costs, way.released)


def as_json(what: Comparison, found: Sequence[Way], environment: Environment) -> dict[str, Any]:
    """Everything that was measured; what is not a number is null."""
    modes = [
        {
            "mode": way.name,
            "over_seeds": {name: _finite(asdict(spread)) for name, spread in way.over_seeds().items()},
            "released": sum(outcome.released for outcome in way.outcomes),
            "runs": [{"seed": seed, **_run(run)} for seed, run in way.runs.items()],
        }
        for way in found
    ]
    about = {"scenario": what.scenario, "seeds": list(what.seeds), "sites": what.sites}
    return {**about, "modes": modes, "environment": asdict(environment)}


def _measures(of: Outcome) -> dict[str, float]:
    accuracies = (of.before.old, of.before.new, of.after.old, of.after.new, of.at_sites)
    values = (*accuracies, of.backward_transfer, of.forgetting, of.nbytes / 1e6, of.seconds)
    return dict(zip(MEASURES, values, strict=True))


def _run(of: Outcome | Refused) -> dict[str, Any]:
    if isinstance(of, Refused):
        return {"refused": of.why}
    curve = [_finite(asdict(point)) for point in of.curve]
    return {**_finite(_measures(of)), "bytes": of.nbytes, "released": of.released, "curve": curve}


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
