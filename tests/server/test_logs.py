"""What a run's log says to a person."""

import re

import pytest

from server import events, logs


def test_every_event_has_words() -> None:
    """Each that ``server.events`` describes, and no other."""
    described = set(re.findall(r"^    ([a-z]+(?:-[a-z]+)*)  ", str(events.__doc__), re.MULTILINE))
    assert len(described) > 10
    assert described == set(logs._TOLD)


@pytest.mark.parametrize(
    ("event", "text"),
    [
        ({"event": "site-away", "site": "b"}, "b is not connected any more, or was revoked; rounds go on without it"),
        ({"event": "site-back", "site": "b"}, "b is connected again"),
        ({"event": "of-another-version", "site": "b", "why": 3}, "site b, why 3"),
    ],
)
def test_an_event_is_a_line(event: dict[str, object], text: str) -> None:
    """Time, kind, words; a kind that is not known is shown as it is."""
    line = logs.event_line({"at": "2026-01-31T12:00:00.250+00:00", **event})
    assert re.split("  +", line) == ["2026-01-31T12:00:00Z", event["event"], text]
