"""Where a run stands, as its events tell it: the one reading of ``server.events`` for progress, status and lists.

Invariants: taking the same events gives the same standing, live or from the log, and after any number of resumes; a
kind it does not know changes nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

RECENT = 5
"""How many of the last rounds the time left is estimated from."""


@dataclass
class Standing:
    """One run up to its last event.

    ``rounds`` is how many there will be, ``completed`` how many count already; ``asked``, ``answered`` and
    ``quarantined`` (codes by site) are of the round in progress or the last one; ``nbytes`` is what all messages took
    so far; ``monitored`` is the last reading of the run's monitor; ``declined`` are the last refusals of sites that
    take no part; ``abandoned`` counts given-up rounds since the last one that counted; ``ending`` is the last of
    released, rejected and failed, with its fields.
    """

    rounds: int = 0
    completed: int = 0
    round: int = 0
    stage: str = "starting"
    asked: tuple[str, ...] = ()
    answered: set[str] = field(default_factory=set)
    quarantined: dict[str, str] = field(default_factory=dict)
    declined: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    delivered: dict[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    monitored: Mapping[str, Any] | None = None
    abandoned: int = 0
    ending: Mapping[str, Any] | None = None
    at: float | None = None
    _earlier_bytes: int = 0
    _round_bytes: int = 0
    _began: float | None = None
    _seconds: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, events: Iterable[Mapping[str, Any]]) -> "Standing":
        """The standing after all of ``events``."""
        standing = cls()
        for event in events:
            standing.take(event)
        return standing

    def take(self, event: Mapping[str, Any]) -> None:
        """Go on by one event."""
        self.at = moment(event) or self.at
        handler = getattr(self, "_on_" + str(event.get("event")).replace("-", "_"), None)
        if handler is not None:
            handler(event)

    @property
    def awaited(self) -> tuple[str, ...]:
        """Sites of the round in progress that have not answered; empty between rounds."""
        return tuple(s for s in self.asked if s not in self.answered) if self.stage == "training" else ()

    @property
    def nbytes(self) -> int:
        """Bytes of arrays so far, both ways; of the round in progress those of its replies."""
        return self._earlier_bytes + self._round_bytes

    @property
    def share(self) -> float:
        """Rounds that are over, the one in progress by the sites that answered."""
        part = len(self.answered) / len(self.asked) if self.stage == "training" and self.asked else 0.0
        return min(self.completed + part, self.rounds)

    def seconds_left(self, now: float) -> float | None:
        """Estimate for the rounds that are left, in seconds; None before the first round of known length.

        Args:
            now: Unix seconds.
        """
        if not self._seconds or self.ending is not None:
            return None
        each = sum(self._seconds) / len(self._seconds)
        gone = min(each, max(0.0, now - self._began)) if self.stage == "training" and self._began else 0.0
        return max(0.0, (self.rounds - self.completed) * each - gone)

    def _on_run_started(self, event: Mapping[str, Any]) -> None:
        self.rounds, self.completed = int(event["rounds"]), int(event["completed"])
        self.stage = "preparing" if self.completed < self.rounds else "judging"
        self.asked, self.answered, self.quarantined, self.declined = (), set(), {}, {}
        self.ending, self._round_bytes, self.abandoned = None, 0, 0

    def _on_check_started(self, event: Mapping[str, Any]) -> None:
        self.stage, self.asked, self.answered, self.declined = "checking", tuple(event["sites"]), set(), {}

    def _on_check_answer(self, event: Mapping[str, Any]) -> None:
        self.answered.add(str(event["site"]))

    def _on_check_refused(self, event: Mapping[str, Any]) -> None:
        self.answered.add(str(event["site"]))
        self.quarantined[str(event["site"])] = str(event["code"])

    def _on_checked(self, event: Mapping[str, Any]) -> None:
        self.stage, self.answered = "ended", set(event["sites"])
        self._earlier_bytes = int(event.get("bytes", 0))

    def _on_site_declined(self, event: Mapping[str, Any]) -> None:
        self.declined[str(event["site"])] = event

    def _on_site_prepared(self, event: Mapping[str, Any]) -> None:
        self.declined.pop(str(event["site"]), None)

    def _on_round_started(self, event: Mapping[str, Any]) -> None:
        self.stage, self.round, self._began = "training", int(event["round"]), moment(event)
        self.asked, self.answered, self.quarantined = tuple(event["sites"]), set(), {}
        self._round_bytes = 0

    def _on_reply(self, event: Mapping[str, Any]) -> None:
        self.answered.add(str(event["site"]))
        self._round_bytes += int(event.get("bytes", 0))

    def _on_quarantined(self, event: Mapping[str, Any]) -> None:
        self.quarantined[str(event["site"])] = str(event["code"])
        if event["site"] in self.asked:
            self.answered.add(str(event["site"]))

    def _on_round_finished(self, event: Mapping[str, Any]) -> None:
        self.completed = int(event["round"])
        self.answered, self.metrics, self.abandoned = set(self.asked), event["metrics"], 0
        self._earlier_bytes += sum(int(event[f"bytes_{kind}"]) for kind in ("base", "down", "up"))
        self._round_bytes = 0
        self._seconds = [*self._seconds, float(event["seconds"])][-RECENT:]
        self.stage = "judging" if self.completed >= self.rounds else "between rounds"

    def _on_monitored(self, event: Mapping[str, Any]) -> None:
        self.monitored = event

    def _on_target_reached(self, event: Mapping[str, Any]) -> None:
        self.rounds = self.completed = int(event["round"])
        self.stage = "judging"

    def _on_round_abandoned(self, _event: Mapping[str, Any]) -> None:
        self.abandoned += 1
        self.stage = "between rounds"

    def _on_gate(self, _event: Mapping[str, Any]) -> None:
        self.stage = "releasing"

    def _end(self, event: Mapping[str, Any]) -> None:
        self.ending, self.stage = event, "ended"

    _on_released = _on_rejected = _on_failed = _end

    def _on_delivered(self, event: Mapping[str, Any]) -> None:
        self.delivered[str(event["site"])] = str(event["release"])


def moment(event: Mapping[str, Any]) -> float | None:
    """When an event was written, Unix seconds; None where it does not say."""
    try:
        return datetime.fromisoformat(str(event["at"])).timestamp()
    except (KeyError, ValueError):
        return None
