"""The run folder: found again, told apart, and readable after a crash."""

from pathlib import Path

import pytest

from fedretrain.errors import ConfigurationError, MachineError
from fedretrain.job import HoldoutSection, Job, ModelSection, NamedConfig
from fedretrain.runfolder import RunFolder


def job(tmp_path: Path, strategy: str = "fedavg") -> Job:
    return Job(
        model=ModelSection(path=tmp_path / "base.keras", freeze=("conv*",)),
        strategy=NamedConfig(name=strategy, mu=0.5),  # type: ignore[call-arg]  # settings are extra keys
        holdout=(HoldoutSection(name="old", path=tmp_path / "old.npz"),),
    )


def test_the_job_comes_back_as_it_was(tmp_path: Path) -> None:
    """Paths, patterns and a strategy's own settings survive; the out folder is found from the root."""
    created = RunFolder.create(tmp_path, "r1", job(tmp_path))
    opened = RunFolder.open(created.root)
    assert opened.load_job() == job(tmp_path)
    assert opened.load_job().strategy.settings == {"mu": 0.5}
    assert (opened.run_id, opened.out) == ("r1", tmp_path)


def test_creating_again_takes_the_same_job_only(tmp_path: Path) -> None:
    """A run id is one job's for ever."""
    RunFolder.create(tmp_path, "r1", job(tmp_path))
    RunFolder.create(tmp_path, "r1", job(tmp_path))
    with pytest.raises(ConfigurationError, match="belongs to another job; choose another run id"):
        RunFolder.create(tmp_path, "r1", job(tmp_path, "fedprox"))


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 65])
def test_a_run_id_is_a_plain_file_name(tmp_path: Path, name: str) -> None:
    """No run id leads out of the runs folder."""
    with pytest.raises(ConfigurationError, match="run id: expected"):
        RunFolder.create(tmp_path, name, job(tmp_path))


def test_a_run_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    """A mistyped run is answered with what exists."""
    RunFolder.create(tmp_path, "r1", job(tmp_path))
    with pytest.raises(ConfigurationError, match="runs there: r1"):
        RunFolder.open(tmp_path / "runs" / "r2")


def test_events_survive_a_torn_line(tmp_path: Path) -> None:
    """Half a line of a killed process is left out; what is written after it is whole."""
    folder = RunFolder.create(tmp_path, "r1", job(tmp_path))
    assert list(folder.read_events()) == []
    folder.append_event({"event": "a"})
    with folder.events.open("ab") as file:
        file.write(b'{"event": "to')
    folder.append_event({"event": "b"})
    assert [e["event"] for e in folder.read_events()] == ["a", "b"]


def test_one_process_at_a_time_works_on_a_run(tmp_path: Path) -> None:
    """A second start while the first is alive is refused, and possible when the first has ended."""
    folder = RunFolder.create(tmp_path, "r1", job(tmp_path))
    with folder.lock(), pytest.raises(MachineError, match="another process is working on this run"), folder.lock():
        pass
    with folder.lock():
        pass
