"""From the command's options to a task, and what is kept for a later start; without training anything."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fedretrain import cli
from fedretrain.errors import ConfigurationError, RunFailed
from fedretrain.progress import Progress
from fedretrain.runfolder import RunFolder
from fedretrain.simsites import simulated_sites
from simulations import demo, simulate, task
from simulations.demo import Recipe
from simulations.task import Options, Task, plan

ROOT = Path(__file__).parent.parent.parent
JOB = """
[model]
path = "base.keras"
[[holdout]]
name = "old"
path = "old.npz"
[simulation]
sites = "sites/*.npz"
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job with three sites, in a folder whose name is no pattern; the working folder is another."""
    folder = tmp_path / "job [1]"
    (folder / "sites").mkdir(parents=True)
    for name in ("base.keras", "old.npz", "sites/c.npz", "sites/a.npz", "sites/b.npz"):
        (folder / name).touch()
    path = folder / "job.toml"
    path.write_text(JOB.replace("sites/*.npz", f"{tmp_path}/job ?1?/sites/*.npz"))
    monkeypatch.chdir(tmp_path)
    return path


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stops a simulation where the sites would start to work; the jobs that got there."""
    reached: list[Any] = []

    def run(_: Task, job: Any, *__: object) -> Any:
        reached.append(job)
        raise RunFailed("the end of the rehearsal")

    class NoPool:
        def __enter__(self) -> "NoPool":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(simulate, "_workers", lambda _: NoPool())
    monkeypatch.setattr(simulate, "_run_local", run)
    return reached


def begin(made: Task) -> None:
    with pytest.raises(RunFailed), Progress(Console(file=io.StringIO())) as progress:
        simulate.simulate(made, progress)


