"""The document of a check: the same after its JSON, and refused where it is something else."""

import dataclasses
import json

import pytest

from fedretrain.errors import ConfigurationError
from server.checking.admit import site_check
from server.checking.document import Check

from .answers import SETTINGS, WATCHED, honest


def test_json_and_back_is_the_same_check() -> None:
    """Withheld counts are null; tuples and features come back as they were."""
    answer = honest()
    answer.windows["recent"]["labels"]["y"][0] = -1
    site = site_check(answer, "a", 10, WATCHED, SETTINGS)
    check = Check(
        "check-1", "2026-01-01T00:00:00+00:00", "0" * 64, None, WATCHED.digest, None, {"y": ("0", "1", "2", "unknown")},
        WATCHED.features, {"a": site}, {"b": "policy at sum-check"}, 1.5, 100,
    )  # fmt: skip
    text = json.dumps(check.to_json())
    assert '"format": "fedretrain.check/1"' in text
    assert Check.from_json(json.loads(text)) == check
    assert json.loads(text)["sites"]["a"]["recent"]["labels"]["y"] == [None, 5, 0, 0]
    declining = dataclasses.replace(check, sites={"a": dataclasses.replace(site, declines=("replay",))})
    assert Check.from_json(json.loads(json.dumps(declining.to_json()))) == declining
    older = check.to_json()
    del older["sites"]["a"]["declines"]
    assert Check.from_json(older) == check
    for damaged in ({}, {"format": "fedretrain.check/1"}, {**check.to_json(), "sites": {"a": {}}}):
        with pytest.raises(ConfigurationError, match=r"check: expected fedretrain\.check/1"):
            Check.from_json(damaged)
