"""What runs and the registry say of the past."""

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedretrain.job import Job
from fedretrain.runfolder import RunFolder
from server.deciding.plan import Range
from server.deciding.runs import costs_of, past_of, runs_of
from server.kinds import mark_check
from tests.drafts import draft
from tests.signing import open_registry

from .kept import DAY, NOW, job, past, plan, result, write_run

pytestmark = pytest.mark.usefixtures("unflushed")


def record(of: Any, run: str) -> Any:
    return SimpleNamespace(plan=of.to_json(), decision=SimpleNamespace(run=run))


def test_past_retrainings_stand_in_the_order_in_which_they_ended(tmp_path: Path) -> None:
    """What it was not released for has gained nothing; going on with all data is what plans call full."""
    write_run(tmp_path, "b", "continue", NOW, kwh=0.5)
    write_run(tmp_path, "a", "replay", NOW + DAY, release=None)

    first, second = past_of(tmp_path)

    assert (first.action, first.gain, first.kwh, first.released) == ("full", pytest.approx(0.1), 0.5, True)
    assert (second.action, second.gain, second.released, second.at) == ("replay", 0.0, False, NOW + DAY)


def test_a_plan_says_what_its_run_was_for(tmp_path: Path) -> None:
    """Its action, the gain it expected, and what the check before it found: 0.9 - 0.7 with a new head."""
    write_run(tmp_path, "p", "transfer")

    (found,) = past_of(tmp_path, [record(plan("transfer", {"mode": "transfer"}), "p")])

    assert (found.action, found.predicted, found.gain) == ("transfer", 0.1, pytest.approx(0.2))


def test_segments_and_checks_are_no_retrainings_of_their_own(tmp_path: Path) -> None:
    """An online job counts once; a check is no run, finished or failed."""
    write_run(tmp_path, "o.1", "online")
    write_run(tmp_path, "o", "online")
    whole = tmp_path / "runs" / "o" / "result.json"
    whole.write_text(whole.read_text()[:-1] + ', "segments": [{"run_id": "o.1"}]}')
    folder = RunFolder.create(tmp_path, "check-1", job(tmp_path / "m.keras"))
    mark_check(folder)
    folder.append_event({"event": "failed", "at": NOW.isoformat(), "reason": "none answered"})

    assert [one.action for one in past_of(tmp_path)] == ["online"]


def test_a_run_that_failed_is_a_retraining_in_vain(tmp_path: Path) -> None:
    """So that one does not follow the other at once; one that goes on is none."""
    for name in ("failed", "going-on"):
        folder = RunFolder.create(tmp_path, name, job(tmp_path / "m.keras", train={"mode": "incremental"}))
        bytes_ = {"bytes_base": 1, "bytes_down": 2, "bytes_up": 3}
        folder.append_event({"event": "round-finished", "at": NOW.isoformat(), "seconds": 2.5, **bytes_})
    RunFolder(tmp_path / "runs" / "failed").append_event({"event": "failed", "at": NOW.isoformat(), "reason": "?"})

    (found,) = past_of(tmp_path)

    assert (found.action, found.released, found.gain, found.seconds, found.bytes) == ("incremental", False, 0.0, 2.5, 6)


def test_the_release_in_use_is_the_registrys(tmp_path: Path) -> None:
    """With its time, the one before, and where it was trained; a world's clock may say another time."""
    first = open_registry(tmp_path, NOW - DAY).publish(draft("import-0", lineage={"run": "import-0", "imported": True}))
    brought = runs_of(tmp_path)
    second = open_registry(tmp_path, NOW).publish(draft("run-2", 2))

    assert (brought.release, brought.released_at, brought.sites) == (first.id, None, None)
    found = runs_of(tmp_path)
    later = runs_of(tmp_path, clock=lambda run, at: at + timedelta(hours=1) if run == "run-2" else at)

    assert (found.release, found.released_at, found.previous_release) == (second.id, NOW, first.id)
    assert (found.sites, found.previous_is_first) == (frozenset({"a", "b"}), True)
    assert later.released_at == NOW + timedelta(hours=1)
    assert runs_of(tmp_path / "elsewhere").release is None


def test_costs_are_the_median_within_what_was_seen() -> None:
    """Of 10, 36 and 20 s: 20, 10 to 36. Of 8 s alone: 4 to 16. A way that never ran has no cost."""
    runs = [past("incremental", seconds=s, kwh=k) for s, k in ((10.0, None), (36.0, 0.2), (20.0, None))]

    found = costs_of([*runs, past("full", seconds=8.0), past("ensemble"), past("replay", seconds=0.0)])

    assert sorted(found) == ["full", "incremental"]
    assert (found["incremental"].seconds, found["incremental"].runs) == (Range(10.0, 20.0, 36.0), 3)
    assert found["incremental"].kwh == Range(0.1, 0.2, 0.4)
    assert found["full"].seconds == Range(4.0, 8.0, 16.0)


def test_a_job_of_a_run_is_read_for_its_mode_alone(tmp_path: Path) -> None:
    """A result whose job this version does not take any more still counts."""
    write_run(tmp_path, "r", "incremental")
    with pytest.raises(ValueError, match="model"):
        Job.model_validate_json((tmp_path / "runs" / "r" / "job.json").read_bytes())

    assert past_of(tmp_path)[0].new_examples == 60
    assert result("r")["rounds"][0]["admitted"][0]["examples"] == 30
