"""Whole runs: released, rejected, resumed, refused; the model, the gate and the registry are real."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from fedretrain.digest import weights_digest
from fedretrain.errors import ConfigurationError, MachineError, RunFailed
from fedretrain.job import load_job
from fedretrain.runfolder import RunFolder
from server.app import app
from server.registry import Registry
from server.run import execute

from .grid import ScriptedGrid
from .keras_job import TRUTH, make_job, sites, start


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


def releases(out: Path) -> list[str]:
    """Runs that released, in the order of the ledger."""
    state = Registry.open(out).state()
    return [] if state is None else [entry.run for entry in state.ledger.releases.values()]


def test_a_candidate_that_passes_is_released(job: Path, tmp_path: Path) -> None:
    """Result, registry and lineage agree; the base became the first release and is the parent; frozen stays frozen."""
    events: list[dict[str, Any]] = []
    result = start(job, tmp_path, on_event=events.append)
    incumbent = Registry.open(tmp_path).incumbent()
    assert incumbent is not None
    assert (result["outcome"], result["release"]) == ("released", incumbent.id)
    assert result["gate"]["passed"]
    assert [h["name"] for h in result["gate"]["holdouts"]] == ["old", "new"]
    assert result["gate"]["holdouts"][0]["uses"] == 1
    base, _ = Registry.open(tmp_path).load(result["parent"])
    assert base.lineage["imported"] is True
    assert base.lineage["run"] == f"import-{incumbent.contract.base[:12]}"
    assert np.array_equal(incumbent.weights[0], base.weights[0])
    np.testing.assert_allclose(incumbent.weights[1], 0.25 * base.weights[1] + 0.75 * TRUTH, rtol=1e-5)
    lineage = incumbent.lineage
    assert (lineage["run"], lineage["parent"], lineage["job"]) == ("r1", base.id, load_job(job).digest)
    assert lineage["sites"] == {"a": 10, "b": 11, "c": 12}
    assert lineage["rounds"] == [{"round": n, "admitted": ["a", "b", "c"], "quarantined": []} for n in (1, 2)]
    assert set(lineage["versions"]) == {"fedretrain", "flwr", "keras", "tensorflow"}
    assert [e["event"] for e in events[-2:]] == ["gate", "released"]
    assert list(RunFolder.open(tmp_path / "runs" / "r1").read_events()) == json.loads(json.dumps(events))


def test_the_result_says_what_was_sent_and_how_long_it_took(job: Path, tmp_path: Path) -> None:
    """8 head weights of 24 travel; the base goes to each of three sites once."""
    result = start(job, tmp_path)
    one, base = 4 * 8 + 128, 4 * (16 + 8) + 2 * 128
    assert result["bytes"] == {
        "down": 6 * one,
        "up": 6 * one,
        "base": 3 * base,
        "total": 12 * one + 3 * base,
        "whole_model_total": 12 * 4 * 24,
        "ratio": pytest.approx((12 * one + 3 * base) / (12 * 4 * 24)),
    }
    assert set(result["seconds"]) == {"total", "open", "prepare", "rounds", "earlier", "gate", "release"}
    assert result == json.loads((tmp_path / "runs" / "r1" / "result.json").read_bytes())


def test_a_candidate_that_does_not_pass_is_rejected_with_evidence(job: Path, tmp_path: Path) -> None:
    """The incumbent stays the imported base."""
    events: list[dict[str, Any]] = []
    result = start(job, tmp_path, -TRUTH, on_event=events.append)
    assert (result["outcome"], result["release"]) == ("rejected", None)
    assert result["gate"]["reasons"]
    assert (events[-1]["event"], events[-1]["reasons"]) == ("rejected", result["gate"]["reasons"])
    assert releases(tmp_path) == [Registry.open(tmp_path).load(result["parent"])[0].lineage["run"]]


def test_a_finished_run_returns_its_result(job: Path, tmp_path: Path) -> None:
    """Nobody is asked, nothing is counted or released again."""
    result = start(job, tmp_path)
    folder = RunFolder.open(tmp_path / "runs" / "r1")
    assert execute(folder.load_job(), ScriptedGrid([]), folder) == result
    assert len(releases(tmp_path)) == 2


def test_the_next_run_has_to_start_from_the_model_in_use(job: Path, tmp_path: Path) -> None:
    """The old base is refused with the way out; the release's own model.keras is taken."""
    first = start(job, tmp_path)
    model = tmp_path / "registry" / "releases" / first["release"] / "model.keras"
    with pytest.raises(ConfigurationError, match=f"model in use, release {first['release'][:16]}.*{model}") as caught:
        start(job, tmp_path, run="r2")
    assert "choose another output folder" in str(caught.value)
    parsed = load_job(job)
    following = parsed.model_copy(update={"model": parsed.model.model_copy(update={"path": model})})
    second = start(following, tmp_path, run="r3")
    assert second["parent"] == first["release"]
    assert second["gate"]["holdouts"][0]["uses"] == 2


def test_more_sites_asked_for_than_there_are(job: Path, tmp_path: Path) -> None:
    """Known before anything is loaded."""
    (tmp_path / "s1.npz").write_bytes(b"")
    text = job.read_text().replace("[participation]", "[participation]\nmin_sites = 3")
    text = text.replace('path = "', f'path = "{job.parent}/') + f'[simulation]\nsites = "{tmp_path}/s*.npz"\n'
    (tmp_path / "job.toml").write_text(text)
    with pytest.raises(ConfigurationError, match="min_sites: expected at most 1, the number of simulated sites, got 3"):
        start(tmp_path / "job.toml", tmp_path / "out")


