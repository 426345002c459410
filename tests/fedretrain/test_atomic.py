"""Atomic files: whole or not at all."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from fedretrain import atomic
from fedretrain.errors import MachineError


def test_content_and_mode_are_as_asked(tmp_path: Path) -> None:
    """The file has the bytes and the permission bits that were asked for, and nothing else is left."""
    atomic.write_bytes(tmp_path / "a", b"1", mode=0o600)
    atomic.write_json(tmp_path / "b", {"z": 1, "a": [1.5]})
    assert (tmp_path / "a").read_bytes() == b"1"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "b").read_bytes() == b'{"a":[1.5],"z":1}\n'
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_failure_inside_leaves_the_old_file(tmp_path: Path) -> None:
    """Whatever goes wrong while writing, the old content stands and no temporary file stays."""
    file = tmp_path / "a"
    file.write_bytes(b"old")

    def write_half() -> None:
        with atomic.replacing(file) as temporary:
            temporary.write_bytes(b"ne")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert file.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_fault_38_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    """No room: a MachineError that names the file and what to do; the old file is intact; later there is room."""
    file = tmp_path / "a"
    file.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(MachineError, match=rf"{file}: cannot write: .*; raise the file size limit"):
            atomic.write_bytes(file, bytes(50_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    atomic.write_bytes(file, bytes(50_000))
    assert file.stat().st_size == 50_000


def test_no_space_left_says_to_free_some() -> None:
    """ENOSPC is told apart: the advice is to free space."""
    expected = pytest.raises(MachineError, match="/dev/full: cannot write: No space left on device; free some space")
    with expected, atomic.disk_errors(Path("/dev/full")), Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")


def test_a_missing_folder_is_a_machine_error(tmp_path: Path) -> None:
    """A folder that is not there is named in the error."""
    with pytest.raises(MachineError, match="nowhere/a: cannot write: No such file"):
        atomic.write_bytes(tmp_path / "nowhere" / "a", b"")


def test_sigkill_before_the_replace_keeps_the_old_file(tmp_path: Path) -> None:
    """A process killed with the new content complete but not in place leaves the old file and one leftover."""
    file = tmp_path / "a"
    file.write_bytes(b"old")
    code = (
        "import sys; from pathlib import Path; from fedretrain import atomic; from fedretrain.crashpoint import *\n"
        "with atomic.replacing(Path(sys.argv[1]), before_replace=lambda: crash_point('aggregated')) as temporary:\n"
        "    temporary.write_bytes(b'new')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, file], env={**os.environ, "FAULT_AT": "aggregated"}, check=False)
    assert done.returncode == -9
    assert file.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    atomic.remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_kept_file_is_of_its_format_or_named(tmp_path: Path) -> None:
    """None where there is none; anything else than the format, and a folder, is one line with what to do."""
    path = tmp_path / "kept.json"
    assert atomic.read_json(path, "kept/1", "delete it") is None
    atomic.write_json(path, {"format": "kept/1", "value": 7})
    assert atomic.read_json(path, "kept/1", "delete it") == {"format": "kept/1", "value": 7}
    for content in (b"", b"[1]", b"\xff", b"[" * 100_000, b'{"format": "kept/2"}'):
        path.write_bytes(content)
        with pytest.raises(MachineError, match=r"kept\.json: expected a kept/1 file, got another; delete it"):
            atomic.read_json(path, "kept/1", "delete it")
    path.unlink()
    path.mkdir()
    with pytest.raises(MachineError, match=r"kept\.json: cannot read: "):
        atomic.read_json(path, "kept/1", "delete it")
