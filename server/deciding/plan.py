"""The plan: what to do about a model, by which rule, why nothing else, what it should bring and cost.

Format ``fedretrain.plan/1``: the fields by name beside "format" and "id"; evidence in its own format; times as
ISO 8601 in UTC. The id is the SHA-256 over the canonical JSON of all the rest, so the same evidence, policy and costs
give the same plan with the same id, and a plan that was changed is refused when it is read.

``settings`` says what a job has to be for it (``server.deciding.carry_out``)::

    "mode"            train.mode: "incremental", "replay", "transfer", "extend", "continue" or "full"
    "since"           train.since: the time from which examples are new, ISO 8601; with "incremental" and "replay" alone
    "replay_share"    train.replay.share; with "replay" alone
    "half_life_days"  of the objective "recency"; where inputs mean something else than before
    "labels"          names to be added to those of the model; with "extend" alone
    "release"         to go back to; with the action "roll-back" alone, and then it is the only one
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pydantic import ConfigDict, JsonValue, TypeAdapter

from fedretrain.digest import json_digest
from fedretrain.errors import ConfigurationError
from fedretrain.planning import Action, Unit

from .evidence import Evidence, Time, checked

FORMAT: Final = "fedretrain.plan/1"


@dataclass(frozen=True)
class Range:
    """A number and between which it is believed to be; ``low <= expected <= high``."""

    low: float
    expected: float
    high: float

    def times(self, factor: float) -> "Range":
        """Each of the three times a factor of 0 or more."""
        return Range(self.low * factor, self.expected * factor, self.high * factor)


@dataclass(frozen=True)
class Cost:
    """What a retraining takes.

    Attributes:
        seconds: From start to verdict; None where nothing like it ever ran, as with the others.
        bytes: Sent, both directions.
        site_seconds: Of training, all sites together.
        kwh: None where it was never measured.
        runs: From how many runs of the same kind it is known; 0: scaled from other kinds, or unknown.
    """

    seconds: Range | None = None
    bytes: Range | None = None
    site_seconds: Range | None = None
    kwh: Range | None = None
    runs: int = 0

    def of(self, unit: Unit) -> Range | None:
        """The cost in one unit."""
        found: Range | None = getattr(self, unit)
        return found


@dataclass(frozen=True)
class Alternative:
    """Another thing that could be done, and why it is not."""

    action: Action
    gain: Range | None
    cost: Cost | None
    why_not: str


@dataclass(frozen=True)
class Plan:
    """What to do, and all that a person needs to judge it.

    Attributes:
        action: What to do.
        rule: Name of the rule that decided.
        sentence: What the rule found, with the numbers.
        threshold: What the rule compares with, as a person would say it.
        wanted: The action that was held back (by cool-down, budget and the like), where ``action`` is "watch"
            because of that; else None.
        settings: For the job; see the module docstring. Empty for "nothing" and "watch".
        gain: Of the metric, expected; None for "nothing" and "watch", and where nothing can be said.
        gain_basis: Where the expectation comes from: "prior" (stated values, nothing of this job is known) or "past".
        cost: Likewise.
        alternatives: Every other action, in the order of ``fedretrain.planning.ACTIONS``.
        would_change: What would change its mind, one sentence each.
        not_before: Earliest time to carry it out, or to decide again; None: at once, or nothing is known.
        evidence: What it was decided from.
    """

    action: Action
    rule: str
    sentence: str
    threshold: str
    wanted: Action | None
    settings: Mapping[str, JsonValue]
    gain: Range | None
    gain_basis: str
    cost: Cost | None
    alternatives: tuple[Alternative, ...]
    would_change: tuple[str, ...]
    not_before: Time | None
    evidence: Evidence

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    @property
    def id(self) -> str:
        """SHA-256 of everything in it."""
        return json_digest(self._content())

    @property
    def at(self) -> datetime:
        """When it was decided."""
        return self.evidence.at

    @property
    def acts(self) -> bool:
        """Whether there is anything to carry out."""
        return self.action not in {"nothing", "watch"}

    def due(self, now: datetime) -> bool:
        """Whether it may be carried out at that time."""
        return self.acts and (self.not_before is None or self.not_before <= now)

    def to_json(self) -> dict[str, Any]:
        """The plan in the module's format, made of lists, tables, texts and numbers alone."""
        return {"format": FORMAT, "id": self.id, **self._content()}

    def _content(self) -> dict[str, Any]:
        return {**_ADAPTER.dump_python(self, mode="json", exclude={"evidence"}), "evidence": self.evidence.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Plan":
        """The plan that ``to_json`` made.

        Raises:
            ConfigurationError: It is of another format, or was changed since.
        """
        rest = {key: part for key, part in value.items() if key != "id"}
        evidence = Evidence.from_json(dict(rest.get("evidence") or {}))
        plan = checked(_ADAPTER, FORMAT, "plan", rest | {"evidence": evidence})
        if value.get("id") != plan.id:
            raise ConfigurationError(f"plan: expected id {plan.id}, which its content has, got {value.get('id')}")
        return plan


_ADAPTER = TypeAdapter(Plan)
