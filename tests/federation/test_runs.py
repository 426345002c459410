"""Two runs of one federation at the same time."""

import pytest

from client import record
from fedretrain.runfolder import RunFolder
from server.registry import Registry

from .stand import SITES, Stand, check_whole, rounds_done, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROUNDS = 3


def ended(run: RunFolder) -> bool:
    return run.result.exists() or run.failure.exists()


@pytest.mark.endurance
def test_two_runs_at_once_do_not_mix(stand: Stand) -> None:
    """Each has its own rounds; whichever comes second finds another model in use, says so and releases nothing."""
    runs = [stand.retrain(ROUNDS, deadline_s=120), stand.retrain(ROUNDS, deadline_s=120)]
    wait_for(lambda: all(map(ended, runs)), 240, f"both ended; {[stand.tail(run) for run in runs]}")
    [first, second] = sorted(runs, key=lambda run: not run.result.exists())
    check_whole(stand, first, ROUNDS)
    assert "model in use" in second.failure.read_text()
    assert not second.result.exists()
    assert rounds_done(second) in ([], list(range(1, ROUNDS + 1)))
    asked = [event for event in second.read_events() if event["event"] == "reply"]
    assert {reply["site"] for reply in asked} <= set(SITES)
    assert Registry.open(stand.federation.folder).verify().ok


def test_what_objectives_need_goes_signed_through_the_whole_federation(stand: Stand) -> None:
    """Sums at the sites, companions brought back, certainty found out at the end; every site has both on record."""
    more = 'objectives = [{ name = "ewc", strength = 0.5, labels = "data" }]\n[uncertainty]'
    run = stand.retrain(1, deadline_s=120, more=more)
    result = check_whole(stand, run, 1)
    sums = [event for event in run.read_events() if event["event"] == "sum"]
    assert [(event["sum"], event["sites"]) for event in sums] == [
        (name, list(SITES)) for name in ("fisher", "gauss-newton")
    ]
    assert result["gate"]["uncertainty"]["sites"] == list(SITES)
    assert Registry.open(stand.federation.folder).uncertainty(result["release"]) is not None
    for site in SITES:
        home = stand.home(site)
        assert len(list((home.store / "companions").glob("*.safetensors"))) == 1
        sent = [entry for entry in record.read(home.record) if entry["kind"] == "sent"]
        assert [entry["sum"] for entry in sent if "sum" in entry] == ["fisher", "gauss-newton"]
        assert "query.companion" in {entry["type"] for entry in sent}
        assert record.verify(home.record).problems == ()
