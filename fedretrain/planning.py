"""The ``[plan]`` table of a job: when its model is to be retrained, which ways may be taken, and within what bounds.

``server.deciding.planner`` decides by it; nothing that trains looks at it::

    [plan]
    metric_below = 0.9                   # act where accuracy is below, with its whole 95 % interval
    schedule = "30d"                     # act where the last retraining is that long ago
    volume = 1000                        # act where so many examples are new
    hysteresis = 2                       # checks in a row that a drift has to stand
    cool_down = "1d"
    hours = ["22:00-06:00"]
    zone = "Europe/Berlin"

    [plan.budget]
    period = "30d"
    retrainings = 4

    [plan.price]
    hour = 0.005                         # half a point of the metric must come of an hour

    [plan.auto]                          # what --auto may run without a person
    actions = ["incremental", "replay"]
    seconds = 3600

    [plan.site_hours.clinic-a]
    hours = ["20:00-23:00"]
    zone = "Europe/London"
"""

import re
from datetime import timedelta
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field, field_validator

from .errors import ConfigurationError
from .tomlfile import Section, shaped

Action = Literal["nothing", "watch", "incremental", "replay", "transfer", "full", "extend", "roll-back"]
Retraining = Literal["incremental", "replay", "transfer", "full", "extend"]
CarriedOut = Literal[Retraining, "roll-back"]
Unit = Literal["seconds", "bytes", "site_seconds", "kwh"]
ACTIONS: Final[tuple[Action, ...]] = (
    "nothing",
    "watch",
    "incremental",
    "replay",
    "transfer",
    "full",
    "extend",
    "roll-back",
)
RETRAININGS: Final[tuple[Retraining, ...]] = ("incremental", "replay", "transfer", "full", "extend")
CARRIED_OUT: Final[tuple[CarriedOut, ...]] = (*RETRAININGS, "roll-back")
MODES: Final = ("continue", "full", "incremental", "replay", "transfer", "extend")
"""Of ``train.mode``, those that a plan's run may have; the order in which sites name what they decline."""
UNITS: Final[tuple[Unit, ...]] = ("seconds", "bytes", "site_seconds", "kwh")

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = r"[1-9]\d{0,8}[smhdw]"
_LENGTH = 'a whole number and one of s, m, h, d, w, such as "6h" or "30d"'
_TIME = r"([01]\d|2[0-3]):[0-5]\d"
Duration = Annotated[str, shaped(_DURATION, _LENGTH)]
Hours = Annotated[str, shaped(rf"{_TIME}-({_TIME}|24:00)", 'times such as "22:00-06:00"')]


def duration(text: str) -> timedelta:
    """The length of time that a text such as "90s", "6h", "30d" or "2w" means.

    Raises:
        ConfigurationError: It is none.
    """
    if not re.fullmatch(_DURATION, text):
        raise ConfigurationError(f"expected {_LENGTH}, got {text[:80]!r}")
    return timedelta(seconds=int(text[:-1]) * _SECONDS[text[-1]])


def _is_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # not there, no name, or a folder of zones
        raise ValueError(f'expected a time zone such as "Europe/Berlin" or "UTC", got {name[:80]!r}') from None
    return name


