"""What a search may vary in a job, and how a point of that space becomes a job's tables.

A place in a job is written with dots: keys of tables, numbers of list items, or the name of an item that has one::

    [search.space]
    "train.optimizer.learning_rate" = { low = 0.001, high = 0.1, log = true }
    "model.freeze" = { choose = [["conv*"], ["conv1*"], []] }
    "transfer.head.0.units" = { choose = [16, 32, 64] }
    "strategy.objectives.ewc.strength" = { low = 0.1, high = 100.0, log = true }

Invariant: what the candidates of a search are compared on, and what they are compared with, is no place in the space.
"""

import copy
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from .errors import ConfigurationError
from .tomlfile import Section

PLACES = (
    "model.freeze",
    "train.optimizer",
    "train.batch_size",
    "train.local_epochs",
    "train.local_steps",
    "train.stages",
    "train.replay.share",
    "strategy",
    "transfer.head",
    "online.step_norm",
)
"""What may be varied, with all that is in it; the rest says what data are trained on and judged by, and by whom."""


class Vary(Section):
    """The values of one place: a range of numbers, or a list to choose from."""

    low: int | float | None = Field(None, description="least value; whole numbers at both ends vary in whole numbers")
    high: int | float | None = Field(None, description="greatest value")
    log: bool = Field(False, description="whether the range is spread evenly over its orders of magnitude")
    choose: tuple[Any, ...] | None = Field(None, description="values; numbers in ascending order")

    @model_validator(mode="after")
    def _one_of_two(self) -> "Vary":
        if (self.choose is None) == (self.low is None or self.high is None):
            raise ValueError("expected `low` and `high`, or `choose`")
        if self.choose is not None and (self.low is not None or self.high is not None or self.log):
            raise ValueError("expected `choose` alone, got a range beside it")
        if self.choose is not None and len(self.choose) < 2:
            raise ValueError(f"choose: expected two values or more, got {list(self.choose)}")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"expected `low` below `high`, got {self.low} and {self.high}")
        if self.log and not (self.low or 0) > 0:
            raise ValueError(f"low: expected more than 0 with log = true, got {self.low}")
        return self


class SearchSection(Section):
    """What `fedretrain server search` tries out; nothing else looks at it."""

    trials: int = Field(12, ge=1, le=10_000, description="how many points of the space are tried")
    rounds: int | None = Field(None, ge=1, le=100_000, description="rounds of one trial; default: the job's")
    method: Literal["bayesian", "random"] = Field(
        "bayesian", description="which of KerasTuner's oracles chooses points"
    )
    metric: Literal["loss", "accuracy"] = Field("loss", description="what sites' validation parts are judged by")
    space: dict[str, Vary] = Field(min_length=1, description="by place in the job: the values to try")

    @field_validator("space")
    @classmethod
    def _places_that_may_vary(cls, value: dict[str, Vary]) -> dict[str, Vary]:
        for place in value:
            if not any(place == known or place.startswith(f"{known}.") for known in PLACES):
                raise ValueError(f"expected places in {', '.join(PLACES)}, got '{place}'")
        return value


def placed(tables: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A job's tables with other values in some places.

    Args:
        tables: As the job's JSON has them; not changed.
        values: By place.

    Raises:
        ConfigurationError: A place that is not there: a table that the job does not have, or an item of no such name.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(tables))
    for place, value in values.items():
        *way, last = place.split(".")
        node: Any = changed
        for depth, part in enumerate(way, start=1):
            node = _inside(node, part, ".".join(way[:depth]), place)
        _set(node, last, value, place)
    return changed


def _inside(node: Any, part: str, so_far: str, place: str) -> Any:
    """What stands under one part of a place."""
    found = None
    if isinstance(node, dict):
        found = node.get(part)
    elif isinstance(node, list):
        found = node[_item(node, part, place)]
    if not isinstance(found, dict | list):
        raise ConfigurationError(f"search.space: '{place}': expected a table or list '{so_far}' in the job, got none")
    return found


def _set(node: Any, last: str, value: Any, place: str) -> None:
    if isinstance(node, list):
        node[_item(node, last, place)] = value
    else:
        node[last] = value


def _item(node: list[Any], part: str, place: str) -> int:
    """The position of a list's item by its number or its name."""
    names = [item.get("name") if isinstance(item, dict) else None for item in node]
    if part.isdecimal() and int(part) < len(node):
        return int(part)
    if part not in names:
        there = ", ".join(str(name) for name in names if name) or f"0 to {len(node) - 1}"
        raise ConfigurationError(f"search.space: '{place}': expected one of {there} in place of '{part}'")
    return names.index(part)
