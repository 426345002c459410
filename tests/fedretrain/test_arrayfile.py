"""Arrays in a file that is mapped: as safetensors has them, and never more than the file holds."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedretrain import arrayfile

ARRAYS = {
    "00000": np.arange(12, dtype="float32").reshape(3, 4),
    "00001": np.asfortranarray(np.arange(6, dtype="int64").reshape(2, 3)),
    "00002": np.array(True),
    "00003": np.empty((0, 2), "float16"),
    "00004": np.arange(1_100_000, dtype="uint8"),
}


def same(found: dict[str, np.ndarray]) -> None:
    """The same arrays, bit by bit."""
    assert sorted(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert (found[name] == array).all()


def test_what_is_written_is_what_safetensors_reads(tmp_path: Path) -> None:
    """And the other way round."""
    arrayfile.write(tmp_path / "ours", ARRAYS)
    same(load_file(tmp_path / "ours"))
    save_file({name: np.ascontiguousarray(array) for name, array in ARRAYS.items() if array.ndim}, tmp_path / "theirs")
    assert (arrayfile.mapped(tmp_path / "theirs")["00000"] == ARRAYS["00000"]).all()
    found = arrayfile.mapped(tmp_path / "ours")
    same(found)
    assert not found["00000"].flags.writeable


BROKEN = {
    "empty": b"",
    "no header": (2**40).to_bytes(8, "little"),
    "no JSON": (2).to_bytes(8, "little") + b"{x",
    "a list": (2).to_bytes(8, "little") + b"[]",
    "more than there is": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "another length": b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
    "below zero": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}',
    "an unknown dtype": b'{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}',
    "no offsets": b'{"a":{"dtype":"F32","shape":[1]}}',
    "less than there is": b"{}",
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_does_not_fit_together_is_not_mapped(what: str, tmp_path: Path) -> None:
    """A file of another length than its header says, or without one."""
    text = BROKEN[what]
    whole = len(text).to_bytes(8, "little") + text + b"1234" if text.startswith(b"{") else text
    (tmp_path / "file").write_bytes(whole)
    with pytest.raises(ValueError, match=r"expected|Expecting"):
        arrayfile.mapped(tmp_path / "file")
