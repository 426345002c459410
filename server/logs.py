"""What happened, as lines: the events of a run, or what the server's processes print; from the beginning or on and on.

Invariants: half a line is not shown before its end is written; a log that was moved aside is read on from its new
beginning; nothing is held in memory but what is new.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from fedretrain import words
from fedretrain.standing import moment

from . import operations
from .desired import utc
from .federation import Federation

POLL_S: Final = 0.3
LAST: Final = 40  # lines of each process without --follow
_CHUNK: Final = 1 << 20


class Tail:
    """The lines of a growing file, each given once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def lines(self) -> list[str]:
        """What was completed since the last call; empty where the file is not there yet."""
        found: list[str] = []
        while chunk := self._read():
            found += chunk
        return found

    def _read(self) -> list[str]:
        try:
            if self.path.stat().st_size < self._offset:
                self._offset = 0
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(_CHUNK)
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1] or (data if len(data) == _CHUNK else b"")
        self._offset += len(whole)
        return whole.decode(errors="replace").splitlines()


def read_events(tail: Tail) -> list[dict[str, Any]]:
    """New events of a run; a torn line is left out."""
    events = []
    for line in tail.lines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            events.append(event)
    return events


def lines(federation: Federation, run: str | None, follow: bool, as_json: bool) -> Iterator[str]:
    """The log of a run, or with ``run`` None of the server's processes.

    With ``follow`` it goes on until the run has ended, or for ever. Raises ConfigurationError where there is no such
    run.
    """
    if run is not None:
        return _run_lines(federation, run, follow, as_json)
    return _server_lines(federation.log, follow, as_json)


def _run_lines(federation: Federation, run: str, follow: bool, as_json: bool) -> Iterator[str]:
    folder = operations.find(federation, run)
    tail = Tail(folder.events)
    while True:
        state = operations.run_state(folder, running=operations.is_up(federation))
        for event in read_events(tail):
            yield json.dumps(event) if as_json else event_line(event)
        if not follow or state in operations.ENDED:
            return
        time.sleep(POLL_S)


def _server_lines(folder: Path, follow: bool, as_json: bool) -> Iterator[str]:
    tails: dict[Path, Tail] = {}
    first = True
    while True:
        for path in sorted(folder.glob("*.log")):
            found = tails.setdefault(path, Tail(path)).lines()
            for line in found[-LAST:] if first else found:
                yield json.dumps({"process": path.stem, "line": line}) if as_json else f"{path.stem:10} {line}"
        if not follow:
            return
        first = False
        time.sleep(POLL_S)


def event_line(event: dict[str, Any]) -> str:
    """An event with its time as one line for a person."""
    at = moment(event)
    tell = _TOLD.get(str(event["event"]))
    text = tell(event) if tell else ", ".join(f"{k} {v}" for k, v in event.items() if k not in {"event", "at"})
    return f"{'-' if at is None else utc(at)[:19] + 'Z'}  {event['event']:16}  {text}".rstrip()


def _reply(event: dict[str, Any]) -> str:
    counted = f"{event['examples']} examples, {words.size(event['bytes'])}, {words.seconds(event['seconds'])}"
    flags = "".join(f"; {words.flag(name)}" for name in event.get("flags", []))
    return f"round {event['round']}: {event['site']}, {counted}{flags}"


def _finished(event: dict[str, Any]) -> str:
    took = f"{len(event['admitted'])} of {len(event['sites'])} sites, {words.seconds(event['seconds'])}"
    return f"round {event['round']}: {took}"


_TOLD: Final[dict[str, Callable[[dict[str, Any]], str]]] = {
    "run-started": lambda e: f"{e['completed']} of {e['rounds']} rounds complete",
    "check-started": lambda e: f"{len(e['features'])} features, release {(e['release'] or 'none')[:16]}",
    "check-answer": lambda e: f"{e['site']}: {e['recent']} recent examples, {e['reference']} before",
    "check-refused": lambda e: f"{e['site']}: {words.quarantined(e)} ({e['detail']})",
    "checked": lambda e: f"{', '.join(e['sites'])} answered",
    "site-prepared": lambda e: f"{e['site']}: {e['train_examples']} examples",
    "site-declined": lambda e: f"{e['site']}: {words.declined(e)}",
    "site-away": lambda e: f"{e['site']} is not connected any more, or was revoked; rounds go on without it",
    "site-back": lambda e: f"{e['site']} is connected again",
    "round-started": lambda e: f"round {e['round']}: {', '.join(e['sites'])}",
    "reply": _reply,
    "quarantined": lambda e: f"round {e['round']}: {e['site']}: {words.quarantined(e)} ({e['detail']})",
    "round-finished": _finished,
    "round-abandoned": lambda e: f"round {e['round']}: {e['reason']}",
    "checkpoint": lambda e: f"round {e['round']}",
    "checkpoint-corrupt": lambda e: f"{e['file']}; going on after round {e['used']}",
    "monitored": words.reading,
    "sum": lambda e: f"{e['sum']}: {e['examples']} examples of {', '.join(e['sites'])}",
    "sum-refused": lambda e: f"{e['sum']}: {e['site']}: {words.quarantined(e)} ({e['detail']})",
    "target-reached": lambda e: f"{words.when(e['round'])}: {e['metric']} {e['value']:.4g}, {e['target']:g} was asked",
    "gate": lambda e: "passed" if e["passed"] else f"not passed: {'; '.join(e['reasons'])}",
    "segment-finished": lambda e: f"segment {e['segment']}, {e['run_id']}: {e['outcome']}",
    "released": lambda e: str(e["release"]),
    "rejected": lambda e: "; ".join(e["reasons"]),
    "failed": lambda e: str(e["reason"]),
    "warning": lambda e: str(e["text"]),
    "delivered": lambda e: f"{e['site']}: {str(e['release'])[:16]}",
    "delivery-failed": lambda e: f"{e['site']}: {words.declined(e)}",
}
