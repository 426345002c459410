"""The release format: what goes in comes out, and parts that do not belong together are refused."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedretrain.contract import VariableSpec
from fedretrain.digest import canonical_json, sha256
from fedretrain.errors import ConfigurationError, UntrustedRelease
from fedretrain.release import (
    ARCHITECTURE,
    CONTRACT,
    FORMAT,
    GATE,
    IDENTIFYING,
    LINEAGE,
    WEIGHTS,
    Release,
    decode_weights,
    encode,
    encode_weights,
    load_release,
    release_id,
)
from tests.drafts import contract, draft, weights

FOLDER = Path("somewhere")


def identity(files: Mapping[str, bytes]) -> str:
    return release_id({name: sha256(data) for name, data in files.items()})


def load(files: Mapping[str, bytes], claimed: str | None = None) -> Release:
    """Load files as if they had been signed as they are."""

    def read(name: str, limit: int) -> bytes:
        if len(files[name]) > limit:
            raise UntrustedRelease(f"{name}: {len(files[name])} bytes, limit {limit}")
        return files[name]

    return load_release(claimed or identity(files), FOLDER, read)


def refusal(files: Mapping[str, bytes]) -> str:
    with pytest.raises(UntrustedRelease) as caught:
        load(files)
    return str(caught.value)


def specs(arrays: list[Any]) -> tuple[VariableSpec, ...]:
    return tuple(VariableSpec(shape=a.shape, dtype=a.dtype.name, rule="keep") for a in arrays)


def test_a_draft_comes_back_as_it_was() -> None:
    """Architecture, weights, contract, gate and lineage are the same after writing and loading."""
    wanted = draft()
    release = load(encode(wanted))
    assert release.architecture == wanted.architecture
    assert release.contract == wanted.contract
    assert release.gate == wanted.gate
    assert release.lineage.items() >= wanted.lineage.items()
    for got, expected in zip(release.weights, wanted.weights, strict=True):
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        np.testing.assert_array_equal(got, expected)
        assert got.flags.writeable
        assert got.flags.c_contiguous


def test_the_same_draft_has_the_same_id() -> None:
    """The id depends on content alone; another seed, run or report is another release."""
    assert identity(encode(draft())) == identity(encode(draft()))
    others = [draft(seed=2), draft(run="run-2"), draft(gate={"passed": False})]
    assert len({identity(encode(d)) for d in [draft(), *others]}) == 4


def test_the_id_names_all_five_files() -> None:
    """A change to any identifying file is another id; model.keras is not part of it."""
    files = encode(draft())
    assert set(files) == set(IDENTIFYING)
    for name in IDENTIFYING:
        assert identity({**files, name: files[name] + b" "}) != identity(files)
    assert identity({**files, "model.keras": b"x"}) == identity(files)


def test_bfloat16_is_kept() -> None:
    """Mixed-precision models keep their 16-bit variables bit by bit."""
    array = np.array([[1.5, -2.0, 3e38]], dtype=ml_dtypes.bfloat16)
    (back,) = decode_weights(encode_weights([array]), specs([array]), "w")
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


@given(
    st.lists(
        st.sampled_from(["float32", "float64", "int64", "uint8", "bool", "float16"]).flatmap(
            lambda dtype: hnp.arrays(
                np.dtype(dtype),
                hnp.array_shapes(min_dims=0, max_dims=3, min_side=0),
                elements={"allow_nan": False, "allow_infinity": False} if "float" in dtype else None,
            )
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_weights_survive_storage(arrays: list[Any], fortran: bool) -> None:
    """Any finite arrays in any memory order come back equal, in order."""
    stored = [np.asfortranarray(a) if fortran and a.ndim else a for a in arrays]
    back = decode_weights(encode_weights(stored), specs(arrays), "w")
    assert [(a.dtype, a.shape, a.tobytes()) for a in back] == [(a.dtype, a.shape, a.tobytes()) for a in arrays]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_fault_51_weights_that_are_not_finite_are_refused(value: float) -> None:
    """However well it is signed: NaN or infinity anywhere in the weights is refused, by variable."""
    arrays = weights()
    arrays[1][0] = value
    assert "weights.safetensors: variable 00001: expected finite numbers" in refusal(encode(draft(weights=arrays)))


def test_fault_51_another_architecture_is_refused() -> None:
    """However well it is signed: an architecture other than the contract's is refused."""
    other = draft().architecture.replace("tiny", "other")
    message = refusal(encode(draft(architecture=other)))
    assert "architecture.json: expected fingerprint named in contract.json" in message
    assert "do not belong together" in message


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ([*weights()[:4], np.array([True, False, True])], "bytes of variables as the contract says"),
        ([weights()[1], weights()[0], *weights()[2:]], "variable 00000: expected F32 [3, 2], got F32 [2]"),
        ([weights()[0], weights()[1].view(np.int32), *weights()[2:]], "variable 00001: expected F32 [2], got I32 [2]"),
    ],
)
def test_weights_other_than_the_contract_says_are_refused(arrays: list[Any], says: str) -> None:
    """A wrong size, order, shape or dtype names the variable, what was expected and what was found."""
    assert says in refusal(encode(draft(weights=arrays)))


