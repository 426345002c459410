"""Sites whose data do not fit, beside two that do: real sites in a real worker, one run for all cases."""

import json
from typing import Any

import numpy as np
import pytest

from fedretrain.job import load_job
from fedretrain.runfolder import RunFolder
from fedretrain.simsites import simulated_sites
from server.run import execute
from simulations.engine import LocalGrid
from simulations.worker import Sites
from tests.server.keras_job import TRUTH, make_job

pytestmark = pytest.mark.slow
SECRET = 31337.25
CONTRACT = """
[contract]
columns = ["age", "weight", "pulse", "dose"]
preprocessing = "standardised"
[simulation]
sites = "sites/*.npz"
"""


def examples(seed: int) -> dict[str, Any]:
    x = np.random.default_rng(seed).normal(size=(60, 4)).astype(np.float32)
    return {"x": x, "y": np.argmax(x @ TRUTH, axis=1), "preprocessing": np.array("standardised")}


def bad_sites() -> dict[str, dict[str, Any]]:
    """One of each kind, with a value that nobody else may see wherever the kind allows one."""
    good = examples(9)
    nan, unknown = good["x"].copy(), good["y"].copy()
    nan[3, 2], nan[4, 2] = np.nan, SECRET
    unknown[5] = int(SECRET)
    return {
        "columns": good | {"x": np.hstack([good["x"], np.full((60, 1), SECRET, np.float32)])},
        "labels": good | {"y": unknown},
        "nan": good | {"x": nan},
        "empty": good | {"x": good["x"][:0], "y": good["y"][:0]},
        "range": good | {"x": good["x"] * np.float32(SECRET)},
        "preprocessing": good | {"preprocessing": np.array("raw")},
        "pickled": good | {"x": np.array([[SECRET, "a", "b", "c"]] * 60, dtype=object)},
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run with all of them."""
    folder = tmp_path_factory.mktemp("job")
    path = make_job(folder, rounds=1, more=CONTRACT)
    for holdout in folder.glob("*.npz"):
        with np.load(holdout) as arrays:
            kept = dict(arrays)
        np.savez(holdout, **kept, preprocessing=np.array("standardised"))
    (folder / "sites").mkdir()
    for name, arrays in {"good-1": examples(1), "good-2": examples(2), **bad_sites()}.items():
        np.savez(folder / "sites" / f"{name}.npz", **arrays)
    (folder / "sites" / "text.npz").write_text(f"name,age\nAda,{SECRET}\n")
    job = load_job(path)
    run = RunFolder.create(folder / "out", "r1", job)
    with LocalGrid(Sites(simulated_sites(job), run.store), workers=1, logs=run.root / "logs") as grid:
        execute(job, grid, run)
    return run


def declined(run: RunFolder, site: str) -> tuple[str, str]:
    """Code and place of a site's refusal."""
    (event,) = [e for e in run.read_events() if e["event"] == "site-declined" and e["site"] == site]
    return event["code"], event["where"]


def test_the_run_goes_on_with_the_sites_that_fit(run: RunFolder) -> None:
    """Two good sites are enough: every round counts, and only they are in it."""
    (record,) = json.loads(run.result.read_bytes())["rounds"]
    assert [a["site"] for a in record["admitted"]] == ["good-1", "good-2"]
    assert record["quarantined"] == []


def test_fault_32_wrong_columns(run: RunFolder) -> None:
    """The first column that is too many is named."""
    assert declined(run, "columns") == ("data-shape", "x column 4")


def test_fault_33_unknown_labels(run: RunFolder) -> None:
    """The output is named, the label is not."""
    code, where = declined(run, "labels")
    assert code == "label-unknown"
    assert str(int(SECRET)) not in where


def test_fault_34_nan(run: RunFolder) -> None:
    """The column is named as the contract names it."""
    assert declined(run, "nan") == ("data-not-finite", "x column 2 (pulse)")


def test_fault_35_an_empty_partition(run: RunFolder) -> None:
    """A site without examples says so."""
    assert declined(run, "empty")[0] == "data-empty"


@pytest.mark.parametrize(
    ("site", "code"),
    [
        ("range", "data-range"),
        ("preprocessing", "data-preprocessing"),
        ("pickled", "data-unreadable"),
        ("text", "data-unreadable"),
    ],
)
def test_other_data_that_do_not_fit(run: RunFolder, site: str, code: str) -> None:
    """Out of range, prepared otherwise, needing pickle, or no npz at all."""
    assert declined(run, site)[0] == code


def test_a_file_that_cannot_be_read_is_named(run: RunFolder) -> None:
    """In a simulation it is the operator's own."""
    assert declined(run, "text") == ("data-unreadable", "text.npz")


def test_no_value_of_the_data_is_written_down_anywhere(run: RunFolder) -> None:
    """Neither the events, the result, the lineage nor the workers' logs hold the value that only the data have."""
    out = run.root.parent.parent
    texts = [p for p in out.rglob("*") if p.suffix in {".json", ".jsonl", ".log"}]
    assert {"events.jsonl", "result.json", "worker-1.log"} <= {p.name for p in texts}
    assert [p.name for p in texts if "31337" in p.read_text()] == []
