"""What a site keeps between rounds: which round reads what, and what becomes of damage and of old runs."""

import os
import stat
import time
from pathlib import Path

import numpy as np
import pytest

from client.approvals import _words
from client.keeping import kept_here
from client.memory import ROUNDS, Memory
from fedretrain.contract import Contract, VariableSpec
from fedretrain.job import NamedConfig, TrainSection
from fedretrain.messages import PrepareRequest

SPECS = (
    VariableSpec(shape=(2, 3), dtype="float32", rule="train"),
    VariableSpec(shape=(), dtype="float64", rule="average"),
)


def arrays(value: float) -> list[np.ndarray]:
    return [np.full((2, 3), value, np.float32), np.asarray(float(value))]


def found(memory: Memory, before: int, name: str = "control") -> float | None:
    read = memory.read(name, before, SPECS)
    return None if read is None else float(read[1])


def test_a_round_reads_the_newest_round_before_it(tmp_path: Path) -> None:
    """Not its own, and not a later one, whatever was kept since; runs, sites and names have nothing in common."""
    memory = Memory(tmp_path, "run", "north")
    assert found(memory, 1) is None
    memory.write("control", 1, arrays(1.0))
    memory.write("control", 3, arrays(3.0))
    assert [found(memory, before) for before in (1, 2, 3, 4, 9)] == [None, 1.0, 1.0, 3.0, 3.0]
    assert found(memory, 9, "layers") is None
    assert found(Memory(tmp_path, "run", "south"), 9) is None
    assert found(Memory(tmp_path, "other", "north"), 9) is None


def test_a_round_that_is_asked_for_again_replaces_its_own_and_forgets_later_ones(tmp_path: Path) -> None:
    """So that a run that goes on from an older checkpoint reads nothing of a future that did not happen."""
    memory = Memory(tmp_path, "run", "north")
    for round_ in (1, 2, 3):
        memory.write("control", round_, arrays(round_))
    memory.write("control", 2, arrays(20.0))
    assert [found(memory, before) for before in (2, 3, 4)] == [1.0, 20.0, 20.0]


def test_it_is_this_users_alone_bounded_and_checked(tmp_path: Path) -> None:
    """Files are 0600 in folders 0700, of the last rounds; a damaged one is as if it had never been there."""
    memory = Memory(tmp_path / "memory", "run", "north")
    for round_ in range(1, 9):
        memory.write("control", round_, arrays(round_))
    files = sorted((tmp_path / "memory").rglob("*.safetensors"))
    assert len(files) == ROUNDS
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "memory").stat().st_mode) == 0o700
    damaged = bytearray(files[-1].read_bytes())
    damaged[-1] ^= 1
    files[-1].write_bytes(damaged)
    assert found(memory, 9) == 7.0
    assert not files[-1].exists()
    assert memory.read("control", 9, SPECS[:1]) is None  # of another model


def test_runs_that_have_not_gone_on_for_a_month_are_removed(tmp_path: Path) -> None:
    """When another run keeps something."""
    old, new = Memory(tmp_path, "old", "north"), Memory(tmp_path, "new", "north")
    old.write("control", 1, arrays(1.0))
    (folder,) = tmp_path.iterdir()
    past = time.time() - 31 * 86_400
    os.utime(folder, (past, past))
    new.write("control", 1, arrays(2.0))
    assert (found(old, 2), found(new, 2)) == (None, 2.0)


@pytest.mark.parametrize(
    ("strategy", "said"),
    [("fedavg", ""), ("scaffold", "control variates"), ("ditto", "a model of this site's own"), ("fedper", "1 of its")],
)
def test_who_approves_a_job_is_told_what_it_keeps_here(strategy: str, said: str) -> None:
    """In words; what stays says something about the site's data."""
    specs = (SPECS[0], VariableSpec(shape=(2,), dtype="float32", rule="personal" if strategy == "fedper" else "train"))
    contract = Contract(inputs=(), outputs=(), preprocessing=None, architecture="a", base="b", variables=specs)
    request = PrepareRequest(
        run="run", contract=contract, architecture="{}", train=TrainSection(), strategy=NamedConfig(name=strategy)
    )
    words = kept_here(request)
    assert said in words
    assert bool(words) == bool(said)
    assert any(f"keeps {words} here" in line for line in _words(request)) == bool(said)
