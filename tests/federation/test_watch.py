"""A federation that is watched: its sites are checked, a plan comes of it, a person approves, and the run happens."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from client import record
from fedretrain.processes import clean_environment
from fedretrain.runfolder import RunFolder
from server.registry import Registry

from .stand import COMMAND, JOB, ROOT, SINCE, SITE_TOML, SITES, Stand, wait_for, write_dated

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

OLD, NEW = 300, 150
ALL_BUT_CALIBRATION = 'statistics = ["train-*", "val-*", "sum-*", "check-[!c]*", "check-conf*"]'
METRIC = '[metrics.revenue]\nfunction = "tests.federation.softmax:revenue"\nunit = "EUR"\n'
WATCHED = f"""
[train]
since = {SINCE}
rounds = 2
optimizer = {{ name = "sgd" }}
loss = "sparse_categorical_crossentropy"
metrics = ["accuracy"]
[watch]
projections = 0
metrics = ["revenue"]
[plan]
hysteresis = 1
metric_below = 0.9
"""


@pytest.fixture
def job(stand: Stand) -> Path:
    """A job to watch by; two sites' new data have drifted, and south's operator keeps calibration to themselves."""
    for number, site in enumerate(SITES):
        home = stand.home(site)
        write_dated(home.root / "data.npz", number, OLD, NEW, 0.0 if site == "west" else 2.0)
        home.site.write_text(SITE_TOML + METRIC + (f"[policy]\n{ALL_BUT_CALIBRATION}\n" if site == "south" else ""))
        stand.kill("client.trainer_main", site)  # what follows reads its policy anew
    text = JOB.format(
        model=stand.folder / "base.keras", rounds=2, min_sites=3, deadline=120, strategy="fedavg", more=""
    )
    before, _, after = text.partition("[train]")
    path = stand.folder / "watched.toml"
    path.write_text(before + WATCHED + "[strategy]" + after.partition("[strategy]")[2])
    return path


def ask(stand: Stand, *arguments: str | Path) -> Any:
    """What a command answers in JSON."""
    command = [*COMMAND, "server", *map(str, arguments), "--folder", str(stand.federation.folder), "--json"]
    environment = clean_environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(
        command, cwd=stand.folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout.splitlines()[-1])


def test_from_a_check_to_an_approved_run(stand: Stand, job: Path) -> None:
    """Every site answers as its policy allows; drift is found where it is; the plan is approved by a person and run.

    What one site does not tell costs nothing else, and stands in every answer.
    """
    seen = ask(stand, "watch", job)
    check, findings, plan = seen["check"], seen["findings"], seen["plan"]
    assert sorted(check["sites"]) == sorted(SITES)
    assert check["declined"] == {}
    assert {site: told["withheld"] for site, told in check["sites"].items()} == {
        "north": {}, "south": {"calibration": "policy"}, "west": {},
    }  # fmt: skip
    assert all(told["business"] == {"revenue": [2.0 * NEW, "EUR"]} for told in check["sites"].values())
    assert all(told["recent"]["examples"] == NEW for told in check["sites"].values())
    assert all(told["reference"]["examples"] == OLD for told in check["sites"].values())
    drifted = {(f["subject"], f["site"]) for f in findings["findings"] if f["verdict"] == "drift"}
    [moved] = {subject for subject, site in drifted if site == "north"}
    assert drifted >= {(moved, None), (moved, "north"), (moved, "south")}
    assert not any(site == "west" for _, site in drifted)

    assert ask(stand, "runs")["runs"] == []
    assert [row["state"] for row in ask(stand, "runs", "--checks")["runs"]] == ["checked"]
    assert plan["action"] not in {"nothing", "watch"}, plan["sentence"]
    assert plan["evidence"]["declined"] == [["replay", sorted(SITES)]]  # no site keeps examples
    [replay] = [other for other in plan["alternatives"] if other["action"] == "replay"]
    assert replay["why_not"].startswith("3 of 3 sites do not allow it (north, south, west)")
    assert "south: calibration (policy)" in plan["evidence"]["withheld"]

    decision = ask(stand, "approve", plan["id"][:12], "--by", "ann", "--why", "scanner was replaced")
    run = RunFolder(stand.federation.runs / decision["run"])
    wait_for(lambda: run.result.exists() or run.failure.exists(), 120, f"{run.run_id} ended")
    assert not run.failure.exists(), run.failure.read_text()
    result = stand.ended(run)
    assert [number["round"] for number in result["rounds"]] == [1, 2]
    assert sorted(reply["site"] for reply in result["rounds"][0]["admitted"]) == sorted(SITES)

    kept = ask(stand, "plan")
    assert (kept["plan"]["id"], kept["decision"]["who"], kept["decision"]["why"]) == (
        plan["id"], "ann", "scanner was replaced",
    )  # fmt: skip
    assert kept["score"]["outcome"] == result["outcome"]
    assert len(ask(stand, "drift")["checks"]) == 1
    assert Registry.open(stand.federation.folder).verify().ok
    for site in SITES:
        entries = list(record.read(stand.home(site).record))
        assert record.verify(stand.home(site).record).problems == ()
        assert any(entry.get("sum") == "check" for entry in entries)
