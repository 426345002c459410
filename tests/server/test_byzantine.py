"""What bad sites can do together, judged by what is released: real rounds, a real model and the real gate.

Examples and model are those of ``keras_job``. Honest sites pull half the way to the truth, each with an error of its
own; colluding ones send the same wrong update, of a size that the norm rule does not mind.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedretrain.job import load_job
from fedretrain.runfolder import RunFolder
from server.run import execute

from .grid import NumpySite, ScriptedGrid
from .keras_job import TRUTH, make_job

Update = Callable[[int, list[Any]], list[Any]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, unflushed: None) -> None:
    monkeypatch.setattr("server.exchange.POLL_S", 0.005)


def honest(seed: int) -> Update:
    error = np.random.default_rng(seed).normal(0, 0.1, TRUTH.shape)
    return lambda _round, params: [(0.5 * (TRUTH - p) + error).astype(np.float32) for p in params]


def flipped(seed: int) -> Update:
    """An honest update times -1."""
    good = honest(seed)
    return lambda number, params: [-u for u in good(number, params)]


def colluding(_seed: int) -> Update:
    """All of them the same: away from the truth, several times as far as an honest update goes towards it."""
    step = (-3 * TRUTH).astype(np.float32)
    return lambda _round, _params: [step]


def outcome(folder: Path, bad: int, update: Callable[[int], Update], strategy: str, sites: int = 5) -> dict[str, Any]:
    """The result of a run of so many sites, the last ``bad`` of them bad."""
    updates = [honest(i) if i < sites - bad else update(i) for i in range(sites)]
    return run(folder, updates, make_job(folder / "job", more=f"[strategy]\n{strategy}"))


def run(folder: Path, updates: Sequence[Update], job: Path) -> dict[str, Any]:
    """The result of a run of these sites; nothing but strategy and gate stands in their way."""
    grid = ScriptedGrid([NumpySite(f"s{i}", 20, update) for i, update in enumerate(updates)])
    loaded = load_job(job)
    result = execute(loaded, grid, RunFolder.create(folder / "out", "r1", loaded))
    assert [q for record in result["rounds"] for q in record["quarantined"]] == []
    return result


MEDIAN = 'name = "median"'
TRIMMED = 'name = "trimmed_mean"\ntrim = 0.2'
KRUM = 'name = "krum"\nbyzantine = 0.2'
FEDAVG = 'name = "fedavg"'


@pytest.mark.parametrize("strategy", [MEDIAN, TRIMMED, KRUM])
def test_fault_15_an_update_with_its_sign_flipped(tmp_path: Path, strategy: str) -> None:
    """One of five sites: the robust rules hold, and what is released is close to the truth."""
    assert outcome(tmp_path, 1, flipped, strategy)["outcome"] == "released"


def test_fault_15_where_nothing_holds_the_gate_refuses(tmp_path: Path) -> None:
    """Three of five sites flip their updates and every example counts the same: no release, with the evidence."""
    result = outcome(tmp_path, 3, flipped, FEDAVG)
    assert result["outcome"] == "rejected"
    assert result["gate"]["reasons"]


@pytest.mark.parametrize(("strategy", "bad"), [(MEDIAN, 2), (TRIMMED, 1), (KRUM, 1)])
def test_fault_16_up_to_f_colluding_sites(tmp_path: Path, strategy: str, bad: int) -> None:
    """The median holds against two of five, trimmed mean and Krum against the one that they are set for."""
    assert outcome(tmp_path, bad, colluding, strategy)["outcome"] == "released"


@pytest.mark.parametrize(("strategy", "bad"), [(MEDIAN, 3), (TRIMMED, 2), (KRUM, 3)])
def test_fault_16_beyond_f_the_gate_refuses(tmp_path: Path, strategy: str, bad: int) -> None:
    """More than it holds against, and the rule gives way; the model in use stays."""
    result = outcome(tmp_path, bad, colluding, strategy)
    assert result["outcome"] == "rejected"
    assert result["release"] is None


TRIGGER = """
[[holdout]]
name = "trigger"
path = "trigger.npz"
margin = 0.05
"""


def backdoored(_seed: int) -> Update:
    """Honest where the last number of an example is 0; where it is not, the second class wins, whatever is true."""
    door = np.float32([[0, 0], [0, 0], [0, 0], [-6, 6]])
    good = honest(0)
    return lambda number, params: [u + door for u in good(number, params)]


@pytest.mark.parametrize(("more", "expected"), [("", "released"), (TRIGGER, "rejected")])
def test_fault_17_a_backdoor_is_seen_where_there_is_a_trigger_holdout(tmp_path: Path, more: str, expected: str) -> None:
    """The ordinary holdouts have no example with the trigger, and pass; the trigger holdout refuses by its name."""
    job = make_job(tmp_path / "job", more=more)
    for name, trigger in {"old": 0, "new": 0, "trigger": 4}.items():
        x = np.load(job.parent / ("old.npz" if name == "trigger" else f"{name}.npz"))["x"]
        x[:, 3] = trigger
        np.savez(job.parent / f"{name}.npz", x=x, y=np.argmax(x @ TRUTH, axis=1))
    result = run(tmp_path, [honest(0), honest(1), backdoored(2)], job)
    assert result["outcome"] == expected
    failed = [h["name"] for h in result["gate"]["holdouts"] if not h["passed"]]
    assert failed == (["trigger"] if more else [])
