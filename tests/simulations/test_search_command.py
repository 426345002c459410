"""`fedretrain server search` with real workers; only the choice of points stands in for KerasTuner's."""

import json
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedretrain import cli
from tests.server.keras_job import TRUTH, make_job

SEARCH = """
[simulation]
sites = "sites/*.npz"
[search]
rounds = 1
trials = 2
[search.space]
"train.optimizer.learning_rate" = { low = 0.001, high = 2.0 }
"""


@pytest.mark.slow
def test_two_trials_at_simulated_sites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The better rate is named, the model's optimizer stays, nothing is released, and a second start trains nothing."""
    path = make_job(tmp_path / "job", more=SEARCH)
    rng = np.random.default_rng(7)
    (tmp_path / "job" / "sites").mkdir()
    for name in ("a", "b"):
        x = rng.normal(size=(120, 4)).astype(np.float32)
        np.savez(tmp_path / "job" / "sites" / f"{name}.npz", x=x, y=np.argmax(x @ TRUTH, axis=1))

    def points(_section: Any, _seed: int, measure: Callable[[Mapping[str, float]], float]) -> None:
        for rate in (0.001, 1.0):
            measure({"train.optimizer.learning_rate": rate})

    monkeypatch.setitem(sys.modules, "keras_tuner", types.ModuleType("keras_tuner"))
    monkeypatch.setattr("server.search._tune", points)
    command = ["server", "search", str(path), "--out", str(tmp_path / "s"), "--workers", "1", "--json"]
    assert cli.run(command) == 0
    said = capfd.readouterr()
    found = json.loads(said.out)
    assert found["best"] == 2
    assert found["trials"][1]["loss"] < found["trials"][0]["loss"]
    assert [trial["examples"] for trial in found["trials"]] == [24, 24]  # a tenth of each site's
    assert "trial 2 of 2 (so far loss" in said.err
    job = json.loads((tmp_path / "s" / "runs" / "trial-002" / "job.json").read_bytes())
    assert job["train"]["optimizer"] == {"name": "sgd", "learning_rate": 1.0}
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["logs", "runs", "search.json", "store"]
    monkeypatch.setattr("server.trial._measured", lambda *_: pytest.fail("made again"))
    assert cli.run(command[:-1]) == 0
    said = capfd.readouterr()
    assert "best by loss" in said.out
    assert "trial 1" not in said.err  # nor any other that is there already
