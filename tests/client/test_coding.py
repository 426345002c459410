"""What a site sends in a codec, and what it keeps of what it does not send."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.coding import Encoder
from client.residuals import KEPT_S
from fedretrain.codecs import make_codec
from fedretrain.contract import Contract, InputSpec, OutputSpec, VariableSpec
from fedretrain.errors import DeclinedRequest
from fedretrain.job import NamedConfig, TrainSection
from fedretrain.messages import PrepareRequest

pytestmark = pytest.mark.usefixtures("unflushed")
F32 = np.float32
TOPK = NamedConfig(name="topk", share=0.1)
CONTRACT = Contract(
    inputs=(InputSpec(name="x", shape=(4,), dtype="float32"),),
    outputs=(OutputSpec(name="y", shape=(1,), kind="regression", loss="mse"),),
    preprocessing=None,
    architecture="a" * 64,
    base="b" * 64,
    variables=(
        VariableSpec(shape=(10, 4), dtype="float32", rule="train"),
        VariableSpec(shape=(40,), dtype="float32", rule="average"),
        VariableSpec(shape=(8, 8), dtype="float32", rule="keep"),
        VariableSpec(shape=(30,), dtype="float32", rule="train"),
    ),
)
TRAINED = (0, 2)  # of the three that travel


def request(run: str = "r1", codec: NamedConfig = TOPK, seed: int = 0) -> PrepareRequest:
    train = TrainSection(optimizer=NamedConfig(name="sgd"), loss="mse", metrics=(), seed=seed)
    strategy = NamedConfig(name="fedavg")
    return PrepareRequest(run=run, contract=CONTRACT, architecture="{}", train=train, strategy=strategy, codec=codec)


def update(round_: int) -> list[np.ndarray]:
    rng = np.random.default_rng(round_)
    return [rng.normal(size=spec.shape).astype(F32) for spec in CONTRACT.changing_specs]


def coded(folder: Path, round_: int, site: str = "north", finish: bool = True, **of: Any) -> list[np.ndarray]:
    """The round's update as it travels."""
    encoder = Encoder(request(**of), site, round_, folder)
    payloads = [encoder.encode(values) for values in update(round_)]
    if finish:
        encoder.finish()
    return payloads


def decoded(payloads: list[np.ndarray]) -> list[np.ndarray]:
    codec = make_codec(TOPK)
    return [codec.decode(p, spec) for p, spec in zip(payloads, CONTRACT.changing_specs, strict=True)]