def test_fault_38_a_full_disk_at_the_moment_of_release(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The incumbent is intact, the run says so, and the next start releases without training or judging again."""
    publish = Registry.publish

    def full(self: Registry, draft: Any, *args: Any, **kwargs: Any) -> Any:
        if draft.lineage["run"] == "r1":
            raise MachineError("registry: cannot write: no space left")
        return publish(self, draft, *args, **kwargs)

    monkeypatch.setattr(Registry, "publish", full)
    with pytest.raises(MachineError, match="no space left"):
        start(job, tmp_path)
    assert len(releases(tmp_path)) == 1
    folder = RunFolder.open(tmp_path / "runs" / "r1")
    assert [e["event"] for e in folder.read_events()][-2:] == ["gate", "failed"]
    monkeypatch.setattr(Registry, "publish", publish)
    monkeypatch.setattr("server.run.judge", lambda *_, **__: pytest.fail("judged again"))
    result = execute(folder.load_job(), ScriptedGrid([]), folder)
    assert result["outcome"] == "released"
    assert 0 < result["seconds"]["earlier"] == result["seconds"]["rounds"]
    assert result["gate"]["holdouts"][0]["uses"] == 1


def test_a_run_another_process_works_on_is_left_alone(job: Path, tmp_path: Path) -> None:
    """Two starts at once cannot spoil a run."""
    folder = RunFolder.create(tmp_path, "r1", load_job(job))
    with folder.lock(), pytest.raises(MachineError, match="another process is working on this run"):
        start(job, tmp_path)


def test_what_stops_the_flower_app_is_written_down(job: Path, tmp_path: Path) -> None:
    """failure.json has class, exit code and message; the next start that succeeds removes it."""
    folder = RunFolder.create(tmp_path, "r1", load_job(job))

    def flower(grid: ScriptedGrid) -> None:
        app(grid, Context(1, 0, {}, RecordDict(), {"run": str(folder.root)}))

    declining = sites()
    for site in declining:
        site.declines = {"query.prepare": ("data-empty", "", "at least one example")}
    with pytest.raises(RunFailed):
        flower(ScriptedGrid(declining))
    failure = json.loads(folder.failure.read_bytes())
    assert (failure["error"], failure["exit_code"]) == ("RunFailed", 4)
    assert "all 3 sites: data-empty" in failure["message"]
    flower(ScriptedGrid(sites()))
    assert not folder.failure.exists()
    assert json.loads(folder.result.read_bytes())["outcome"] == "released"


def test_fault_38_a_full_disk_hides_no_cause(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where failure.json cannot be written, what the app ends with is still what happened."""

    def full(path: Path, _: Any) -> None:
        raise MachineError(f"{path}: cannot write: no space left")

    folder = RunFolder.create(tmp_path, "r1", load_job(job))
    declining = sites()
    for site in declining:
        site.declines = {"query.prepare": ("data-empty", "", "at least one example")}
    monkeypatch.setattr("server.app.atomic.write_json", full)
    with pytest.raises(RunFailed, match="all 3 sites: data-empty"):
        app(ScriptedGrid(declining), Context(1, 0, {}, RecordDict(), {"run": str(folder.root)}))


def _start_to_die(job: Path, out: Path, point: str) -> None:
    os.environ["FAULT_AT"] = point
    start(job, out)


@pytest.fixture(scope="module")
def die() -> Callable[[Path, Path, str], None]:
    """Runs a start in a process of its own, which must die by SIGKILL at the point; TensorFlow is imported once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.server.test_run", "keras", "tensorflow"])

    def run(job: Path, out: Path, point: str) -> None:
        process = context.Process(target=_start_to_die, args=(job, out, point))
        process.start()
        process.join(120)
        assert process.exitcode == -9, f"did not die at {point}"

    return run


@pytest.mark.slow
def test_fault_36_killed_at_every_step_a_second_start_resumes_and_one_release_is_there_in_the_end(
    job: Path, tmp_path: Path, die: Callable[[Path, Path, str], None]
) -> None:
    """Each named step from aggregation to the result: the same weights as an unbroken run, one release of the run."""
    whole = start(job, tmp_path / "whole")
    expected = weights_digest(Registry.open(tmp_path / "whole").load(whole["release"])[0].weights)
    die(job, tmp_path / "begun", "aggregated")
    die(job, tmp_path / "begun", "checkpoint-written")
    die(job, tmp_path / "begun", "checkpoint-committed")
    die(job, tmp_path / "begun", "gate-started")
    die(job, tmp_path / "begun", "gate-finished")
    for point in ("release-staged", "release-moved", "metadata-written", "timestamp-swapped", "trust-recorded",
                  "result-written"):  # fmt: skip
        out = tmp_path / point
        shutil.copytree(tmp_path / "begun", out)
        die(job, out, point)
        incumbent = Registry.open(out).incumbent()
        assert incumbent is not None
        result = start(job, out)
        registry = Registry.open(out)
        released = registry.incumbent()
        assert released is not None
        assert result["outcome"] == "released", point
        assert result["release"] == released.id
        assert weights_digest(released.weights) == expected
        assert releases(out).count("r1") == 1
        assert len(releases(out)) == 2
        assert result["gate"]["holdouts"][0]["uses"] == 1
