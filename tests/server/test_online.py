"""Online jobs: segments are whole runs one after the other, rounds are bounded, and a broken start goes on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedretrain.digest import weights_digest
from fedretrain.errors import ConfigurationError, MachineError
from fedretrain.job import Job, load_job
from fedretrain.runfolder import RunFolder
from fedretrain.standing import Standing
from server.online import bounded_step
from server.registry import Registry
from server.run import execute

from .grid import ScriptedGrid
from .keras_job import TRUTH, make_job, sites, start

ONLINE = """
[online]
gate_every = 2
segments = 2
step_norm = 0.25
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_job(tmp_path_factory.mktemp("job"), more=ONLINE)
    text = path.read_text().replace("rounds = 2", 'mode = "online"')
    path.write_text(text.replace('must = "improve"', "margin = 0.05"))  # two holdouts that must not get worse
    return path


def test_a_step_longer_than_the_bound_is_drawn_back_and_moving_statistics_are_no_step() -> None:
    """A step of (3, 4) has norm 5: bounded by 1 it becomes (0.6, 0.8); by 5 it stays to the bit."""
    before = [np.float32([1, 1]), np.float32([10])]
    after = [np.float32([4, 5]), np.float32([20])]
    drawn = bounded_step(before, after, [0], 1.0)
    np.testing.assert_allclose(drawn[0], [1.6, 1.8], rtol=1e-6)
    assert np.array_equal(drawn[1], [20])
    assert bounded_step(before, after, [0], 5.0) is after
    both = bounded_step(before, after, [0, 1], np.sqrt(125) / 2)
    np.testing.assert_allclose(both[1], [15], rtol=1e-6)


def test_the_rounds_follow_from_the_segments_unless_they_are_given(job: Path, tmp_path: Path) -> None:
    """Two segments of two rounds are four; the table is needed, and what the server sets is no key of a job file."""
    assert load_job(job).train.rounds == 4
    for old, new, said in (
        (ONLINE, "", "online: required"),
        ("gate_every", "begun = 2\ngate_every", "online.begun: set in the jobs of segments alone"),
    ):
        other = job.with_name("other.toml")
        other.write_text(job.read_text().replace(old, new))
        with pytest.raises(ConfigurationError, match=said):
            load_job(other)
    given = job.read_text().replace('mode = "online"', 'mode = "online"\nrounds = 3')
    for text in (given.replace("segments = 2\n", ""), given.replace("gate_every = 2\n", "")):
        other.write_text(text)
        assert load_job(other).train.rounds == 3


def test_rounds_and_segments_that_contradict_each_other_are_refused(job: Path, tmp_path: Path) -> None:
    """All three are given and do not agree; the kept job of a segment, which names all, is read as ever."""
    text = job.read_text()
    other = job.with_name("other.toml")
    other.write_text(text.replace('mode = "online"', 'mode = "online"\nrounds = 5'))
    said = r"online.segments: expected as many of 2 rounds as make train.rounds, 5, got 2"
    with pytest.raises(ConfigurationError, match=said) as caught:
        load_job(other)
    assert "\n" not in str(caught.value)
    other.write_text(text.replace('mode = "online"', 'mode = "online"\nrounds = 4'))
    agreeing = load_job(other)
    assert agreeing.train.rounds == 4
    part = agreeing.model_copy(update={"train": agreeing.train.model_copy(update={"rounds": 2})})
    assert RunFolder.create(tmp_path, "r1.1", part).load_job().train.rounds == 2


def _releases(out: Path) -> list[str]:
    state = Registry.open(out).state()
    return [] if state is None else [entry.run for entry in state.ledger.releases.values()]


