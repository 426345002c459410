"""Checkpoints: whole and verified, or passed over."""

import dataclasses
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedretrain.errors import MachineError
from server.checkpoint import Checkpoint, Checkpoints


def checkpoint(completed: int, size: int = 3) -> Checkpoint:
    return Checkpoint(
        run="r1",
        contract="c",
        round=completed,
        params=[np.full((2, size), completed, np.float32).T, np.asarray(0.5, np.float16)],
        server={"00000": np.asarray(completed, np.int64), "d:m_t/00001": np.ones(2, np.float32)},
        norms=(0.1, 2.5),
        history=({"round": 1, "admitted": ["a"], "seconds": 0.1},),
    )


def save(folder: Path, given: Checkpoint) -> None:
    """By a process that has just opened the folder."""
    Checkpoints(folder).save(given)


def load_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    opened = Checkpoints(folder)
    return opened.newest, opened.corrupt


def same(a: Checkpoint | None, b: Checkpoint) -> bool:
    if a is None:
        return False
    pairs = list(zip([*a.params, *a.server.values()], [*b.params, *b.server.values()], strict=True))
    plain = [dataclasses.replace(c, params=[], server=dict.fromkeys(c.server)) for c in (a, b)]
    return plain[0] == plain[1] and all(
        (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()) for x, y in pairs
    )


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    """Bits, shapes (scalars and transposed arrays too), norms and history."""
    save(tmp_path, checkpoint(1))
    save(tmp_path, checkpoint(2))
    newest, corrupt = load_newest(tmp_path)
    assert same(newest, checkpoint(2))
    assert corrupt == []


def test_there_is_none_at_first(tmp_path: Path) -> None:
    """An empty folder is a run that begins."""
    assert load_newest(tmp_path) == (None, [])


def test_the_last_three_are_kept(tmp_path: Path) -> None:
    """By number, also past 9999."""
    for completed in (9997, 9998, 9999, 10000):
        save(tmp_path, checkpoint(completed))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "history.jsonl",
        "round-10000.safetensors",
        "round-9998.safetensors",
        "round-9999.safetensors",
    ]
    assert same(load_newest(tmp_path)[0], checkpoint(10000))


@pytest.mark.parametrize("position", [0, 30, 200, 500, -1])
def test_fault_39_a_corrupt_checkpoint_is_passed_over_and_named(tmp_path: Path, position: int) -> None:
    """A flipped byte anywhere: the one before counts."""
    save(tmp_path, checkpoint(1))
    save(tmp_path, checkpoint(2))
    file = tmp_path / "round-0002.safetensors"
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)
    newest, corrupt = load_newest(tmp_path)
    assert same(newest, checkpoint(1))
    assert corrupt == ["round-0002.safetensors"]


def test_fault_39_truncated_empty_and_foreign_files(tmp_path: Path) -> None:
    """Whatever lies under a checkpoint's name, the newest good one is found."""
    save(tmp_path, checkpoint(1))
    whole = (tmp_path / "round-0001.safetensors").read_bytes()
    (tmp_path / "round-0002.safetensors").write_bytes(whole[:-5])
    (tmp_path / "round-0003.safetensors").write_bytes(b"")
    (tmp_path / "round-0004.safetensors").mkdir()
    (tmp_path / ".round-0005.safetensors.x.tmp").write_bytes(b"half")
    newest, corrupt = load_newest(tmp_path)
    assert same(newest, checkpoint(1))
    assert corrupt == [f"round-000{n}.safetensors" for n in (4, 3, 2)]
    assert not list(tmp_path.glob(".*"))


def test_fault_38_a_full_disk_leaves_the_checkpoints_before(tmp_path: Path) -> None:
    """No room for the next one: a clear error, and the last one is intact."""
    save(tmp_path, checkpoint(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(MachineError, match=r"round-0002.safetensors: cannot write: .*; free some space"):
            save(tmp_path, checkpoint(2, size=100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["history.jsonl", "round-0001.safetensors"]
    save(tmp_path, checkpoint(2, size=100_000))
    assert same(load_newest(tmp_path)[0], checkpoint(2, size=100_000))


def test_the_history_is_written_once(tmp_path: Path) -> None:
    """Each round appends its own line; what a later one left is no part of an earlier one, and is written over."""
    rounds = [{"round": n, "admitted": ["a"] * n} for n in (1, 2, 3)]
    opened = Checkpoints(tmp_path)
    for n in (1, 2, 3):
        opened.save(dataclasses.replace(checkpoint(n), history=tuple(rounds[:n])))
    (tmp_path / "round-0003.safetensors").write_bytes(b"")
    again = Checkpoints(tmp_path)
    assert again.newest is not None
    assert again.newest.history == tuple(rounds[:2])
    last = {"round": 3, "admitted": ["b"]}
    again.save(dataclasses.replace(checkpoint(3), history=(*again.newest.history, last)))
    assert same(Checkpoints(tmp_path).newest, dataclasses.replace(checkpoint(3), history=(*rounds[:2], last)))


def test_a_checkpoint_without_its_history_is_passed_over(tmp_path: Path) -> None:
    """A flipped byte in the line of its own round: the one before counts."""
    opened = Checkpoints(tmp_path)
    for n in (1, 2):
        opened.save(dataclasses.replace(checkpoint(n), history=({"round": 1}, {"round": 2})[:n]))
    (tmp_path / "history.jsonl").write_bytes(b'{"round":1}\n{"round":7}\n')
    newest, corrupt = load_newest(tmp_path)
    assert newest is not None
    assert newest.history == ({"round": 1},)
    assert corrupt == ["round-0002.safetensors"]


def test_fault_36_killed_while_writing_the_one_before_counts(tmp_path: Path) -> None:
    """Dead between the complete file and its name."""
    code = (
        "import sys; from pathlib import Path; from tests.server.test_checkpoint import *\n"
        "save(Path(sys.argv[1]), checkpoint(2))"
    )
    save(tmp_path, checkpoint(1))
    environment = {**os.environ, "FAULT_AT": "checkpoint-written"}
    assert subprocess.run([sys.executable, "-c", code, tmp_path], env=environment, check=False).returncode == -9
    assert same(load_newest(tmp_path)[0], checkpoint(1))
