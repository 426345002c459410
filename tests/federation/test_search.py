"""A search at a federation's sites: its trials are runs that release nothing, and are made once."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from client import record
from fedretrain.processes import clean_environment
from server.registry import Registry

from .stand import COMMAND, JOB, ROOT, SITES, Stand, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SEARCH = """
[search]
trials = 2
[search.space]
"train.batch_size" = { choose = [16, 32, 64] }
"""


@pytest.fixture
def search(stand: Stand) -> list[str]:
    """The command, for a job of one round at three sites."""
    text = JOB.format(
        model=stand.folder / "base.keras", rounds=1, min_sites=3, deadline=120, strategy="fedavg", more=""
    )
    path = stand.folder / "search.toml"
    path.write_text(text + SEARCH)
    return [*COMMAND, "server", "search", str(path), "--folder", str(stand.federation.folder), "--json"]


def start(command: list[str], folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command,
        cwd=folder,
        env=clean_environment(PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer(process: "subprocess.Popen[str]") -> Any:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err + out
    return json.loads(out.splitlines()[-1])


def test_a_search_that_is_killed_goes_on_and_releases_nothing(stand: Stand, search: list[str]) -> None:
    """The first trial is made once, though the command that asked for it died; sites say what their records hold."""
    pytest.importorskip("keras_tuner")
    first = start(search, stand.folder)
    runs = stand.federation.runs
    wait_for(lambda: list(runs.glob("search-*-001/desired.json")), 120, "the first trial asked for")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    [trial] = runs.glob("search-*-001")
    wait_for((trial / "result.json").exists, 120, "the first trial made")
    made = (trial / "trial.json").read_bytes()

    found = answer(start(search, stand.folder))
    assert [t["sites"] for t in found["trials"]] == [list(SITES)] * 2
    assert all(t["loss"] < 1.2 and 0.3 < t["accuracy"] <= 1 for t in found["trials"])
    assert found["best"] in {1, 2}
    assert (trial / "trial.json").read_bytes() == made
    assert Registry.open(stand.federation.folder).incumbent() is None
    for site in SITES:
        sent = [entry for entry in record.read(stand.home(site).record) if entry["kind"] == "sent"]
        assert [entry["sum"] for entry in sent if "sum" in entry] == ["evaluation"] * 2
