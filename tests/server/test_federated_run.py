"""Whole runs of a federation: sealed rounds, the gate, a release, and its way to the sites."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from fedretrain.errors import ConfigurationError, MachineError, RunStopped
from fedretrain.job import load_job
from fedretrain.messages import RELEASE
from fedretrain.runfolder import RunFolder
from server import operations
from server.app import app
from server.installed import installed
from server.registry import Registry
from server.run import execute

from .grid import Answer
from .keras_job import TRUTH, make_job, towards
from .sealed import Hospitals, SealedSite
from .test_deliver import Clinic


class Trained(Clinic):
    """A site that trains with numbers and installs with its installer."""

    def reply(self, message_type: str, content: RecordDict) -> Answer:
        if message_type == RELEASE:
            return super().reply(message_type, content)
        return SealedSite.reply(self, message_type, content)


class World:
    """A federation with two sites and a job."""

    def __init__(self, folder: Path, job: Path) -> None:
        self.sites = [Trained(name, folder / "sites", update=towards(TRUTH)) for name in "ab"]
        self.grid = Hospitals(folder / "server", self.sites)
        self.federation = self.grid.federation
        self.job = load_job(job)
        self.registry = Registry.open(self.federation.folder)
        if not self.federation.anchor.exists():
            self.registry.prepare()
        for site in self.sites:
            site.join(self.federation.anchor.read_bytes())

    @property
    def run(self) -> RunFolder:
        return RunFolder.create(self.federation.folder, "r1", self.job)

    def start(self, **watch: Any) -> dict[str, Any]:
        return execute(self.job, self.grid, self.run, federation=self.federation, **watch)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, unflushed: None) -> None:
    monkeypatch.setattr("server.exchange.POLL_S", 0.005)


def test_a_release_is_trained_under_seal_and_brought_to_the_sites(job: Path, tmp_path: Path) -> None:
    """Every site has it before the run is finished; the events name both."""
    events: list[dict[str, Any]] = []
    world = World(tmp_path, job)
    result = world.start(on_event=events.append)
    assert result["outcome"] == "released"
    assert {name: entry.used for name, entry in installed(world.federation).items()} == dict.fromkeys(
        "ab", result["release"]
    )
    assert [(e["event"], e.get("site")) for e in events[-3:]] in (
        [("released", None), ("delivered", "a"), ("delivered", "b")],
        [("released", None), ("delivered", "b"), ("delivered", "a")],
    )
    assert events[0]["sites"] == ["a", "b"]


def test_a_delivery_that_fails_changes_nothing_about_the_run(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The release stands; what went wrong is told, and `server up` brings it later."""

    def full(*_: object) -> None:
        raise MachineError("installed.json: cannot write: no space left")

    monkeypatch.setattr("server.deliver.remember", full)
    events: list[dict[str, Any]] = []
    world = World(tmp_path, job)
    assert world.start(on_event=events.append)["outcome"] == "released"
    assert "could not be brought to all sites: installed.json" in events[-1]["text"]


def test_an_online_job_is_stopped_between_segments_and_goes_on(job: Path, tmp_path: Path) -> None:
    """Every segment is sealed under its own run and brought to the sites; commands know of one run alone."""
    path = job.with_name("online.toml")
    text = job.read_text().replace("rounds = 2", 'mode = "online"').replace('must = "improve"', "margin = 0.05")
    path.write_text(text + "[online]\ngate_every = 1\nsegments = 2\nstep_norm = 0.2\n")
    world = World(tmp_path, path)
    run = world.run

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "segment-finished":
            operations.stop(run)

    with pytest.raises(RunStopped, match="between two segments; to go on: fedretrain server resume r1"):
        world.start(on_event=stop)
    first = installed(world.federation)["a"].used
    assert [row["run_id"] for row in operations.runs(world.federation)] == ["r1"]
    operations.resume(run)
    result = world.start()
    assert [segment["outcome"] for segment in result["segments"]] == ["released", "released"]
    assert result["segments"][0]["release"] == first
    assert {entry.used for entry in installed(world.federation).values()} == {result["release"]}
    assert operations.run(world.federation, run)["completed"] == 2


def test_an_ensemble_is_weighed_under_seal_and_installed_at_the_sites(job: Path, tmp_path: Path) -> None:
    """Its members are nested models of Keras' own layers, which sites take; equal losses weigh them equally."""
    path = job.with_name("ensemble.toml")
    text = job.read_text().replace('must = "improve"', "margin = 0.05")
    path.write_text(text.replace("[train]", '[train]\nmode = "ensemble"'))
    world = World(tmp_path, path)
    result = world.start()
    assert {entry.used for entry in installed(world.federation).values()} == {result["release"]}
    members = world.registry.load(result["release"])[0].lineage["mode"]["members"]
    assert [(member["weight"], member["trained"]) for member in members] == [(0.5, False), (0.5, True)]


def test_a_run_that_is_stopped_while_it_is_judged_releases_nothing(job: Path, tmp_path: Path) -> None:
    """Whether or not anybody ended its process in time; asked to go on, it releases what was judged."""
    world = World(tmp_path, job)
    run = world.run

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "gate":
            operations.stop(run)

    with pytest.raises(RunStopped, match="server resume r1"):
        world.start(on_event=stop)
    state = world.registry.state()
    assert state is not None
    assert "r1" not in {entry.run for entry in state.ledger.releases.values()}
    assert operations.run_state(run, running=False) == "stopped"
    operations.resume(run)
    result = world.start()
    assert (result["outcome"], result["gate"]["holdouts"][0]["uses"]) == ("released", 1)


def test_what_is_rejected_is_not_brought_anywhere(job: Path, tmp_path: Path) -> None:
    """The sites are asked nothing about releases."""
    world = World(tmp_path, job)
    for site in world.sites:
        site.update = towards(-TRUTH)
    assert world.start()["outcome"] == "rejected"
    assert [site.received for site in world.sites] == [[], []]


def test_more_sites_than_the_federation_has(job: Path, tmp_path: Path) -> None:
    """Known before anything is loaded."""
    world = World(tmp_path, job)
    world.grid.revoke("b")
    with pytest.raises(ConfigurationError, match="at most 1, the number of the federation's active members"):
        world.start()


def test_the_flower_app_runs_a_federation(job: Path, tmp_path: Path) -> None:
    """Run and federation from the run configuration, as `server up` gives them."""
    world = World(tmp_path, job)
    config = {"task": "run", "run": str(world.run.root), "federation": str(world.federation.folder)}
    app(world.grid, Context(1, 0, {}, RecordDict(), config))
    assert world.run.result.exists()
    assert len(installed(world.federation)) == 2


def _start_to_die(folder: Path, job: Path) -> None:
    os.environ["FAULT_AT"] = "delivered"
    World(folder, job).start()


@pytest.mark.slow
def test_fault_36_killed_after_the_delivery_a_second_start_finishes(job: Path, tmp_path: Path) -> None:
    """One release, and the sites are not sent it again: the metadata show that they have it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.server.test_federated_run", "keras", "tensorflow"])
    process = context.Process(target=_start_to_die, args=(tmp_path, job))
    process.start()
    process.join(120)
    assert process.exitcode == -9
    world = World(tmp_path, job)
    assert not world.run.result.exists()
    result = world.start()
    state = world.registry.state()
    assert state is not None
    assert [entry.run for entry in state.ledger.releases.values()].count("r1") == 1
    assert result["release"] == state.ledger.incumbent
    assert [site.received for site in world.sites] == [[0], [0]]
