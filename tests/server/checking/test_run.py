"""A check from a job with a real model to its document."""

import json
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedretrain.digest import weights_digest
from fedretrain.errors import ConfigurationError
from fedretrain.job import load_job
from fedretrain.messages import SUM, request_arrays
from fedretrain.runfolder import RunFolder
from fedretrain.standing import Standing
from server.checking.document import Check
from server.checking.run import check
from server.checking.watched import _begun
from server.kinds import is_check, mark_check
from server.registry import Registry
from tests.server import keras_job
from tests.server.grid import ScriptedGrid

from .answers import CheckSite

WATCH = """
[watch]
projections = 2
labels = ["2"]
[watch.edges]
"column 0" = [-1, 1]
"""


def checked(job_file: Path, out: Path, run: str = "check-1", **more: Any) -> tuple[Check, ScriptedGrid, RunFolder]:
    job = load_job(job_file)
    grid, folder = ScriptedGrid([CheckSite("a", 10), CheckSite("b", 20)]), RunFolder.create(out, run, job)
    mark_check(folder)
    return check(job, grid, folder, **more), grid, folder


@pytest.fixture(scope="module")
def job_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return keras_job.make_job(tmp_path_factory.mktemp("job"), more=WATCH)


def test_a_check_is_written_down_and_not_asked_twice(job_file: Path, tmp_path: Path) -> None:
    """Features with the job's edges or a holdout's quantiles, each site's counts, and a result that says so."""
    events: list[dict[str, Any]] = []
    found, _, folder = checked(job_file, tmp_path, on_event=events.append)
    assert is_check(folder)
    assert [f.name for f in found.features] == [*(f"column {i}" for i in range(4)), "projection 0", "projection 1"]
    assert found.features[0].edges == (-1.0, 1.0)
    x = np.load(job_file.parent / "old.npz")["x"].astype(np.float64)
    np.testing.assert_allclose(found.features[1].edges, np.quantile(x[:, 1], np.arange(1, 10) / 10))
    assert (sorted(found.sites), found.release, found.since) == (["a", "b"], None, None)
    assert found.labels == {"head": ("0", "1", "2", "unknown")}
    assert json.loads((folder.root / "check.json").read_bytes()) == found.to_json()
    assert (folder.root / "check.json").stat().st_mode & 0o777 == 0o600
    assert Standing.of(folder.read_events()).nbytes == found.bytes > 0
    assert json.loads(folder.result.read_bytes())["outcome"] == "checked"
    assert [e["event"] for e in events if e["event"].startswith("check")] == [
        "check-started", "check-answer", "check-answer", "checked",
    ]  # fmt: skip
    again, other, _ = checked(job_file, tmp_path)
    assert (again, other.sent) == (found, [])
    assert not (tmp_path / "holdout-uses.json").exists()


def test_what_is_in_use_is_watched_since_its_release(job_file: Path, tmp_path: Path) -> None:
    """After a release the sites get its values, not those of the job's model; recent is what came after it."""
    result = keras_job.start(job_file, tmp_path)
    assert result["outcome"] == "released"
    found, grid, _ = checked(job_file, tmp_path)
    release = Registry.open(tmp_path).incumbent()
    assert release is not None
    assert found.release == release.id == result["release"]
    sent = next(m.content for m in grid.sent if m.metadata.message_type == SUM)
    values = list(request_arrays(sent).values())
    assert weights_digest(values) == weights_digest([release.weights[i] for i in release.contract.changing])
    assert found.since is not None
    assert found.since.startswith(release.gate["at"][:10] if "at" in release.gate else found.at[:10])


@pytest.mark.parametrize(
    ("said", "lineage", "begun"),
    [
        (None, {}, "2026-03-01"),
        ("2026-01-01", {}, "2026-03-01"),  # what the release was trained on is not new any more
        ("2026-04-01", {}, "2026-04-01"),
        ("2026-01-01", {"imported": True}, "2026-01-01"),  # it learned nothing when it was signed
        (None, {"imported": True}, None),
    ],
)
def test_examples_are_new_since_the_model_in_use_last_learned(
    job_file: Path, said: str | None, lineage: dict[str, Any], begun: str | None
) -> None:
    """From its release on, or from the job's own date where that is later."""
    job = load_job(job_file)
    train = job.train.model_copy(update={"since": said and datetime.fromisoformat(f"{said}T00:00:00+00:00")})
    release: Any = SimpleNamespace(lineage=lineage)
    found = _begun(job.model_copy(update={"train": train}), release, "2026-03-01T00:00:00Z")
    assert found == (begun and datetime.fromisoformat(f"{begun}T00:00:00+00:00"))


def test_a_job_for_other_labels_is_checked_with_those_in_use(job_file: Path, tmp_path: Path) -> None:
    """An extension asks for a third label, which its holdouts have and the model does not: it is looked for."""
    text = job_file.read_text().replace("[train]", '[train]\nmode = "extend"\nsince = "2026-01-01"')
    wider = job_file.parent / "wider.toml"
    rng = np.random.default_rng(1)
    np.savez(
        job_file.parent / "third.npz",
        x=rng.normal(size=(9, 4)).astype(np.float32),
        y=np.arange(9) % 3,
        labels=np.array(["0", "1", "2"]),
    )
    wider.write_text(text.replace("old.npz", "third.npz") + '[extend]\nlabels = ["0", "1", "2"]\n')
    found, _, _ = checked(wider, tmp_path)
    assert found.labels == {"head": ("0", "1", "2", "unknown")}
    assert found.since == "2026-01-01T00:00:00+00:00"


def test_edges_of_what_is_not_watched_are_refused(job_file: Path, tmp_path: Path) -> None:
    """The line names the key, what there is, and what comes nearest."""
    wrong = job_file.parent / "wrong.toml"
    wrong.write_text(job_file.read_text().replace('"column 0"', '"colum 0"'))
    with pytest.raises(
        ConfigurationError, match=r"watch\.edges: expected names.*got 'colum 0'; did you mean 'column 0'"
    ):
        checked(wrong, tmp_path)
