"""The spool: what goes in comes out, in pieces, and nothing stays."""

from pathlib import Path

import numpy as np
import pytest

from fedretrain.contract import VariableSpec
from fedretrain.errors import MachineError
from server.spool import Spool
from strategies.coordinates import width

SPECS = (
    VariableSpec(shape=(5, 2), dtype="float32", rule="train"),
    VariableSpec(shape=(), dtype="float16", rule="average"),
    VariableSpec(shape=(0, 3), dtype="float32", rule="train"),
    VariableSpec(shape=(3,), dtype="bfloat16", rule="train"),
    VariableSpec(shape=(7,), dtype="float64", rule="train"),
)


def update(seed: int) -> list[np.ndarray]:
    import ml_dtypes  # registers bfloat16

    rng = np.random.default_rng(seed)
    dtypes = [ml_dtypes.bfloat16 if s.dtype == "bfloat16" else s.dtype for s in SPECS]
    return [np.asarray(rng.normal(size=s.shape)).astype(d) for s, d in zip(SPECS, dtypes, strict=True)]


def test_an_update_comes_back_as_it_was(tmp_path: Path) -> None:
    """Shapes, dtypes and bits of every variable, also Fortran-ordered, scalar and empty ones."""
    with Spool(tmp_path, SPECS) as spool:
        spool.put("a", update(1))
        given = update(2)
        given[0] = np.asfortranarray(given[0])
        spool.put("b", given)
        for site, seed in (("a", 1), ("b", 2)):
            for got, want in zip(spool.arrays(site), update(seed), strict=True):
                assert (got.shape, got.dtype) == (want.shape, want.dtype)
                assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("memory_bytes", [1, 300_000, 1 << 20])
def test_stacks_have_the_sites_in_the_order_asked_and_stay_within_the_bound(tmp_path: Path, memory_bytes: int) -> None:
    """Put together, the pieces are the whole variable; none is larger than the bound, or than a block."""
    specs = (
        VariableSpec(shape=(3,), dtype="float32", rule="train"),
        VariableSpec(shape=(50_001,), dtype="float64", rule="train"),
    )
    with Spool(tmp_path, specs) as spool:
        values = np.random.default_rng(0).normal(size=(3, 50_001))
        for site, row in (("b", 1), ("a", 0), ("c", 2)):
            spool.put(site, [np.zeros(3, np.float32), values[row]])
        pieces = [piece.copy() for piece in spool.stacks(["a", "c"], 1, memory_bytes)]
        assert all(p.nbytes <= max(memory_bytes, 2 * 8 * width(2)) for p in pieces)
        assert np.array_equal(np.concatenate(pieces, axis=1), values[[0, 2]])


def test_every_variable_can_be_stacked(tmp_path: Path) -> None:
    """Scalars and 16 bits as well; an empty variable has no pieces."""
    with Spool(tmp_path, SPECS) as spool:
        spool.put("a", update(1))
        for position, want in enumerate(update(1)):
            pieces = [piece.tobytes() for piece in spool.stacks(["a"], position)]
            assert pieces == [want.tobytes()] * (want.size > 0)


def test_a_file_cut_short_is_one_clear_error(tmp_path: Path) -> None:
    """Rather than values that are not the site's."""
    with Spool(tmp_path, SPECS) as spool:
        spool.put("a", update(1))
        file = next(tmp_path.iterdir())
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(MachineError, match=r"000000.update: cannot read: expected 1 more bytes"):
            list(spool.stacks(["a"], position=4))


def test_nothing_outlives_the_round(tmp_path: Path) -> None:
    """Files go when the round ends, and what a killed process left goes when the next one begins."""
    (tmp_path / "000007.update").write_bytes(b"half an upd")
    with Spool(tmp_path, SPECS) as spool:
        assert list(tmp_path.iterdir()) == []
        spool.put("a", update(1))
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


def test_fault_38_a_folder_that_takes_no_more_is_one_clear_error(tmp_path: Path) -> None:
    """The error names the file."""
    spool = Spool(tmp_path, SPECS)
    tmp_path.joinpath("000000.update").mkdir()
    with pytest.raises(MachineError, match=r"000000.update: cannot write"):
        spool.put("a", update(1))