def refusal(**options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        plan(Options(**options))
    return str(caught.value)


def test_a_run_has_a_folder_of_its_own(job: Path) -> None:
    """Without --out the output folder is retrained/<run id>, and no two runs have one id."""
    first, second = plan(Options(job=job)), plan(Options())
    assert first.out == Path("retrained").resolve() / first.run_id
    assert first.run_id != second.run_id
    assert first.root == first.out / "runs" / first.run_id


def test_rounds_and_seed_override_the_job(job: Path) -> None:
    """The job's own numbers give way."""
    made = plan(Options(job=job, rounds=7, seed=5)).job
    assert made is not None
    assert (made.train.rounds, made.train.seed) == (7, 5)


def test_other_rounds_than_those_of_the_stages_are_refused(job: Path) -> None:
    """With more of them no stage would follow, with fewer some would never come."""
    job.write_text(f"train.stages = [{{ rounds = 2 }}, {{ rounds = 3 }}]\n{job.read_text()}")
    for rounds in (4, 6):
        assert refusal(job=job, rounds=rounds) == "--rounds: the job's stages have 5 rounds; change them instead"
    for agreeing in (None, 5):
        made = plan(Options(job=job, rounds=agreeing)).job
        assert made is not None
        assert made.train.rounds == 5


def test_the_seed_of_the_demo_is_its_recipes() -> None:
    """--seed and --sites decide how the demo is made."""
    assert plan(Options(seed=4, sites=3)).recipe == Recipe(4, 3, None)
    assert plan(Options()).recipe == Recipe(0, 5, None)


def test_poison_is_at_the_last_site() -> None:
    """Replies are spoilt by the engine, labels in the demo's data; always at the last site by name."""
    assert plan(Options(poison="nan")).poison == {"hospital-e": "nan"}
    labels = plan(Options(poison="labels", sites=3))
    assert labels.poison == {}
    assert labels.recipe == Recipe(0, 3, "hospital-c")


def test_options_that_exclude_each_other_are_refused(job: Path) -> None:
    """Poison is for the demo, replies are spoilt by the local engine, and a resumed run is as it was begun."""
    assert "expected no JOB" in refusal(job=job, poison="nan")
    assert "--engine flower" in refusal(engine="flower", poison="scale")
    assert plan(Options(engine="flower", poison="labels")).engine == "flower"
    assert "expected no --rounds" in refusal(resume="x", rounds=3)


def test_more_sites_than_there_are_is_refused(job: Path) -> None:
    """The job says how many there are."""
    assert refusal(job=job, sites=4) == "--sites: expected at most 3, as many as the job has, got 4"
    assert "expected 2 to 40" in refusal(sites=1)


def test_more_sites_asked_for_than_take_part_is_refused_before_anything_starts(job: Path) -> None:
    """min_sites above the number of sites, of the job or of --sites."""
    assert "participation.min_sites: expected at most 1" in refusal(job=job, sites=1)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            'strategy = { name = "fedavg", objectives = [{ name = "l2sp", strength = 1.0 }] }\ntrain.mode = "full"',
            "'l2sp' has no meaning with train.mode = 'full'",
        ),
        ('strategy = { name = "fedprox", objectives = [{ name = "proximal", mu = 1.0 }] }', "cannot stand together"),
        ('strategy.name = "scaffold"\ntrain.stages = [{ rounds = 2 }]', "train.stages: 'scaffold' cannot be trained"),
        ('strategy.name = "fedagv"', "unknown strategy 'fedagv'; did you mean 'fedavg'?"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_starts(
    job: Path, capfd: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    """Strategy, objectives, mode and stages, at once and in one line; no output folder is left."""
    job.write_text(f"{line}\n{job.read_text()}")
    assert cli.run(["simulate", str(job)]) == ConfigurationError.exit_code
    assert said in capfd.readouterr().err
    assert not Path("retrained").exists()


def test_the_check_of_a_job_loads_no_tensorflow(job: Path) -> None:
    """What is wrong is said within a second."""
    job.write_text(
        f"strategy = {{ name = 'fedavg', objectives = [{{ name = 'l2sp', strength = 1.0 }}] }}\n{job.read_text()}"
    )
    code = (
        "import sys; from pathlib import Path; from simulations.task import Options, plan\n"
        "plan(Options(Path(sys.argv[1]))); sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(job)]
    assert subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0


@pytest.mark.parametrize(("wrong", "hint"), [(RunFailed("too few"), True), (ConfigurationError("wrong"), False)])
def test_only_what_can_be_resumed_says_how(
    wrong: Exception, hint: bool, job: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run that failed for its sites can go on; one whose job is wrong fails the same way again."""

    def run(made: Task, _: Progress) -> Any:
        RunFolder.create(made.out, made.run_id, made.job)
        made.write_settings()
        raise wrong

    monkeypatch.setattr(simulate, "simulate", run)
    assert cli.run(["simulate", str(job)]) == wrong.exit_code
    assert ("--resume" in capfd.readouterr().err) is hint


@pytest.mark.usefixtures("ended")
@pytest.mark.parametrize("rounds", [0, 1])
def test_what_sites_refuse_at_the_start_is_nothing_to_go_on_with(
    job: Path, rounds: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a round that counts there is."""

    def failing(task: Task, job: Any, folder: RunFolder, *_: Any) -> None:
        for event in ["site-declined", *["round-finished"] * rounds]:
            folder.append_event({"event": event, "site": "a", "code": "data-empty"})
        raise RunFailed("too few")

    monkeypatch.setattr(simulate, "_run_local", failing)
    monkeypatch.setattr("simulations.cli._show", lambda *_: None)
    assert cli.run(["simulate", str(job)]) == 4
    assert ("--resume" in capfd.readouterr().err) == bool(rounds)


def test_a_job_without_sites_is_refused_before_anything_starts(job: Path) -> None:
    """What can be seen without TensorFlow is seen at once."""
    job.write_text(JOB.replace("sites/*.npz", "nowhere/*.npz"))
    assert "none matches" in refusal(job=job)


def test_the_first_sites_by_name_take_part(job: Path, ended: list[Any]) -> None:
    """--sites 2 leaves the run with a job that asks for the first two, where they are."""
    made = plan(Options(job=job, sites=2))
    begin(made)
    [reached] = ended
    assert list(simulated_sites(reached)) == ["a", "b"]
    assert simulated_sites(reached)["a"].file == job.parent / "sites" / "a.npz"
    begin(plan(Options(resume=made.run_id)))
    assert ended[1] == reached


def test_a_run_is_found_again(job: Path, tmp_path: Path, ended: list[Any]) -> None:
    """With --out in that folder, without it below retrained/; the job may be named again."""
    for out in (None, tmp_path / "out"):
        made = plan(Options(job=job, out=out, rounds=7))
        begin(made)
        for again in (plan(Options(resume=made.run_id, out=out)), plan(Options(job=job, resume=made.run_id, out=out))):
            assert (again.root, again.sites) == (made.root, 3)
            assert again.job == made.job
        named = f" --out {out.name}" if out else ""
        assert made.resume_command == f"fedretrain simulate --resume {made.run_id}{named}"


def test_another_job_than_the_runs_is_refused(job: Path, ended: list[Any]) -> None:
    """A job beside --resume has to be the run's."""
    made = plan(Options(job=job))
    begin(made)
    job.write_text(job.read_text() + '[strategy]\nname = "median"\n')
    assert "the run is not of the job in" in refusal(job=job, resume=made.run_id)


def test_a_run_that_is_not_there_is_answered_with_those_that_are(job: Path, ended: list[Any]) -> None:
    """A wrong id is a configuration error that names what can be resumed."""
    assert "no run was begun there" in refusal(resume="x")
    made = plan(Options(job=job))
    begin(made)
    assert f"runs there: {made.run_id}" in refusal(resume="x")


def test_a_demos_run_goes_on_with_its_poison_and_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What only the options said is kept beside the job; the demo is made again where another took its place."""

    class Untrained:
        def save(self, path: Path) -> None:
            path.write_bytes(b"model")

    def stopped(*_: object) -> None:
        raise RunFailed("stopped")

    monkeypatch.setattr(demo, "train_base", lambda *_: Untrained())
    monkeypatch.setattr(simulate, "_workers", lambda _: io.StringIO())
    monkeypatch.setattr(simulate, "_run_local", stopped)
    made = plan(Options(out=tmp_path, sites=3, poison="scale", rounds=4))
    begin(made)
    begin(plan(Options(out=tmp_path, sites=2)))
    again = plan(Options(out=tmp_path, resume=made.run_id, workers=1))
    assert (again.poison, again.recipe, again.engine, again.sites) == (made.poison, made.recipe, "local", 3)
    assert again.job is not None
    assert again.job.train.rounds == 4
    begin(again)
    assert len(list((tmp_path / "demo" / "sites").iterdir())) == 3


def test_a_finished_run_is_only_shown(job: Path, ended: list[Any]) -> None:
    """--resume of a finished run returns its result and starts nothing."""
    made = plan(Options(job=job))
    begin(made)
    RunFolder(made.root).result.write_text('{"outcome": "released"}')
    with Progress(Console(file=io.StringIO())) as progress:
        assert simulate.simulate(plan(Options(resume=made.run_id)), progress) == {"outcome": "released"}
    assert len(ended) == 1


def test_a_failure_ends_in_json_too(job: Path, ended: list[Any], capfd: pytest.CaptureFixture[str]) -> None:
    """With --json the last line says what happened, also where a run had no verdict or no run began."""
    assert cli.run(["simulate", str(job), "--json"]) == 4
    said = capfd.readouterr()
    value = json.loads(said.out.splitlines()[-1])
    assert value["outcome"] == "failed"
    assert value["error"] == {"kind": "RunFailed", "message": "the end of the rehearsal", "exit_code": 4}
    assert {"run_id", "release", "rounds", "gate", "bytes", "seconds"} <= set(value)
    assert f"--resume {value['run_id']}" in said.err
    assert cli.run(["simulate", "nowhere.toml", "--json"]) == 2
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["error"]["exit_code"] == 2


def test_native_noise_goes_to_the_log(
    job: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], ended: list[Any]
) -> None:
    """What libraries write to standard error lands in the run's log; the error itself is still said."""
    import os

    def noisy(*_: object) -> None:
        os.write(2, b"cuda this, cuda that\n")
        raise RunFailed("too few sites")

    monkeypatch.setattr(simulate, "_run_local", noisy)
    assert cli.run(["simulate", str(job), "--out", "out"]) == 4
    said = capfd.readouterr().err
    assert "cuda" not in said
    assert "error: too few sites" in said
    [log] = Path("out").glob("runs/*/logs/server.log")
    assert log.read_text() == "cuda this, cuda that\n"


def test_settings_that_were_damaged_are_named(job: Path, ended: list[Any]) -> None:
    """A torn simulation.json is one line."""
    made = plan(Options(job=job))
    begin(made)
    (made.root / "simulation.json").write_text("{")
    assert "simulation.json: damaged" in refusal(resume=made.run_id)


def test_an_option_for_a_run_does_not_go_with_making_the_demo_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever asks for rounds and for files alone has misunderstood one of them."""
    folder = tmp_path / "demo"
    assert cli.run(["simulate", "--demo", str(folder), "--rounds", "3"]) == 2
    assert "only --sites and --seed" in capsys.readouterr().err
    assert not folder.exists()


def test_every_seed_the_job_takes_makes_a_demo() -> None:
    """The largest seed of the schema is one NumPy and Keras take."""
    assert np.random.default_rng([2**32 - 1]).random() < 1
    assert task.plan(Options(seed=2**32 - 1)).recipe is not None
