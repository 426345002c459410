"""Weights files that reach outside themselves are never opened by Keras (fault 50)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fedretrain.errors import ConfigurationError, ModelRefused
from fedretrain.hdf5 import check_hdf5


def external_link(file: Any, other: Path) -> None:
    file["layers/dense/vars/1"] = h5py.ExternalLink(str(other), "/secret")


def soft_link(file: Any, other: Path) -> None:
    file["layers/dense/vars/1"] = h5py.SoftLink("/layers/dense/vars/0")


def soft_link_that_hides_a_group(file: Any, other: Path) -> None:
    file["layers/hidden"] = h5py.ExternalLink(str(other), "/")


def virtual_dataset(file: Any, other: Path) -> None:
    layout = h5py.VirtualLayout((4,), np.float32)
    layout[:] = h5py.VirtualSource(str(other), "secret", (4,))
    file.create_virtual_dataset("layers/dense/vars/1", layout)


def external_storage(file: Any, other: Path) -> None:
    file.create_dataset("layers/dense/vars/1", (4,), np.uint8, external=[(str(other), 0, 4)])


def objects(file: Any, other: Path) -> None:
    file.create_dataset("text", data=["a", "b"])


def references(file: Any, other: Path) -> None:
    file.create_dataset("ref", data=file["layers"].ref, dtype=h5py.ref_dtype)


def named_type(file: Any, other: Path) -> None:
    file["kind"] = np.dtype("f4")


def huge(file: Any, other: Path) -> None:
    file.create_dataset("layers/dense/vars/1", (10**11,), np.float32, chunks=(10**6,))  # 400 GB in a few bytes


def in_the_optimizers_group(file: Any, other: Path) -> None:
    file["optimizer/vars/0"] = h5py.ExternalLink(str(other), "/secret")


BAD = [
    (external_link, "'layers/dense/vars/1' is a link"),
    (soft_link, "'layers/dense/vars/1' is a link"),
    (soft_link_that_hides_a_group, "'layers/hidden' is a link"),
    (virtual_dataset, "takes its numbers from another file"),
    (external_storage, "takes its numbers from another file"),
    (objects, "'text' holds object; expected numbers"),
    (references, "'ref' holds object; expected numbers"),
    (named_type, "'kind' is neither an array nor a group"),
    (huge, "at most 1000 bytes, as the architecture has, got 400000000048"),
    (in_the_optimizers_group, "'optimizer/vars/0' is a link"),
]


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["secret"] = np.arange(4, dtype=np.float32)
    return path


def weights(path: Path, add: Callable[[Any, Path], None] | None = None, other: Path | None = None) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("layers/dense/vars/0", data=np.zeros((3, 4), np.float32), compression="gzip", shuffle=True)
        if add is not None and other is not None:
            add(file, other)
    return path


@pytest.mark.parametrize(("add", "says"), BAD, ids=lambda v: getattr(v, "__name__", ""))
def test_fault_50_what_points_outside_or_lies_about_its_size_is_refused(
    add: Callable[[Any, Path], None], says: str, tmp_path: Path, other: Path
) -> None:
    """Links, virtual and external storage, other than numbers, and arrays larger than the model; it says where."""
    with pytest.raises(ModelRefused, match=says) as caught:
        check_hdf5(weights(tmp_path / "w.h5", add, other), "w.h5", 1000, skip=frozenset({"optimizer"}))
    assert "\n" not in str(caught.value)


def test_plain_weights_pass(tmp_path: Path) -> None:
    """Compression that HDF5 brings along is fine, and what nobody reads may be large."""

    def add(file: Any, _: Path) -> None:
        file["optimizer/vars/0"] = np.zeros(10_000)
        file["again"] = file["layers"]  # a second hard link, even to a group above, is the file's own
        file["layers/loop"] = file["layers"]

    check_hdf5(weights(tmp_path / "w.h5", add, tmp_path), "w.h5", 1000, skip=frozenset({"optimizer"}))


@pytest.mark.parametrize("content", [b"", b"not hdf5", None], ids=["empty", "text", "truncated"])
def test_damaged_files_are_the_operators_error(content: bytes | None, tmp_path: Path) -> None:
    """One line that names the file."""
    path = weights(tmp_path / "w.h5")
    path.write_bytes(path.read_bytes()[:1000] if content is None else content)
    with pytest.raises(ConfigurationError, match=r"w\.h5: expected an undamaged HDF5 file") as caught:
        check_hdf5(path, "w.h5", 1000)
    assert not isinstance(caught.value, ModelRefused)
