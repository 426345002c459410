"""What the operator's commands print: pure functions from JSON values to lines for a person.

Invariant: a line that says something is wrong is followed by what to do.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fedretrain import words
from fedretrain.answers import table

from .options import to_type

Values = Mapping[str, Any]
_NONE: Final = "-"
_SHORT: Final = 16  # digits of a release's id


def run_lines(rows: Sequence[Values]) -> Iterator[str]:
    """A table of runs, oldest first."""
    if not rows:
        yield "there are no runs; start one with 'fedretrain server retrain JOB.toml'"
        return
    cells = [("run", "state", "rounds", "sites", "sent", "last event", "")]
    for row in rows:
        counted = "check" if row["check"] else f"{row['completed']} of {row['rounds']}"
        note = (row["release"] or "")[:_SHORT] or _first_line(row["reason"])
        sites = str(len(row["sites"]["asked"])) if row["sites"]["asked"] else _NONE
        cells.append((row["run_id"], row["state"], counted, sites, words.size(row["bytes"]), when(row["at"]), note))
    yield from table(cells)


def status_lines(value: Values, folder: Path) -> Iterator[str]:
    """How one run stands, and what to do."""
    sites, run = value["sites"], value["run_id"]
    yield f"run      {run}"
    stage = f", {value['stage']}" if value["stage"] else ""
    yield f"state    {value['state']}{stage}; last event {when(value['at'])}; started {_times(value['starts'])}"
    left = "" if value["seconds_left"] is None else f", about {words.seconds(value['seconds_left'])} left"
    if value["check"]:
        yield f"rounds   none: a check; what it found: {to_type('drift', folder)}"
    else:
        yield f"rounds   {value['completed']} of {value['rounds']} complete{left}"
    if sites["asked"]:
        yield f"sites    {len(sites['answered'])} of {len(sites['asked'])} answered in round {value['round']}"
    if sites["awaited"]:
        yield f"awaited  {', '.join(sites['awaited'])}"
    for name, code in sites["quarantined"].items():
        yield f"! {name} is quarantined: {words.QUARANTINED.get(code, code)}"
    for name, code in sites["declined"].items():
        yield f"! {name} does not take part: {words.DECLINED.get(code, words.QUARANTINED.get(code, code))}"
    yield f"sent     {words.size(value['bytes'])}"
    yield from (f"! {line}" for line in (value["reason"] or "").splitlines())
    yield from _advice(value, folder)


def server_lines(value: Values) -> Iterator[str]:
    """How the server is, and what to do."""
    up, sites = value["up"], value["sites"]
    yield f"federation  {value['federation']}, {value['folder']}"
    if up is None:
        yield f"server      is not up; start it: fedretrain server up --folder {value['folder']}"
    else:
        yield f"server      up since {when(up['since'])}, process {up['pid']}; sites connect to {value['address']}"
        yield from (f"            {name}: {text}" for name, text in (up["processes"] or {}).items())
    there = f": {', '.join(sites['online'])}" if sites["online"] else ""
    yield f"sites       {len(sites['online'])} of {len(sites['admitted'])} connected{there}"
    yield f"release     {(value['release'] or 'none')[:_SHORT]}"
    yield from (f"! {problem}" for problem in value["problems"])
    if value["runs"]:
        yield ""
        yield from run_lines(value["runs"])


def site_lines(rows: Sequence[Values]) -> Iterator[str]:
    """A table of sites."""
    if not rows:
        yield "no site is admitted; 'fedretrain server admit SITE.request' makes its kit"
        return
    cells = [("site", "member", "there", "last seen", "software", "release", "last problem")]
    for row in rows:
        member = f"revoked {when(row['revoked'])}" if row["revoked"] else "admitted"
        trouble = row["problem"]
        problem = f"{when(trouble['at'])}: {_first_line(trouble['text'])}" if trouble else _NONE
        release = (row["used"] or row["installed"] or _NONE)[:_SHORT]
        there = "yes" if row["online"] else "no"
        cells.append((row["site"], member, there, when(row["last_seen"]), row["software"], release, problem))
    yield from table(cells)


def when(text: str | None) -> str:
    """How long ago, for the last day; else the date in UTC."""
    if not text:
        return "never"
    at = datetime.fromisoformat(text)
    ago = time.time() - at.timestamp()
    if ago < 120:
        return f"{max(0, int(ago))} s ago"
    if ago < 7200:
        return f"{int(ago // 60)} min ago"
    return f"{int(ago // 3600)} h ago" if ago < 86400 else f"{at.astimezone(UTC):%Y-%m-%d}"


def _advice(value: Values, folder: Path) -> Iterator[str]:
    """Commands to type next."""
    option, run = f"--folder {words.path(folder.resolve())}", value["run_id"]
    commands = {
        "waiting": [f"up {option}"],
        "starting": [f"logs {option}"],
        "retrying": [f"logs {run} {option}", f"stop {run} {option}"],
        "running": [f"logs {run} --follow {option}", f"stop {run} {option}"],
        "stopped": [f"resume {run} {option}"],
        "failed": [f"logs {run} {option}", f"resume {run} {option}"],
        "given up": [f"logs {option}", f"resume {run} {option}"],
    }.get(value["state"], [])
    if commands:
        yield ""
        yield from (f"  fedretrain server {command}" for command in commands)


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