def _are_carried_out(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return value
    for name in value:
        if name not in CARRIED_OUT:
            raise ValueError(f"expected some of {', '.join(CARRIED_OUT)}, got {str(name)[:80]!r}")
    return tuple(value)


Choice = Annotated[tuple[CarriedOut, ...], BeforeValidator(_are_carried_out)]


class BudgetSection(Section):
    """The most that retrainings may cost within a period that ends when it is decided; what is left out is free."""

    period: Duration = Field("30d", description="how far back past retrainings count")
    retrainings: int | None = Field(None, ge=0, description="how many")
    seconds: float | None = Field(None, ge=0, description="seconds they may take together, from start to verdict")
    bytes: int | None = Field(None, ge=0, description="bytes they may send together, both directions")
    site_seconds: float | None = Field(None, ge=0, description="seconds that sites may train, all sites together")
    kwh: float | None = Field(None, ge=0, description="energy they may use together, as far as it was measured")


class PriceSection(Section):
    """How much of the metric a cost must bring to be worth it; ways to retrain are compared by what is left."""

    hour: float = Field(0.0, ge=0, description="metric for an hour from start to verdict")
    gigabyte: float = Field(0.0, ge=0, description="metric for 1e9 bytes, both directions")
    site_hour: float = Field(0.0, ge=0, description="metric for an hour of training at one site")
    kwh: float = Field(0.0, ge=0, description="metric for a kWh")

    def of(self, unit: Unit) -> float:
        """The price of one of a unit."""
        prices = {"seconds": self.hour / 3600, "bytes": self.gigabyte / 1e9, "site_seconds": self.site_hour / 3600}
        return prices.get(unit, self.kwh)


class AutoSection(Section):
    """What ``--auto`` may run without a person; anything else waits for one."""

    actions: Choice = Field(
        RETRAININGS, description="plans that may run by themselves; a roll-back only where it is named"
    )
    seconds: float | None = Field(None, ge=0, description="most seconds, by the upper end of what a plan expects")
    bytes: int | None = Field(None, ge=0, description="most bytes, likewise")
    site_seconds: float | None = Field(None, ge=0, description="most seconds of training at all sites, likewise")
    kwh: float | None = Field(None, ge=0, description="most energy, likewise")


class SiteHours(Section):
    """When a site may be asked to train, as far as the server's operator was told."""

    hours: tuple[Hours, ...] = Field(description='times such as "22:00-06:00"; empty: at any time')
    zone: str | None = Field(None, description="the site's time zone; default: plan.zone")

    @field_validator("zone")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        return None if value is None else _is_zone(value)


class PlanSection(Section):
    """Triggers, bounds and what is preferred; every trigger that is set is looked at, and any may fire."""

    metric_below: float | None = Field(
        None, gt=0, le=1, description="act where the metric's 95 % interval lies wholly below"
    )
    drift: bool = Field(True, description="whether drift is acted upon")
    schedule: Duration | None = Field(None, description="act where the last retraining is that long ago")
    volume: int | None = Field(None, ge=1, description="act where so many examples are new")
    new_site: bool = Field(True, description="whether a site that no release was trained at is acted upon")
    new_labels: bool = Field(True, description="whether labels that the model does not know are acted upon")
    roll_back_within: Duration = Field("7d", description="time after a release in which it may be rolled back")
    fewest_new: int = Field(50, ge=1, description="new examples without which nothing is retrained")
    fewest_of_label: int = Field(20, ge=1, description="examples of a label the model does not know, to learn it")
    hysteresis: int = Field(2, ge=1, description="checks in a row that a drift has to stand")
    sure_loss: float = Field(0.05, gt=0, description="metric lost, with its interval, that needs no second check")
    cool_down: Duration = Field("1d", description="least time between retrainings; further ones in vain double it")
    share_full: float = Field(0.2, gt=0, description="new examples per old one from which all data are trained on")
    full_mode: Literal["continue", "full"] = Field(
        "continue", description="full retraining on all data: from the model in use, or from nothing"
    )
    least_gain: float = Field(0.01, ge=0, description="metric to be gained below which drift alone is not acted upon")
    equal_gain: float = Field(0.1, ge=0, lt=1, description="gains that differ by that share of the best are equal")
    compare_by: Unit = Field("seconds", description="which cost decides between equal gains")
    actions: Choice = Field(CARRIED_OUT, description="what may be planned beside doing nothing and watching")
    hours: tuple[Hours, ...] = Field((), description="when runs may start, in `zone`; empty: at any time")
    zone: str = Field("UTC", description="time zone of `hours`")
    budget: BudgetSection = BudgetSection()
    price: PriceSection = PriceSection()
    auto: AutoSection = AutoSection()
    site_hours: dict[str, SiteHours] = Field({}, description="sites' own hours, by site")

    @field_validator("zone")
    @classmethod
    def _known(cls, value: str) -> str:
        return _is_zone(value)
