"""An update on its way to the disk: the same bytes and digest as in memory."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array

from client import outgoing
from client.bulk import IN_MEMORY, Bulk
from client.outgoing import difference, finite, packed, written
from fedretrain.digest import weights_digest
from fedretrain.errors import DeclinedRequest

RNG = np.random.default_rng(0)
AFTER = [RNG.normal(size=shape).astype("float32") for shape in ((700, 900), (1,), (), (0, 3), (1_100_000,))]
AFTER.append(np.asfortranarray(RNG.normal(size=(5, 7))))
BEFORE = [np.full_like(array, 0.5) for array in AFTER]


@pytest.fixture(params=["made at once", "made later"])
def update(request: pytest.FixtureRequest) -> outgoing.Update:
    """Both ways."""
    if request.param == "made later":
        return difference(AFTER, BEFORE)
    return finite([after - before for after, before in zip(AFTER, BEFORE, strict=True)])


def test_what_is_written_is_what_would_be_packed(update: outgoing.Update, tmp_path: Path) -> None:
    """Every array as NumPy saves it, and the digest of all of them."""
    keys = [str(i) for i in range(len(AFTER))]
    record, digest = written(zip(keys, update, strict=True), Bulk(tmp_path))
    expected = [after - before for after, before in zip(AFTER, BEFORE, strict=True)]
    assert digest == weights_digest(expected) == packed(zip(keys, update, strict=True))[1]
    for found, array in zip(record.values(), expected, strict=True):
        whole = Array(np.asarray(array, order="C"))
        assert (bytes(found.data), found.shape, found.dtype) == (whole.data, whole.shape, whole.dtype)
    assert not list(tmp_path.iterdir())


def test_what_is_not_finite_does_not_leave(tmp_path: Path) -> None:
    """It is refused as diverged, whenever the update is made; numbers that are finite and overflow in a sum are not."""
    after, before = [np.array([1.0, np.inf], "float32")], [np.ones(2, "float32")]
    with pytest.raises(DeclinedRequest, match="training-diverged"):
        written([("0", each) for each in difference(after, before)], Bulk(tmp_path))
    with pytest.raises(DeclinedRequest, match="training-diverged"):
        finite(after)
    large = [np.full(3, 3e38, "float32")]
    assert finite(large) is large


@pytest.mark.parametrize("size", [0, 10, IN_MEMORY + 10])
def test_bulk_has_what_was_written(size: int, tmp_path: Path) -> None:
    """In memory or in a file without a name, seen as a whole or in parts."""
    data = RNG.bytes(size)
    bulk = Bulk(tmp_path)
    for start in range(0, size, 1_000_000):
        bulk.write(memoryview(data)[start : start + 1_000_000])
    assert bulk.size == size
    assert bulk.view() == data
    assert (bulk.read(5, 10), bulk.read(size - 3, 10)) == (data[5:15], data[max(size - 3, 0) :])
    assert not list(tmp_path.iterdir())
