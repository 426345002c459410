"""The real sites in both engines: same job, data and seed, same bits; and poison costs its own site alone."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from fedretrain.job import Job, MessagesSection, NamedConfig, UncertaintySection, load_job
from fedretrain.runfolder import RunFolder
from fedretrain.simsites import simulated_sites
from server.run import execute
from simulations.engine import LocalGrid
from simulations.flower import run_flower
from simulations.pool import WorkerPool
from simulations.supervisor import below
from simulations.worker import Sites
from tests.server.keras_job import TRUTH, make_job

from .test_engine import gone

pytestmark = pytest.mark.slow
SIZES = {"a": 90, "b": 40, "c": 65, "d": 50}
MORE = """
[simulation]
sites = "sites/*.npz"
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A model with all that could be random or order-dependent: dropout, moving statistics, Adam, uneven sites."""
    import keras

    folder = tmp_path_factory.mktemp("job")
    path = make_job(folder, rounds=2, more=MORE)
    path.write_text(path.read_text().replace("[train]", '[train]\noptimizer = { name = "adam" }\nlocal_epochs = 2'))
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((4,), name="x"),
            layers.Dense(4, name="frozen"),
            layers.Dense(16, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(2, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.save(folder / "base.keras")
    (folder / "sites").mkdir()
    for seed, (name, size) in enumerate(SIZES.items()):
        x = np.random.default_rng(seed).normal(size=(size, 4)).astype(np.float32)
        np.savez(folder / "sites" / f"{name}.npz", x=x, y=np.argmax(x @ TRUTH, axis=1))
    return load_job(path)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerPool]:
    with WorkerPool(1, logs=tmp_path_factory.mktemp("logs")) as pool:
        yield pool


class LastFirst(LocalGrid):
    """With one worker, the replies arrive in the opposite order; each update travels by itself."""

    combines = False

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return super().push_messages(reversed(list(messages)))[::-1]


def run_local(
    job: Job, out: Path, pool: WorkerPool, grid: type[LocalGrid] = LocalGrid, **poison: str
) -> tuple[str, dict[str, Any]]:
    """The candidate's digest and the result."""
    folder = RunFolder.create(out, "r1", job)
    with grid(Sites(simulated_sites(job), folder.store, poison=poison), pool=pool) as sites:
        result = execute(job, sites, folder)
    return candidate(folder), result


def candidate(folder: RunFolder) -> str:
    digest: str = json.loads(folder.gate.read_bytes())["candidate"]
    return digest


@pytest.fixture(scope="module")
def one_worker(job: Job, pool: WorkerPool, tmp_path_factory: pytest.TempPathFactory) -> str:
    return run_local(job, tmp_path_factory.mktemp("one"), pool)[0]


def test_neither_messages_nor_their_order_change_a_bit(
    job: Job, pool: WorkerPool, one_worker: str, tmp_path: Path
) -> None:
    """Replies in the opposite order give the candidate that comes of updates folded in the worker."""
    assert run_local(job, tmp_path, pool, LastFirst)[0] == one_worker


def test_the_number_of_workers_does_not_change_a_bit(job: Job, one_worker: str, tmp_path: Path) -> None:
    """Three workers, which share the sites as it happens, give the candidate of one."""
    with WorkerPool(3, logs=tmp_path / "logs") as pool:
        assert run_local(job, tmp_path, pool)[0] == one_worker


@pytest.mark.parametrize("name", ["int8", "topk"])
def test_a_codec_costs_fewer_bytes_and_no_repeatability(
    job: Job, pool: WorkerPool, one_worker: str, tmp_path: Path, name: str
) -> None:
    """Coded updates reach the aggregate in fewer bytes, as another candidate, which is the same in any order."""
    coded = job.model_copy(update={"messages": MessagesSection(codec=NamedConfig(name=name))})
    first, result = run_local(coded, tmp_path / "first", pool)
    assert first == run_local(coded, tmp_path / "second", pool, LastFirst)[0] != one_worker
    for counted in result["rounds"]:
        assert len(counted["admitted"]) == len(SIZES)
        assert counted["bytes_up"] < counted["bytes_down"]
    assert any(tmp_path.glob("first/**/residuals")) == (name == "topk")


