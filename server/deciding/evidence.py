"""What a decision is made from: all that the planner may look at beside the policy and what retrainings cost.

Frozen values without judgement; ``server.deciding.gather`` makes them from the history, ``server.deciding.planner``
decides by them. ``at`` is the planner's clock; it reads no other.

Format ``fedretrain.evidence/1``: the fields by name, times as ISO 8601 in UTC, pairs as lists of two;
``declined`` and ``needed`` are left out where nothing is declined.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from fedretrain.errors import ConfigurationError
from fedretrain.planning import Retraining
from fedretrain.tomlfile import in_utc
from server.drift.findings import Estimate

__all__ = ["FORMAT", "Estimate", "Evidence", "Past", "Signal", "Time", "checked"]

FORMAT: Final = "fedretrain.evidence/1"
Time = Annotated[datetime, AfterValidator(in_utc)]
ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class Signal:
    """A drift that the latest check found.

    Attributes:
        kind: What changed: inputs, how frequent labels are, what inputs mean, or the quality of the data.
        effect: The greatest effect found, on the kind's own scale (``server.drift.findings``).
        sites: At how many sites it was found; 0 where only all together show it.
        of: How many sites answered.
        checks: In how many checks in a row up to the latest it was found, the latest included.
        subject: The feature or output with the greatest effect.
    """

    kind: Literal["covariate", "label", "concept", "quality"]
    effect: float
    sites: int
    of: int
    checks: int
    subject: str = ""


@dataclass(frozen=True)
class Past:
    """A retraining that came to a verdict.

    Attributes:
        at: When it ended.
        action: Which way; a word of ``fedretrain.planning.ACTIONS``, or the job's mode where no plan was behind it.
        gain: The metric after it minus before it, on what was recent; None where unknown. 0 where it was not released.
        forgetting: The metric lost on what is older, 0 or more; None where unknown.
        seconds: From start to verdict.
        bytes: Sent, both directions.
        site_seconds: Of training, all sites together.
        kwh: None where not measured.
        released: Whether its candidate is or was in use.
        new_examples: That there were when it began; None where unknown.
        curve: The metric of ``Evidence.metric`` after each round, greater is better; empty where unknown.
        predicted: The gain that its plan expected; None without a plan.
    """

    at: Time
    action: str
    gain: float | None
    forgetting: float | None
    seconds: float
    bytes: int
    site_seconds: float
    kwh: float | None
    released: bool
    new_examples: int | None
    curve: tuple[float, ...] = ()
    predicted: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", in_utc(self.at))


@dataclass(frozen=True)
class Evidence:
    """What is known when it is decided.

    Attributes:
        at: Now.
        release: The release in use; None before the first.
        released_at: Since when; before the first, from when on the watched job calls examples new, where it does.
        signals: Drift that the latest check found, at most one of a kind.
        metric: What the model in use achieves on recent examples (accuracy); None where unknown.
        reference: Likewise on those before its release.
        expected_accuracy: On recent examples by the model's own confidence, without labels.
        new_examples: Since the release, those of new sites all included; None where no site says.
        old_examples: Before it.
        new_labels: Names that the model does not know, with how many recent examples bear each.
        unknown_labels: Recent examples whose label has no name that was asked for.
        sites: How many answered the latest check.
        new_sites: Those that the release in use was not trained at.
        withheld: What sites do not tell, as "SITE: SECTION (REASON)".
        past: Retrainings that came to a verdict, oldest first.
        previous_release: The release before the one in use, to which one could go back.
        too_little: Whether the latest check had too little data to say anything, or found no drift and had too little
            for most of the questions about it.
        previous_metric: What the previous release achieved on what was recent in the last check before it was replaced.
        best: The best that the model in use achieved on what was recent, of all its checks; by the low end of the
            interval, so that few examples are not the best for being few.
        site_hours: Hours that sites gave when they declined, as their own text has them, by site.
        declined: By way to retrain, sites that answered the latest check and do not allow it, in order; without ways
            that all allow.
        needed: How many sites a run needs, where ``declined`` has any.
    """

    at: Time
    release: str | None = None
    released_at: Time | None = None
    signals: tuple[Signal, ...] = ()
    metric: Estimate | None = None
    reference: Estimate | None = None
    expected_accuracy: float | None = None
    new_examples: int | None = None
    old_examples: int | None = None
    new_labels: tuple[tuple[str, int], ...] = ()
    unknown_labels: int = 0
    sites: int = 0
    new_sites: tuple[str, ...] = ()
    withheld: tuple[str, ...] = ()
    past: tuple[Past, ...] = ()
    previous_release: str | None = None
    too_little: bool = False
    previous_metric: Estimate | None = None
    best: Estimate | None = None
    site_hours: tuple[tuple[str, tuple[str, ...]], ...] = ()
    declined: tuple[tuple[Retraining, tuple[str, ...]], ...] = ()
    needed: int = 0

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", in_utc(self.at))
        if self.released_at is not None:
            object.__setattr__(self, "released_at", in_utc(self.released_at))

    @property
    def last(self) -> datetime | None:
        """When the model was last retrained, or put in use; None where neither happened."""
        return max([*(past.at for past in self.past), *([self.released_at] if self.released_at else [])], default=None)

    def barred(self, action: Retraining) -> tuple[str, ...]:
        """Sites that do not allow a way to retrain, where they leave fewer than a run needs; else empty."""
        against = dict(self.declined).get(action, ())
        return against if self.sites - len(against) < self.needed else ()

    def to_json(self) -> dict[str, Any]:
        """The evidence in the module's format, made of lists, texts and numbers alone."""
        brief = set() if self.declined else {"declined", "needed"}
        return {"format": FORMAT, **_ADAPTER.dump_python(self, mode="json", exclude=brief)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Evidence":
        """The evidence that ``to_json`` made; raises ConfigurationError for anything else."""
        return checked(_ADAPTER, FORMAT, "evidence", value)


_ADAPTER = TypeAdapter(Evidence)


def checked(adapter: TypeAdapter[ValueT], format_: str, what: str, value: dict[str, Any]) -> ValueT:
    """A value of a format from its JSON.

    Raises:
        ConfigurationError: It is of another format, or has other fields.
    """
    if value.get("format") != format_:
        raise ConfigurationError(f"{what}: expected format {format_}, got {value.get('format')}")
    try:
        return adapter.validate_python({key: part for key, part in value.items() if key != "format"})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigurationError(f"{what}: {where}: {first['msg']}") from None
