"""What a person at a site is told of a job before saying yes."""

from datetime import UTC, datetime
from typing import Any

import pytest

from client.approvals import _used
from fedretrain.job import ReplaySection, TrainSection

from .guarded import job

SINCE = datetime(2026, 6, 1, tzinfo=UTC)
BEFORE = "the data made before that and "


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ({"mode": "replay", "since": SINCE, "replay": ReplaySection(share=0.25)}, ("25 % of what", BEFORE)),
        ({"mode": "replay"}, ("examples; 50 % of what",)),
        ({"mode": "incremental", "since": SINCE}, ("examples made since 2026-06-01 00:00:00 UTC",)),
        ({"mode": "full"}, ("all examples",)),
    ],
)
def test_which_examples_are_used_is_said_in_words(train: dict[str, Any], says: tuple[str, ...]) -> None:
    """With the share of old ones, and where these come from."""
    told = _used(job(train=TrainSection(rounds=1, **train)))
    assert all(text in told for text in says)
    assert (BEFORE in told) == (BEFORE in says)
