"""The benchmark's arithmetic, and that it still runs."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from simulations.benchmarks import round_overhead
from simulations.benchmarks.federated import read_calls, read_rounds
from simulations.benchmarks.quickstart.task import CLASSES, FEATURES, hidden_units

LOG = """\
2026-01-31 12:00:01,300 DEBUG call near pull-object in 88 out 1000 took 0.100
2026-01-31 12:00:01,500 DEBUG call far pull-object in 88 out 1000 took 0.200
2026-01-31 12:00:01,600 DEBUG call far confirm-message-received in 88 out 0 took 0.100
2026-01-31 12:00:01,700 WARNING refused 10.0.0.3 (no member): not-admitted: the node key
2026-01-31 12:00:03,200 DEBUG call far push-messages in 500 out 30 took 0.100
2026-01-31 12:00:03,400 DEBUG call far push-object in 2000 out 30 took 0.200
2026-01-31 12:00:09,000 DEBUG call far pull-messages in 10 out 0 took 0.001
"""


def test_a_rounds_parts_add_up_to_its_length(tmp_path: Path) -> None:
    """By hand: 1.0 to 4.0 s with 1.2 s of training; the last site's steps end at 1.3, 1.6, 3.1, 3.4, 3.7 and 4.0."""
    (tmp_path / "gateway.log").write_text(LOG)
    calls = read_calls(tmp_path / "gateway.log")
    at = calls[0].end - 1.3
    events = [
        event("round-started", at + 1, round=1),
        event("reply", at + 2.5, round=1, site="near", metrics={"seconds": 0.5}),
        event("reply", at + 3.7, round=1, site="far", metrics={"seconds": 1.2}),
        event("round-finished", at + 3.9, round=1),
        event("round-started", at + 4, round=2),
    ]
    [found] = read_rounds(events, calls)
    assert (found.seconds, found.training, found.overhead) == pytest.approx((3.0, 1.2, 1.8), abs=2e-3)
    assert (found.down, found.up) == (2060, 2764)
    assert list(found.parts.values()) == pytest.approx([0.3, 0.3, 0.3, 0.3, 0.3, 0.3], abs=2e-3)


def test_the_model_has_the_size_that_was_asked_for() -> None:
    """A dense layer and a classifier of float32: within one unit of 1 MiB, and of 100."""
    for megabytes in (1.0, 100.0):
        units = hidden_units(megabytes)
        size = 4 * (FEATURES * units + units + CLASSES * units + CLASSES)
        assert abs(size - megabytes * 2**20) <= 4 * (FEATURES + 1 + CLASSES)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="CPU time is read from /proc")
def test_the_benchmark_measures_a_federation(capsys: pytest.CaptureFixture[str]) -> None:
    """One site, two rounds of a tenth of a megabyte: the bytes counted are the model's and little else."""
    options = ["--only", "ours", "--sites", "1", "--mb", "0.1", "--rounds", "2", "--idle", "0", "--json"]
    assert round_overhead.main(options) == 0
    costs = json.loads(capsys.readouterr().out)["fedretrain"]
    assert 0.1 * 2**20 < costs["rounds"][0]["up"] < 0.15 * 2**20
    assert costs["site_cpu"] > 0


def event(kind: str, at: float, **fields: object) -> dict[str, object]:
    return {"event": kind, "at": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"), **fields}