def test_each_segment_is_a_run_from_the_model_then_in_use(job: Path, tmp_path: Path) -> None:
    """Two releases in a row, rounds numbered through, and no round moved the head by more than the bound."""
    events: list[dict[str, Any]] = []
    result = start(job, tmp_path, on_event=events.append)
    assert [segment["run_id"] for segment in result["segments"]] == ["r1.1", "r1.2"]
    assert [segment["outcome"] for segment in result["segments"]] == ["released", "released"]
    assert [record["round"] for record in result["rounds"]] == [1, 2, 3, 4]
    assert {"r1.1", "r1.2"} < set(_releases(tmp_path))
    registry = Registry.open(tmp_path)
    first, second = (registry.load(segment["release"])[0] for segment in result["segments"])
    base = registry.load(result["parent"])[0]
    assert (second.id, second.lineage["parent"], first.lineage["parent"]) == (result["release"], first.id, base.id)
    assert first.lineage["mode"] == {"name": "online"}
    moved = [first.weights[1] - base.weights[1], second.weights[1] - first.weights[1]]
    assert [np.linalg.norm(step) for step in moved] == pytest.approx([0.5, 0.5], rel=1e-5)  # two rounds of 0.25
    aim = TRUTH - base.weights[1]
    np.testing.assert_allclose(moved[0], 0.5 * aim / np.linalg.norm(aim), rtol=1e-4)
    assert result["gate"]["holdouts"][0]["uses"] == 2
    assert result["bytes"]["down"] == 12 * (4 * 8 + 128)
    assert [e["segment"] for e in events if e["event"] == "segment-finished"] == [1, 2]
    standing = Standing.of(events)
    assert (standing.rounds, standing.completed, standing.stage) == (4, 4, "ended")
    assert [e["event"] for e in events].count("released") == 1


def test_what_the_gate_rejects_is_given_up(job: Path, tmp_path: Path) -> None:
    """With updates that lead away both segments start from the model in use, and the run ends as rejected."""
    loaded = load_job(job)
    assert loaded.online is not None
    wide = loaded.model_copy(update={"online": loaded.online.model_copy(update={"step_norm": 50.0})})
    result = start(wide, tmp_path, -TRUTH)
    assert (result["outcome"], result["release"]) == ("rejected", None)
    assert [segment["outcome"] for segment in result["segments"]] == ["rejected", "rejected"]
    assert len(_releases(tmp_path)) == 1


def test_a_start_that_broke_off_is_gone_on_with_to_the_same_bits(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken in the second segment's rounds, the next start asks for no round of the first and releases the same."""
    whole = start(job, tmp_path / "whole")
    rounds: list[int] = []

    def once(job: Job, out: Path, breaks: int | None) -> dict[str, Any]:
        made = sites()
        for site in made:
            update = site.update

            def noted(number: int, params: Any, update: Any = update) -> Any:
                rounds.append(number)
                if number == breaks:
                    raise MachineError("the machine broke")
                return update(number, params)

            site.update = noted
        return execute(job, ScriptedGrid(made), RunFolder.create(out, "r1", job))

    with pytest.raises(MachineError, match="broke"):
        once(load_job(job), tmp_path / "broken", 4)
    assert set(rounds) == {1, 2, 3, 4}
    rounds.clear()
    result = once(load_job(job), tmp_path / "broken", None)
    assert set(rounds) == {4}
    assert [segment["outcome"] for segment in result["segments"]] == ["released", "released"]
    digests = [
        weights_digest(Registry.open(out).load(one["release"])[0].weights)
        for out, one in ((tmp_path / "whole", whole), (tmp_path / "broken", result))
    ]
    assert digests[0] == digests[1]
    events = list(RunFolder.open(tmp_path / "broken" / "runs" / "r1").read_events())
    assert [e["segment"] for e in events if e["event"] == "segment-finished"] == [1, 2]
    assert execute(load_job(job), ScriptedGrid([]), RunFolder.open(tmp_path / "broken" / "runs" / "r1")) == result


def test_a_monitors_target_ends_the_job(job: Path, tmp_path: Path) -> None:
    """With a target that any model reaches one round is made, in one segment."""
    path = job.with_name("watched.toml")
    path.write_text(job.read_text() + '[monitor]\npath = "new.npz"\nstop_at = 0.001\n')
    result = start(path, tmp_path)
    assert [record["round"] for record in result["rounds"]] == [1]
    assert [segment["rounds"] for segment in result["segments"]] == [1]
    assert [reading["round"] for reading in result["monitor"]] == [0, 1]
