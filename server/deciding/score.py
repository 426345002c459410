"""What a plan promised against what came of it, and what a run brought: from the result of a run, nothing is measured.

What a run brought is read off its result in this order, and ``Measured.source`` says which it was:

    holdout       the mean difference on the holdouts that the candidate must improve on, where they are judged by
                  accuracy: paired, on the same examples, and of what is current
    sites         the accuracy on the sites' validation parts before the last round, minus that of the model in use:
                  before the first round where training went on from it, else as the check before the plan found it.
                  The last round is not in it, so it is rather too little than too much

Forgetting is the greatest loss on a holdout that must not get worse, judged by accuracy, and never below 0.

Format ``fedretrain.score/1``::

    {"format", "plan": its id, "action", "run": id | null,
     "outcome": "released" | "rejected" | "rolled back" | "failed",
     "gain": amount | null, "source": "holdout" | "sites" | null, "forgetting": number | null,
     "costs": {unit: amount}}                  by ``fedretrain.planning.UNITS``; those that are known

An amount is ``{"expected": {"low", "expected", "high"} | null, "actual": number | null, "within": true | false |
null}``, null where one of the two is unknown. The gain of a candidate that was not released is what it would have been.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import ConfigDict, TypeAdapter

from fedretrain.planning import UNITS, Unit

from .energy import kwh_of
from .evidence import checked
from .plan import Plan, Range
from .units import NAMES, Teller, teller

FORMAT: Final = "fedretrain.score/1"
FROM_THE_MODEL_IN_USE: Final = frozenset({"continue", "incremental", "replay", "online"})
"""Modes whose first round sends the model in use itself."""

Source = Literal["holdout", "sites"]
Outcome = Literal["released", "rejected", "rolled back", "failed"]
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """What a run brought.

    Attributes:
        gain: Accuracy after it minus before, on what is current; None where the result does not say.
        forgetting: Accuracy lost on what is older, 0 or more; None likewise.
        source: What the gain is taken from.
        curve: Accuracy at the sites after each round but the last, whose model no site has seen; empty where unknown.
    """

    gain: float | None
    forgetting: float | None
    source: Source | None
    curve: tuple[float, ...] = ()


@dataclass(frozen=True)
class Amount:
    """An expectation and what it came to; ``within`` the range that was believed, None where one is unknown."""

    expected: Range | None
    actual: float | None
    within: bool | None

    @classmethod
    def of(cls, expected: Range | None, actual: float | None) -> "Amount":
        """The two beside each other."""
        if expected is None or actual is None:
            return cls(expected, actual, None)
        return cls(expected, actual, expected.low <= actual <= expected.high)


@dataclass(frozen=True)
class Score:
    """See the module docstring."""

    plan: str
    action: str
    run: str | None
    outcome: Outcome
    gain: Amount | None
    source: Source | None
    forgetting: float | None
    costs: Mapping[Unit, Amount]

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    def to_json(self) -> dict[str, Any]:
        """The score in the module's format, made of tables, texts and numbers alone."""
        return {"format": FORMAT, **_ADAPTER.dump_python(self, mode="json")}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Score":
        """The score that ``to_json`` made; raises ConfigurationError for anything else."""
        return checked(_ADAPTER, FORMAT, "score", value)

    @property
    def text(self) -> str:
        """One sentence for a person."""
        said = [f"{self.action}: {self.outcome}"]
        if self.gain is not None:
            said.append(f"gain {_told(self.gain, _points)}")
        costs = [(unit, self.costs[unit]) for unit in UNITS if unit in self.costs]
        said += [f"{NAMES[unit]} {_told(amount, teller(unit))}" for unit, amount in costs if amount.actual is not None]
        unexpected = [amount.expected is None for amount in (self.gain, *self.costs.values()) if amount is not None]
        if any(unexpected):
            said.append("nothing was expected" if all(unexpected) else "of the others nothing was expected")
        return "; ".join(said)


_ADAPTER = TypeAdapter(Score)


def score(plan: Plan, result: Record | None) -> Score:
    """What the plan turned out to be worth.

    Args:
        plan: That was carried out.
        result: Of its run (``server.run``); None for a roll-back, which has none, and for a run that failed.
    """
    if result is None:
        outcome: Outcome = "rolled back" if plan.action == "roll-back" else "failed"
        return Score(plan.id, plan.action, None, outcome, None, None, None, {})
    mode = str(plan.settings.get("mode", "continue"))
    found = measured(result, mode, plan.evidence.metric.value if plan.evidence.metric else None)
    taken = spent(result)
    costs = {unit: Amount.of(plan.cost.of(unit) if plan.cost else None, taken[unit]) for unit in UNITS}
    return Score(
        plan=plan.id,
        action=plan.action,
        run=str(result["run_id"]),
        outcome="released" if result["release"] is not None else "rejected",
        gain=Amount.of(plan.gain, found.gain),
        source=found.source,
        forgetting=found.forgetting,
        costs={unit: amount for unit, amount in costs.items() if amount.expected or amount.actual is not None},
    )


def measured(result: Record, mode: str, before: float | None = None) -> Measured:
    """What a run brought.

    Args:
        result: Of the run (``server.run``).
        mode: Its ``train.mode``.
        before: Accuracy of the model it started from, on what was recent, where that is known.
    """
    judged = [verdict for verdict in result["gate"]["holdouts"] if verdict["metric"] == "accuracy"]
    gains = [v["difference"] for v in judged if v["must"] == "improve" and v["difference"] is not None]
    losses = [-v["difference"] for v in judged if v["must"] == "not-worse" and v["difference"] is not None]
    forgetting = max([0.0, *losses]) if losses else None
    seen = [accuracy(record["metrics"]) for record in result["rounds"]]
    curve = tuple(value for value in seen[1:] if value is not None)
    if gains:
        return Measured(sum(gains) / len(gains), forgetting, "holdout", curve)
    start = seen[0] if seen and mode in FROM_THE_MODEL_IN_USE else before
    if curve and start is not None:
        return Measured(curve[-1] - start, forgetting, "sites", curve)
    return Measured(None, forgetting, None, curve)


def accuracy(metrics: Mapping[str, float]) -> float | None:
    """The accuracy on validation parts among a round's metrics: that of the model, else the mean of its outputs'."""
    if "val-accuracy" in metrics:  # and not that of a site's own model
        return metrics["val-accuracy"]
    named = [v for name, v in sorted(metrics.items()) if name.startswith("val-") and name.endswith("accuracy")]
    return sum(named) / len(named) if named else None


def spent(result: Record) -> dict[Unit, float | None]:
    """What a run took, by unit; seconds are of all its starts."""
    seconds = result["seconds"]
    admitted = [reply for record in result["rounds"] for reply in record["admitted"]]
    told = [reply["metrics"]["seconds"] for reply in admitted if "seconds" in reply["metrics"]]
    return {
        "seconds": float(seconds["total"]) + float(seconds.get("earlier", 0.0)),
        "bytes": float(result["bytes"]["total"]),
        "site_seconds": float(sum(told)),
        "kwh": kwh_of(result),
    }


def _told(amount: Amount, tell: Teller) -> str:
    """The number for a person, beside what was expected if anything was."""
    actual = "unknown" if amount.actual is None else tell(amount.actual)
    if amount.expected is None:
        return actual
    low, high = tell(amount.expected.low), tell(amount.expected.high)
    return f"{actual} (expected {tell(amount.expected.expected)}, {low} to {high})"


def _points(value: float) -> str:
    return f"{value * 100:.4g} points"