def test_weights_under_another_name_are_refused() -> None:
    """A key too many or too few is refused even where the bytes add up."""
    array = np.zeros(2, np.float32)
    data = encode_weights([array]).replace(b"00000", b"00001")
    with pytest.raises(UntrustedRelease, match="'00000' is amiss"):
        decode_weights(data, specs([array]), "w")


@pytest.mark.parametrize("header", [0, 10**6, 2**63, 2**64 - 1])
def test_fault_48_a_header_that_lies_is_refused_before_it_is_read(header: int) -> None:
    """The header's length is compared with what the contract allows before anything is parsed or allocated."""
    array = np.zeros(2, np.float32)
    with pytest.raises(UntrustedRelease, match=f"got a header of {header} and"):
        decode_weights(struct.pack("<Q", header) + encode_weights([array])[8:], specs([array]), "w")


@pytest.mark.parametrize("data", [b"", b"\x02", struct.pack("<Q", 10) + b'{"a":     ' + bytes(8)])
def test_a_file_that_is_no_safetensors_is_refused(data: bytes) -> None:
    """Too short, or a header that is no JSON."""
    with pytest.raises(UntrustedRelease, match=r"^w: "):
        decode_weights(data, specs([np.zeros(2, np.float32)]), "w")


def test_fault_48_a_weights_file_larger_than_the_contract_is_never_read() -> None:
    """The most bytes asked of the reader follow from the contract, not from the file."""
    files = encode(draft())
    assert refusal({**files, WEIGHTS: bytes(10**6)}).startswith("weights.safetensors: 1000000 bytes, limit")


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (LINEAGE, {"weights": "0" * 64}, "weights digest named in lineage.json"),
        (LINEAGE, {"contract": "0" * 64}, "digest named in lineage.json"),
        (LINEAGE, {"format": "fedretrain.release/9"}, f"expected format {FORMAT}"),
        (LINEAGE, {"run": 7}, "expected the run's id under 'run'"),
        (CONTRACT, {"format": "fedretrain.contract/9"}, "contract.json: format: "),
        (CONTRACT, {"surprise": 1}, "contract.json: surprise: "),
        (
            CONTRACT,
            {"variables": [{"shape": [2], "dtype": "object", "rule": "keep"}]},
            "contract.json: expected a dtype",
        ),
        (
            CONTRACT,
            {"variables": [{"shape": [-2], "dtype": "int8", "rule": "keep"}]},
            "contract.json: expected lengths",
        ),
    ],
)
def test_parts_that_contradict_each_other_are_refused(name: str, change: dict[str, Any], says: str) -> None:
    """Every reference from one part to another is checked, and every field has to be one we know."""
    files = encode(draft())
    value = {**json.loads(files[name]), **change}
    assert says in refusal({**files, name: canonical_json(value)})


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
@pytest.mark.parametrize("name", [CONTRACT, GATE, LINEAGE])
def test_a_part_that_is_no_json_table_is_refused(name: str, data: bytes) -> None:
    """Anything that is not a JSON table is refused by its file name, nesting without end included."""
    assert f"{FOLDER / name}: " in refusal({**encode(draft()), name: data})


def test_an_architecture_that_is_no_text_is_refused() -> None:
    """Bytes that are no UTF-8 are refused, not passed on."""
    assert "not readable as UTF-8" in refusal({**encode(draft()), ARCHITECTURE: b"\xff"})


def test_fault_45_files_under_another_id_are_refused() -> None:
    """Files that are each in order, under an id that is not theirs, are refused."""
    with pytest.raises(UntrustedRelease, match="expected release id"):
        load(encode(draft()), identity(encode(draft(seed=2))))


def test_a_draft_without_a_run_is_no_release() -> None:
    """A release that cannot be traced to a run is not made."""
    with pytest.raises(ConfigurationError, match=r"lineage\.run: expected"):
        encode(draft(lineage={"parent": None}))


@pytest.mark.parametrize("value", [float("nan"), object()])
def test_a_report_that_is_not_json_is_no_release(value: object) -> None:
    """NaN, or an object, in gate report or lineage is named before anything is written."""
    with pytest.raises(ConfigurationError, match=r"gate\.json: expected numbers, texts"):
        encode(draft(gate={"bound": value}))


def test_a_dtype_that_cannot_be_stored_is_no_release() -> None:
    """Complex numbers have no stored form; the variable is named."""
    arrays = [*weights()[:4], np.zeros(2, np.complex64)]
    with pytest.raises(ConfigurationError, match="variable 00004: expected a dtype of"):
        encode(draft(weights=arrays, contract=contract(weights())))