def same(some: list[np.ndarray], others: list[np.ndarray]) -> bool:
    return [a.tobytes() for a in some] == [a.tobytes() for a in others]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*/*.f32"), key=lambda file: file.stat().st_mtime_ns)


def test_what_is_left_out_is_added_to_the_next_update(tmp_path: Path) -> None:
    """Over the rounds, what was sent and what is left make up all updates; moving statistics are sent whole."""
    rounds = range(1, 8)
    sent = [decoded(coded(tmp_path, n)) for n in rounds]
    rest = np.fromfile(files(tmp_path)[-1], "<f4")
    left = {0: rest[:40].reshape(10, 4), 2: rest[40:]}
    for i in TRAINED:
        total = np.sum([update(n)[i] for n in rounds], axis=0)
        np.testing.assert_allclose(np.sum([s[i] for s in sent], axis=0) + left[i], total, atol=1e-5)
        assert all(np.count_nonzero(s[i]) <= np.ceil(0.1 * s[i].size) for s in sent)
    assert all(same([s[1]], [update(n)[1]]) for n, s in zip(rounds, sent, strict=True))


def test_a_round_asked_for_again_has_the_same_bytes(tmp_path: Path) -> None:
    """However often a round is begun, finished or broken off, its answer and the next one's are those of one go."""
    straight = [coded(tmp_path / "straight", n) for n in (1, 2, 3)]
    coded(tmp_path / "again", 1)
    coded(tmp_path / "again", 2)
    coded(tmp_path / "again", 2, finish=False)  # the site stops in the middle of the second attempt
    assert same(coded(tmp_path / "again", 2), straight[1])
    assert same(coded(tmp_path / "again", 3), straight[2])


def test_a_rest_belongs_to_one_run_site_and_codec(tmp_path: Path) -> None:
    """Under another name of any of them a site begins with nothing left over."""
    first = coded(tmp_path / "fresh", 3)
    for n in (1, 2):
        coded(tmp_path / "used", n)
    assert not same(coded(tmp_path / "used", 3), first)
    assert same(coded(tmp_path / "used", 3, run="r2"), first)
    assert same(coded(tmp_path / "used", 3, site="south"), first)
    other = NamedConfig(name="topk", share=0.2)
    assert same(coded(tmp_path / "used", 4, codec=other), coded(tmp_path / "other", 4, codec=other))


def test_a_server_that_goes_back_is_followed(tmp_path: Path) -> None:
    """From an earlier round on, a site answers as if it had never seen the later ones."""
    straight = [coded(tmp_path / "straight", n) for n in (1, 2)]
    for n in (1, 2, 3, 4):
        coded(tmp_path / "back", n)
    assert same(coded(tmp_path / "back", 1), straight[0])
    assert same(coded(tmp_path / "back", 2), straight[1])


@pytest.mark.parametrize("harm", ["gone", "changed", "short", "state"])
def test_without_its_rest_a_site_goes_on(harm: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A rest that is missing or damaged counts as none, with a line in the log."""
    coded(tmp_path, 1)
    [file] = files(tmp_path)
    if harm == "gone":
        file.unlink()
    elif harm == "state":
        (file.parent / "state.json").write_text("{")
    else:
        data = file.read_bytes()
        file.write_bytes(data[:-4] if harm == "short" else bytes([data[0] ^ 1]) + data[1:])
    assert same(coded(tmp_path, 2), coded(tmp_path / "fresh", 2))
    assert "left out of earlier updates is lost" in caplog.text


def test_a_reply_that_comes_too_late_changes_nothing(tmp_path: Path) -> None:
    """A round that is finished after a later one leaves the later one's rest alone."""
    late = Encoder(request(), "north", 1, tmp_path)
    for values in update(1):
        late.encode(values)
    coded(tmp_path, 2)
    late.finish()
    assert same(coded(tmp_path, 3), [coded(tmp_path / "two", 2), coded(tmp_path / "two", 3)][1])


def test_rests_are_private_few_and_forgotten_in_the_end(tmp_path: Path) -> None:
    """Files of this user alone, two for a site and run, and none of runs that were not used for a month."""
    coded(tmp_path, 1, run="old")
    month_ago = time.time() - KEPT_S - 60
    [old] = tmp_path.iterdir()
    os.utime(old, (month_ago, month_ago))
    for n in range(1, 6):
        coded(tmp_path, n)
    assert not old.exists()
    kept = list(tmp_path.glob("*/*/*"))
    assert sorted(path.suffix for path in kept) == [".f32", ".f32", ".json"]
    assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*/*")} == {0o700}


def test_rounding_follows_from_seed_site_and_round(tmp_path: Path) -> None:
    """int8 gives the same bytes in every run of a job, and others for another seed, site or round; nothing is kept."""
    int8 = {"codec": NamedConfig(name="int8", block=16)}

    def bits(site: str = "north", round_: int = 1, **of: Any) -> bytes:
        encoder = Encoder(request(**int8, **of), site, round_, tmp_path)
        return b"".join(encoder.encode(values).tobytes() for values in update(0))

    assert bits() == bits(run="r2")
    assert len({bits(), bits(seed=1), bits("south"), bits(round_=2)}) == 4
    assert not list(tmp_path.iterdir())


def test_an_update_that_grows_without_bound_is_declined(tmp_path: Path) -> None:
    """A sum of update and rest that is no number any more is a divergence, and no NaN travels."""
    for n, sign in ((1, 1), (2, 1)):
        encoder = Encoder(request(), "north", n, tmp_path)
        huge = np.full((10, 4), sign * 3e38, F32)
        if n == 2:
            with pytest.raises(DeclinedRequest, match="training-diverged"):
                encoder.encode(huge)
        else:
            for values in (huge, *update(1)[1:]):
                encoder.encode(values)
            encoder.finish()
