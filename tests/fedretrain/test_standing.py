"""Where a run stands, from its events."""

from typing import Any

import pytest

from fedretrain.standing import Standing


def event(kind: str, second: int = 0, **fields: Any) -> dict[str, Any]:
    return {"event": kind, "at": f"2026-01-31T12:00:{second:02d}.000+00:00", **fields}


def finished(number: int, second: int, seconds: float = 10.0) -> dict[str, Any]:
    sizes = {"bytes_base": 100 if number == 1 else 0, "bytes_down": 20, "bytes_up": 30}
    return event("round-finished", second, round=number, metrics={}, seconds=seconds, **sizes)


STARTED = event("run-started", 0, rounds=4, completed=0, sites=[])
ASKED = event("round-started", 1, round=1, sites=["a", "b", "c"])


def test_sites_of_a_round_are_answered_awaited_and_quarantined() -> None:
    """A reply and a refusal are answers; a site quarantined after its reply is counted once."""
    reply = event("reply", 2, round=1, site="a", bytes=30)
    bad = [event("quarantined", 3, round=1, site=s, code="norm", detail="") for s in ("a", "b")]
    standing = Standing.of([STARTED, ASKED, reply, *bad])
    assert standing.answered == {"a", "b"}
    assert standing.awaited == ("c",)
    assert standing.quarantined == {"a": "norm", "b": "norm"}
    assert standing.nbytes == 30
    assert standing.share == pytest.approx(2 / 3)


def test_bytes_of_a_check_are_told_at_its_end() -> None:
    """What the check itself counted; a log without it has none."""
    began, ended = event("check-started", 0, sites=["a", "b"]), event("checked", 2, sites=["a"], declined={})
    assert Standing.of([began, ended | {"bytes": 1234}]).nbytes == 1234
    assert Standing.of([began, ended]).nbytes == 0


def test_bytes_of_a_finished_round_are_counted_once() -> None:
    """Replies in progress give way to the round's own sums, 100 + 20 + 30; a round begun again starts from zero."""
    reply = event("reply", 2, round=1, site="a", bytes=30)
    standing = Standing.of([STARTED, ASKED, reply, ASKED, reply, finished(1, 11)])
    assert standing.nbytes == 150
    assert standing.awaited == ()
    assert standing.stage == "between rounds"


def test_time_left_comes_from_the_rounds_so_far() -> None:
    """Three rounds of ten seconds are left, and of the one in progress four have gone: 26 s."""
    events = [STARTED, ASKED, finished(1, 11), event("round-started", 12, round=2, sites=["a"])]
    standing = Standing.of(events)
    assert standing.at is not None
    assert standing.seconds_left(standing.at + 4) == pytest.approx(26)
    assert Standing.of(events[:2]).seconds_left(0) is None


def test_a_resume_keeps_what_was_sent_and_forgets_the_ending() -> None:
    """After a failure and a second start the run goes on from its checkpoint."""
    again = event("run-started", 30, rounds=4, completed=1, sites=[])
    standing = Standing.of([STARTED, ASKED, finished(1, 11), event("failed", 20, reason="x"), again])
    assert (standing.completed, standing.stage, standing.ending, standing.nbytes) == (1, "preparing", None, 150)


def test_an_unknown_event_changes_nothing() -> None:
    """A log of a later version can be read."""
    before, after = Standing.of([STARTED]), Standing.of([STARTED, event("something-else", 0)])
    assert before == after


def test_a_run_that_reached_its_target_has_no_rounds_left() -> None:
    """The last reading is kept; what is left is the gate, also where the run was resumed after that."""
    read = event("monitored", 11, round=1, loss=0.3, metrics={"accuracy": 0.97}, seconds=0.1)
    reached = event("target-reached", 12, round=1, metric="accuracy", value=0.97, target=0.95)
    resumed = event("run-started", 20, rounds=4, completed=1, sites=[])
    for events in ([ASKED, finished(1, 10), read, reached], [finished(1, 10), read, resumed, reached]):
        standing = Standing.of([STARTED, *events])
        assert (standing.stage, standing.rounds, standing.completed, standing.share) == ("judging", 1, 1, 1)
        assert standing.monitored == read
