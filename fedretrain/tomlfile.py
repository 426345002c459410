"""Configuration files that people write: TOML, checked against one frozen model, every mistake explained in one line.

Invariant: what comes back is complete and of the right types; a mistake is a ``ConfigurationError`` that names the
file, the key, what was expected, what was found and the nearest valid key.
"""

import difflib
import json
import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from .errors import ConfigurationError

SectionT = TypeVar("SectionT", bound="Section")
_SHOWN = 80  # characters of a text that is none of what was expected


def shaped(pattern: str, words: str) -> AfterValidator:
    """What a text has to look like: a regular expression for us, and words for the person who reads the mistake."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"expected {words}, got {text[:_SHOWN]!r}")
        return text

    return AfterValidator(check)


def in_utc(time: datetime) -> datetime:
    """The same time in UTC, which is also meant where no zone is given."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


class Section(BaseModel):
    """One table of a file, or the whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The tables of a file; raises ConfigurationError where it is missing (``what`` says what it is) or no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such {what}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path}: not readable as TOML: {error}") from None


def check_toml(raw: dict[str, Any], model: type[SectionT], path: Path) -> SectionT:
    """The tables of the file ``path`` as a ``model``; raises ConfigurationError with one line per mistake."""
    try:
        # Through JSON, where strict means "5" is no number while a string may still be a path and a list a tuple.
        return model.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        raise ConfigurationError("\n".join(f"{path}: {line}" for line in _explain_all(error, model))) from None


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text in quotes",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "too_short": "at least one",
}
_BOUNDS = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
}


def _explain_all(error: ValidationError, top: type[Section]) -> list[str]:
    """One line per key, the innermost first to be found; a list that is short for its bad items is not said twice."""
    lines: dict[str, str] = {}
    for e in error.errors():
        key, line = _explain(e, top)
        if e["type"] != "too_short" or not any(known.startswith(f"{key}.") for known in lines):
            lines.setdefault(key, f"{key}: {line}" if key else line)
    return list(lines.values())


def _explain(error: Any, top: type[Section]) -> tuple[str, str]:
    """The key of one pydantic error, and in words: expected, got, nearest valid key."""
    where = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        valid = sorted(_section_at([*where[:-1], "?"], top)[0].model_fields)
        near = difflib.get_close_matches(where[-1], valid, n=1, cutoff=0.0)
        return ".".join(where), f"unknown key; did you mean '{near[0]}'? Valid here: {', '.join(valid)}"
    section, known = _section_at(where, top)
    if error["type"] == "missing":
        return ".".join(known if known == where else [*known, where[-1]]), "required, but missing"
    field = section.model_fields.get(known[-1]) if known else None
    if error["type"] == "value_error" or field is None:
        return ".".join(known), said(error)
    expected = _EXPECTED.get(error["type"]) or _BOUNDS.get(error["type"], "").format(**error.get("ctx", {}))
    expected = expected or error["msg"].removeprefix("Input should be ").removeprefix("String should ")
    purpose = f" ({field.description})" if field.description else ""
    got = "" if known != where else f", got {error['input']!r}"
    return ".".join(known), f"expected {expected}{purpose}{got}"


def said(error: Any) -> str:
    """The message of one of pydantic's errors, without what it puts before our own."""
    return str(error["msg"]).removeprefix("Value error, ")


def _section_at(where: list[str], top: type[Section]) -> tuple[type[Section], list[str]]:
    """The innermost section on the way to an error, and as much of its place as the user wrote in the file."""
    section = top
    known: list[str] = []
    named = False  # by the user: a table of tables comes before
    for part in where:
        if named:
            named = False
        elif not part.isdigit():
            if part not in section.model_fields:
                break
            annotation = section.model_fields[part].annotation
            nested = _model_in(annotation)
            named = nested is not None and get_origin(annotation) is dict
            section = nested if nested and part != where[-1] else section
        known.append(part)
    return section, known


def _model_in(annotation: Any) -> type[Section] | None:
    """The section class inside an annotation such as ``tuple[HoldoutSection, ...]`` or ``X | None``."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None
