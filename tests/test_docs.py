"""The reference of the job file against the code."""

import types
import typing
from pathlib import Path

from pydantic import BaseModel

from fedretrain.job import Job, NamedConfig
from strategies.registry import BUILT_IN, OBJECTIVES

REFERENCE = (Path(__file__).parents[1] / "docs" / "job.md").read_text(encoding="utf-8")
SET_BY_THE_SERVER = {"online.begun"}
IN_ONE_LINE = {"train.stages", "search.space"}  # their parts are shown in the line of the whole


def test_the_reference_has_every_key_of_a_job() -> None:
    """A key that a job may have stands in docs/job.md."""
    wanted = set(keys(Job, "")) - SET_BY_THE_SERVER

    assert sorted(key for key in wanted if f"`{key}`" not in REFERENCE) == []


def test_the_reference_has_every_strategy_and_objective_with_its_settings() -> None:
    """Names and settings of what ``[strategy]`` can name stand in docs/job.md, in the line of their name."""
    lines = REFERENCE.splitlines()
    for name, settings in {**BUILT_IN, **OBJECTIVES}.items():
        own = [line for line in lines if line.startswith("| `") and f"`{name}`" in line.split("|")[1]]
        assert own, name
        for setting in settings.model_fields:
            assert any(f"`{setting}`" in line for line in own), f"{name}: {setting}"


def keys(model: type[BaseModel], prefix: str) -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        key, inner = f"{prefix}{name}", section(field.annotation)
        found += [key] if inner is None or key in IN_ONE_LINE else keys(inner, f"{key}.")
    return found


def section(annotation: object) -> type[BaseModel] | None:
    """The table that a field holds, also in a list or where it may be missing; None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return None if annotation is NamedConfig else annotation
    if typing.get_origin(annotation) in {tuple, typing.Union, types.UnionType}:
        return next(filter(None, map(section, typing.get_args(annotation))), None)
    return None
