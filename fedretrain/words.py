"""Codes, numbers and paths in words, as progress, tables and the lists of the server's commands show them."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

QUARANTINED = {
    "malformed": "cannot be decoded",
    "variables": "a variable too many or too few",
    "shape": "wrong shape",
    "dtype": "wrong type of numbers",
    "not-finite": "NaN or infinity",
    "metrics": "metrics missing or no numbers",
    "examples": "impossible number of examples",
    "norm": "update far too large",
    "stale": "answers another request",
    "base": "trained from another model",
    "contract": "another contract",
    "site": "signed as another site",
    "late": "no answer in time",
    "declined": "declined",
    "signature": "not signed by the site",
}
DECLINED = {
    "data-unreadable": "data cannot be read",
    "data-empty": "no data",
    "data-missing": "an array is missing",
    "data-shape": "wrong shape of data",
    "data-dtype": "wrong type of data",
    "data-not-finite": "NaN or infinity in the data",
    "data-range": "values out of range",
    "data-preprocessing": "other preprocessing",
    "label-unknown": "a label the model does not know",
    "label-shape": "wrong shape of labels",
    "model-refused": "a layer the site does not allow",
    "model-missing": "base model missing",
    "model-mismatch": "model and contract do not belong together",
    "request-invalid": "request not understood",
    "request-unsigned": "no valid signature of the coordinator",
    "request-replayed": "a request it had before",
    "policy": "outside the site's policy",
    "not-approved": "waits for a person at the site",
    "release-refused": "a release that does not verify",
    "trainer-failure": "its trainer ended; it is started again",
    "data-too-few": "too few examples for it",
    "no-new-data": "nothing new to train on",
    "training-diverged": "training diverged",
    "site-failure": "failed, see the site's log",
}
MOST_NAMED = 5
"""Sites of one reason up to which each is named."""
FLAGS = {"examples-capped": "counts; claimed more examples than declared"}


def quarantined(entry: Mapping[str, Any]) -> str:
    """Why a reply does not count; a site's refusal with its own code."""
    code = str(entry["code"])
    if code == "declined":
        inner = str(entry.get("detail", "")).partition(":")[0].partition(" at ")
        return f"declined: {DECLINED.get(inner[0], inner[0])}" + (f" ({inner[2]})" if inner[2] else "")
    return QUARANTINED.get(code, code)


def declined(entry: Mapping[str, Any]) -> str:
    """Why a site does not take part: code, where and what was expected."""
    code = str(entry["code"])
    where = f" at {entry['where']}" if entry.get("where") else ""
    expected = f"; expected {entry['expected']}" if entry.get("expected") else ""
    return DECLINED.get(code, QUARANTINED.get(code, code)) + where + expected


def together(reasons: Iterable[tuple[str, str]], asked: int = 0) -> list[tuple[str, str]]:
    """Who and why, with those of one reason as one: ``a``, ``3 sites (a, b, c)`` or ``all 10 sites``.

    Args:
        reasons: A site's name and its reason, each.
        asked: How many sites there are at all; 0 where that is not known.
    """
    sites: dict[str, list[str]] = {}
    for who, why in reasons:
        sites.setdefault(why, []).append(who)
    return [(_sites(names, asked), why) for why, names in sites.items()]


def _sites(names: list[str], asked: int) -> str:
    if len(names) == 1:
        return names[0]
    if len(names) == asked:
        return f"all {asked} sites"
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{len(names)} sites ({', '.join(names[:MOST_NAMED])}{more})"


def flag(name: str) -> str:
    """What was put right in a reply."""
    return FLAGS.get(name, name)


def reading(entry: Mapping[str, Any]) -> str:
    """What a monitor read, with the round after which the model was so: ``accuracy 0.913, loss 0.28 after round 7``."""
    values = {**entry["metrics"], "loss": entry["loss"]}
    told = (f"{name} {'-' if value is None else format(value, '.4g')}" for name, value in values.items())
    return f"{', '.join(told)} {when(entry['round'])}"


def when(number: int) -> str:
    """Which model was measured: that after a round, or the one a run began with."""
    return f"after round {number}" if number else "at the start"


def lineage(entries: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Where a release comes from: ``lineage.NAME`` and its value in words, sorted; of the rounds what they came to."""
    for name, value in sorted(entries.items()):
        yield f"lineage.{name}", _rounds(value) if name == "rounds" else _plain(value)


def _rounds(history: Any) -> str:
    """``12 rounds, 34 updates; quarantined: a 2 (late, norm)``."""
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        return _plain(history)
    updates = sum(len(entry.get("admitted", ())) for entry in history)
    sites: dict[str, list[str]] = {}
    for q in (q for entry in history for q in entry.get("quarantined", ()) if isinstance(q, dict)):
        sites.setdefault(str(q.get("site")), []).append(str(q.get("code")))
    told = [f"{site} {len(codes)} ({', '.join(sorted(set(codes)))})" for site, codes in sorted(sites.items())]
    counted = f"{_count(len(history), 'round')}, {_count(updates, 'update')}"
    return counted + (f"; quarantined: {', '.join(told)}" if told else "")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _plain(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(one)}" for name, one in value.items())
    return "-" if value is None else str(value)


def size(count: float) -> str:
    """Bytes in decimal units, three digits: 942 B, 12.3 kB, 1.07 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def norm(value: float) -> str:
    """An update's norm, so that those of one table stand under each other."""
    return f"{value:.4f}" if value < 100 else f"{value:.3e}"


def seconds(value: float) -> str:
    """Seconds with one decimal, minutes where they are many."""
    return f"{value:.1f} s" if value < 120 else f"{int(value // 60)} min {value % 60:.0f} s"


def path(where: Path) -> str:
    """Relative to where the user is, if it lies below; absolute for a user in the root folder."""
    here = Path.cwd()
    return str(where.relative_to(here)) if where.is_relative_to(here) and here != Path(here.anchor) else str(where)
