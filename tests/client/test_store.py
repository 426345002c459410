"""What a site keeps: whole, checked, and never under a name that came in a message."""

import os
from pathlib import Path

import numpy as np
import pytest

from client.store import MOST_CHECKS, SiteStore
from fedretrain.contract import Contract, InputSpec, OutputSpec, VariableSpec
from fedretrain.digest import weights_digest
from fedretrain.errors import DeclinedRequest
from fedretrain.job import NamedConfig, TrainSection
from fedretrain.messages import PrepareRequest


def arrays() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(4, 3)).astype("float32")
    return [
        matrix,
        np.asfortranarray(matrix),
        np.array(5, dtype="int64"),
        np.array([1, 2], dtype="uint32"),
        matrix.astype("float16"),
        np.array([True, False]),
        np.zeros((0, 2), dtype="float32"),
    ]


def request(run: str) -> PrepareRequest:
    contract = Contract(
        inputs=(InputSpec(name="x", shape=(2,), dtype="float32", low=-1.5),),
        outputs=(OutputSpec(name="y", shape=(1,), kind="regression", loss="mse"),),
        preprocessing=None,
        architecture="a",
        base="b" * 64,
        variables=(VariableSpec(shape=(2, 1), dtype="float32", rule="train"),),
    )
    train = TrainSection(optimizer=NamedConfig(name="sgd", learning_rate=0.1), loss="mse", metrics=("mae",))
    return PrepareRequest(
        run=run, contract=contract, architecture="{}", freeze=("c*",), train=train, strategy=NamedConfig(name="fedavg")
    )


def test_a_base_model_comes_back_bit_identical(tmp_path: Path) -> None:
    """Every dtype a variable can have, scalars, empty and Fortran-ordered arrays included."""
    store, digest = SiteStore(tmp_path), weights_digest(arrays())
    assert store.base(digest) is None
    store.put_base(digest, arrays())
    found = SiteStore(tmp_path).base(digest)
    assert found is not None
    assert [(a.dtype, a.shape, a.tobytes()) for a in found] == [(a.dtype, a.shape, a.tobytes()) for a in arrays()]


def test_a_base_model_under_a_false_digest_is_refused(tmp_path: Path) -> None:
    """Nothing is stored where the arrays are not what the digest says."""
    with pytest.raises(DeclinedRequest, match="request-invalid at base"):
        SiteStore(tmp_path).put_base("0" * 64, arrays())
    assert list(tmp_path.rglob("*.safetensors")) == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_base_model_counts_as_missing(tmp_path: Path, damage: str) -> None:
    """It is removed, so that the server sends it again."""
    store, digest = SiteStore(tmp_path), weights_digest(arrays())
    store.put_base(digest, arrays())
    (file,) = (tmp_path / "base").iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes({"flip": data, "truncate": data[:-9], "empty": b""}[damage])
    assert store.base(digest) is None
    assert not file.exists()


@pytest.mark.parametrize("digest", ["../../etc/passwd", "", "A" * 64, "0" * 63 + "/"])
def test_a_digest_that_is_none_never_becomes_a_path(tmp_path: Path, digest: str) -> None:
    """What is not 64 hexadecimal digits is refused before a path is made of it."""
    with pytest.raises(DeclinedRequest, match="request-invalid at base"):
        SiteStore(tmp_path).base(digest)


@pytest.mark.parametrize("run", ["20260101-a", "../../escape", "/absolute", "ü" * 300, ""])
def test_a_run_is_found_under_any_id_and_stays_in_the_folder(tmp_path: Path, run: str) -> None:
    """The id is hashed for the file's name."""
    store = SiteStore(tmp_path / "store")
    assert store.run(run) is None
    store.put_run(run, request(run))
    assert store.run(run) == request(run)
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_a_damaged_run_counts_as_missing(tmp_path: Path) -> None:
    """The site will answer that it was not prepared."""
    store = SiteStore(tmp_path)
    store.put_run("r", request("r"))
    (file,) = (tmp_path / "runs").iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    assert store.run("r") is None


def test_requests_of_checks_do_not_pile_up(tmp_path: Path) -> None:
    """A federation that is watched for years leaves those of the newest checks; runs stay, whatever is checked."""
    store = SiteStore(tmp_path)
    store.put_run("r", request("r"))
    for number in range(MOST_CHECKS + 3):
        store.put_run(f"c{number}", request(f"c{number}").model_copy(update={"check": True}))
        for file in (tmp_path / "checks").iterdir():  # a file system may tell times in seconds
            os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns - 10**9))
    found = {name: store.run(name) for name in ("r", "c0", "c3", f"c{MOST_CHECKS + 2}")}
    assert {name: kept is not None for name, kept in found.items()} == {
        "r": True, "c0": False, "c3": True, f"c{MOST_CHECKS + 2}": True,
    }  # fmt: skip
    assert len(list((tmp_path / "checks").iterdir())) == MOST_CHECKS