@pytest.mark.parametrize("name", ["scaffold", "fedbn", "ditto"])
def test_what_sites_keep_costs_no_repeatability(job: Job, pool: WorkerPool, tmp_path: Path, name: str) -> None:
    """Folded in the worker or sent in the opposite order, or gone on with after it was interrupted in a round.

    What the interrupted round left at the sites is not what the repeated one starts from.
    """
    train = job.train.model_copy(update={"rounds": 2, "optimizer": NamedConfig(name="sgd", learning_rate=0.1)})
    stateful = job.model_copy(update={"strategy": NamedConfig(name=name), "train": train})
    expected, result = run_local(stateful, tmp_path / "whole", pool)
    assert run_local(stateful, tmp_path / "messages", pool, LastFirst)[0] == expected
    assert any((tmp_path / "whole").rglob("memory"))
    assert ("val-personal-loss" in result["rounds"][-1]["metrics"]) == (name == "ditto")

    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "reply" and event["round"] == 2:
            raise KeyboardInterrupt

    folder = RunFolder.create(tmp_path / "interrupted", "r1", stateful)
    sites = Sites(simulated_sites(stateful), folder.store)
    with LocalGrid(sites, pool=pool) as grid, pytest.raises(KeyboardInterrupt):
        execute(stateful, grid, folder, interrupt)
    with LocalGrid(sites, pool=pool) as grid:
        execute(stateful, grid, folder)
    assert candidate(folder) == expected


def test_sums_cost_no_repeatability(job: Job, pool: WorkerPool, tmp_path: Path) -> None:
    """What objectives need, and how certain the candidate is, come out alike in any order and after an interruption."""
    objectives = [{"name": "ewc", "strength": 0.5}, {"name": "l2sp", "strength": 0.01}]
    strategy = NamedConfig.model_validate({"name": "fedavg", "objectives": objectives})
    asking = job.model_copy(update={"strategy": strategy, "uncertainty": UncertaintySection()})
    expected, whole = run_local(asking, tmp_path / "whole", pool)
    told = whole["gate"]["uncertainty"]
    assert told["sites"] == list(SIZES)
    other, result = run_local(asking, tmp_path / "messages", pool, LastFirst)
    assert (other, result["gate"]["uncertainty"]) == (expected, told)

    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "reply" and event["round"] == 2:
            raise KeyboardInterrupt

    folder = RunFolder.create(tmp_path / "interrupted", "r1", asking)
    sites = Sites(simulated_sites(asking), folder.store)
    with LocalGrid(sites, pool=pool) as grid, pytest.raises(KeyboardInterrupt):
        execute(asking, grid, folder, interrupt)
    with LocalGrid(sites, pool=pool) as grid:
        assert execute(asking, grid, folder)["gate"]["uncertainty"] == told
    assert candidate(folder) == expected


def test_flowers_runtime_gives_the_same_bits(job: Job, one_worker: str, tmp_path: Path) -> None:
    """The whole job through ``flwr run``: same candidate, every event told, and no process left, Ray's included."""
    folder = RunFolder.create(tmp_path / "it's here", "r1", job)
    events: list[dict[str, Any]] = []
    before, pids = set(below(os.getpid())), set()

    def on_event(event: dict[str, Any]) -> None:
        events.append(event)
        pids.update(below(os.getpid()))

    result = run_flower(folder, len(SIZES), 2, on_event, timeout=500)
    assert candidate(folder) == one_worker
    assert result["run_id"] == "r1"
    assert events == list(folder.read_events())
    assert [e["event"] for e in events].count("round-finished") == 2
    assert len(pids - before) > 6  # SuperLink, SuperExec, the simulation, Ray's servers and two actors
    assert all(gone(p) for p in pids - before)


@pytest.mark.parametrize(("kind", "code"), [("nan", "not-finite"), ("scale", "norm")])
def test_a_poisoned_reply_is_quarantined(job: Job, pool: WorkerPool, tmp_path: Path, kind: str, code: str) -> None:
    """Faults 2 and 14: only that site's replies are dropped, each round, with the rule's own code."""
    _, result = run_local(job, tmp_path, pool, c=kind)
    events = list(RunFolder.open(tmp_path / "runs" / "r1").read_events())
    dropped = [(e["round"], e["site"], e["code"]) for e in events if e["event"] == "quarantined"]
    assert dropped == [(1, "c", code), (2, "c", code)]
    assert len(result["rounds"]) == 2
