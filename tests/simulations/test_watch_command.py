"""`server watch` at simulated sites: a check, a plan, and with --auto the retraining, by one command and no server."""

import json
from pathlib import Path

import pytest

from fedretrain import cli
from server.registry import Registry
from tests.federation.stand import SINCE, write_data, write_dated, write_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

JOB = f"""
holdout = [{{ name = "all", path = "holdout.npz", margin = 0.5 }}]
[model]
path = "base.keras"
[train]
since = {SINCE}
rounds = 1
[participation]
min_sites = 2
[watch]
projections = 2
statistics = ["histogram", "labels", "calibration"]
[plan]
hysteresis = 1
metric_below = 0.9
actions = ["incremental", "full"]
[simulation]
sites = "sites/*.npz"
"""


def test_watched_planned_and_retrained(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The drift of one site is found there, the plan is carried out by itself, and its score is kept."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sites").mkdir()
    for number, (site, shift) in enumerate({"north": 2.0, "south": 0.0}.items()):
        write_dated(tmp_path / "sites" / f"{site}.npz", number, 300, 150, shift)
    write_model(tmp_path / "base.keras")
    write_data(tmp_path, seed=99, name="holdout.npz")
    (tmp_path / "job.toml").write_text(JOB)

    assert cli.run(["server", "watch", "job.toml", "--auto", "--workers", "1", "--json"]) == 0
    seen = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert sorted(seen["check"]["sites"]) == ["north", "south"]
    assert seen["check"]["sites"]["north"]["withheld"]["confidence"] == "not asked"
    assert seen["check"]["sites"]["north"]["recent"]["examples"] == 150
    drifted = {(f["kind"], f["site"]) for f in seen["findings"]["findings"] if f["verdict"] == "drift"}
    assert ("covariate", "north") in drifted
    assert ("covariate", "south") not in drifted
    assert seen["decision"] is not None, seen["plan"]["sentence"]
    assert seen["decision"]["decision"] == "auto"
    result = json.loads((tmp_path / "watched" / "runs" / seen["decision"]["run"] / "result.json").read_bytes())

    assert cli.run(["server", "plan", "--folder", "watched", "--json"]) == 0
    kept = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert kept["plan"] == seen["plan"]
    assert kept["score"]["outcome"] == result["outcome"]
    assert Registry.open(tmp_path / "watched").verify().ok
