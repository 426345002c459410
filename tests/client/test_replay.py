"""What a site keeps for later runs: which examples, for how long, how it lies on the disk, and what harm does to it."""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.chooser import Chooser
from client.kept import identities, sample
from client.policy import Policy, ReplayRules, check_prepare, describe
from client.replay import FORMS, RUNS, Replay
from client.selection import parted
from client.vault import DamagedVault, Vault
from fedretrain.contract import Contract
from fedretrain.dataset import Dataset
from fedretrain.errors import DeclinedRequest
from fedretrain.job import ReplaySection
from fedretrain.messages import PrepareRequest
from strategies.recency import DAY_S

from .guarded import job
from .test_selection import SINCE

NOON = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
SECRET = 1234.5
NONE = np.empty(0, np.intp)


def data(count: int = 40, first: int = 0, **changes: Any) -> Dataset:
    """Rows that differ, labels by turns; every row a day after the one before."""
    rows = np.arange(first, first + count)
    x = np.stack([rows, rows * 0 + SECRET, rows], axis=1).astype(np.float32)
    arrays: dict[str, Any] = {"x": {"x": x}, "y": {"y": (rows % 2).astype(np.int32)}, "time": rows * DAY_S}
    return Dataset(**arrays | changes)


@pytest.fixture
def of() -> Contract:
    return job().contract


def rows(found: Dataset) -> list[int]:
    return sorted(found.x["x"][:, 0].astype(int).tolist())


def everything(memory: Replay, of: Contract, run: str = "later", **rules: Any) -> Dataset:
    """All that is kept, to a run that has one example of its own."""
    return memory.drawn(run, of, ReplayRules(examples=1000, **rules), data(1, 10_000), NONE)


def test_what_is_kept_does_not_depend_on_order_and_repetition(tmp_path: Path, of: Contract) -> None:
    """Offered at once, in parts, backwards or twice: the same sample, of the size the policy says."""
    rules, whole = ReplayRules(examples=15), data()
    offers = {
        "once": [whole],
        "parts": [data(10), data(10, 10), data(20, 20)],
        "backwards": [data(20, 20), data(20), whole],
        "twice": [whole, whole],
    }
    found = []
    for name, parts in offers.items():
        memory = Replay(tmp_path / name, "north")
        for part in parts:
            memory.keep(of, rules, part, np.arange(len(part)))
        found.append(rows(everything(memory, of)))
    assert all(some == found[0] for some in found)
    assert len(found[0]) == 15


def test_a_reservoir_is_a_draw_without_favourites() -> None:
    """Over 400 draws of 10 out of 100, every place is taken about 40 times, six standard deviations at most away."""
    counts = np.zeros(100)
    for seed in range(400):
        ids = np.random.default_rng(seed).integers(0, 256, (100, 32), np.uint8)
        counts[sample(ids, None, 10)] += 1
    assert counts.sum() == 4000
    assert abs(counts - 40).max() < 6 * np.sqrt(400 * 0.1 * 0.9)


def test_a_balanced_sample_has_as_many_of_each_label() -> None:
    """Of 90 and 3 and 50: 3 of the rare one, and the rest shared; the lowest ids of each."""
    labels = np.repeat([0, 1, 2], [90, 3, 50])
    ids = np.random.default_rng(0).integers(0, 256, (143, 32), np.uint8)
    chosen = sample(ids, labels, 21)
    assert np.bincount(labels[chosen]).tolist() == [9, 3, 9]
    first = [ids[i].tobytes() for i in np.flatnonzero(labels == 0)]
    assert sorted(ids[i].tobytes() for i in chosen if labels[i] == 0) == sorted(first)[:9]
    rare = sample(ids[chosen], labels[chosen], 12)
    assert np.array_equal(chosen[rare], sample(ids, labels, 12))  # a sample of a sample is the smaller sample


def test_equal_examples_are_told_apart_by_their_number(of: Contract) -> None:
    """The third of three equal rows is another example than the first, and the same one tomorrow."""
    same = data(3, x={"x": np.ones((3, 3), np.float32)})
    ids = identities(same, of)
    assert len({row.tobytes() for row in ids}) == 3
    assert np.array_equal(ids, identities(same, of))


def test_a_run_replays_what_it_drew_first_and_nothing_of_its_own(tmp_path: Path, of: Contract) -> None:
    """Old examples among the data and those kept earlier, each once; what it trains on enters and is not drawn."""
    memory, rules = Replay(tmp_path / "site", "north"), ReplayRules(examples=100)
    memory.keep(of, rules, data(10), np.arange(10))
    now = data(20, 5)  # 5 to 9 are known from earlier, 5 to 12 old
    drawn = memory.drawn("run-1", of, rules, now, np.arange(8))
    assert rows(drawn) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    memory.keep(of, rules, now, np.arange(8, 20))
    again = Replay(tmp_path / "site", "north").drawn("run-1", of, rules, now, np.arange(8))
    assert again.x["x"].tobytes() == drawn.x["x"].tobytes()
    memory.keep(of, ReplayRules(examples=1), now, np.arange(8, 20))  # the memory forgets, the run does not
    again = Replay(tmp_path / "site", "north").drawn("run-1", of, rules, now, np.arange(8))
    assert again.x["x"].tobytes() == drawn.x["x"].tobytes()
    memory.keep(of, rules, data(10), np.arange(10))
    memory.keep(of, rules, now, np.arange(8, 20))
    assert rows(everything(memory, of, "run-2")) == list(range(25))[:10] + list(range(13, 25))


def test_age_and_size_are_limits(tmp_path: Path, of: Contract) -> None:
    """By the examples' own times, and by when they came where they have none; a MiB holds so many and no more."""
    clock = [100 * DAY_S]
    memory = Replay(tmp_path / "a", "north", lambda: clock[0])
    memory.keep(of, ReplayRules(examples=100, days=90), data(), np.arange(40))
    assert rows(everything(memory, of)) == list(range(10, 40))
    assert rows(everything(memory, of, "next", days=70)) == list(range(30, 40))
    timeless = Replay(tmp_path / "b", "north", lambda: clock[0])
    timeless.keep(of, ReplayRules(examples=100, days=2), data(10, time=None), np.arange(10))
    clock[0] += 1.5 * DAY_S
    timeless.keep(of, ReplayRules(examples=100, days=2), data(12, time=None), np.arange(2, 12))
    clock[0] += DAY_S
    assert rows(everything(timeless, of, days=2)) == [10, 11]
    memory.keep(of, ReplayRules(examples=100_000, max_mb=1), data(30_000), np.arange(30_000))
    every = memory.drawn("big", of, ReplayRules(examples=100_000, max_mb=9), data(1, 50_000), NONE)
    assert len(every) == (1 << 20) // (3 * 4 + 4 + 8 + 32 + 8)


def test_a_stricter_policy_counts_for_what_is_there(tmp_path: Path, of: Contract) -> None:
    """Fewer, younger, none: when the next run is prepared; a damaged memory is removed then."""
    memory = Replay(tmp_path / "site", "north", lambda: 100 * DAY_S)
    memory.keep(of, ReplayRules(examples=40), data(), np.arange(40))
    file = next((tmp_path / "site").glob("memory-*"))
    before = file.read_bytes()
    memory.enforce(ReplayRules(examples=40, days=101))
    assert file.read_bytes() == before
    memory.enforce(ReplayRules(examples=40, days=70))
    memory.enforce(ReplayRules(examples=4))
    found = rows(everything(memory, of))
    assert len(found) == 4
    assert min(found) >= 30
    file.write_bytes(b"nothing of ours")
    memory.enforce(ReplayRules(examples=4))
    assert not file.exists()
    memory.enforce(ReplayRules())
    assert not (tmp_path / "site").exists()


def test_examples_lie_encrypted_and_every_file_is_this_users_alone(tmp_path: Path, of: Contract) -> None:
    """No value of an example is found in any file; key and files 0600, the folder 0700; no two files have a nonce."""
    memory = Replay(tmp_path / "site", "north")
    memory.keep(of, ReplayRules(examples=100), data(), np.arange(40))
    everything(memory, of)
    files = list((tmp_path / "site").iterdir())
    assert len(files) == 3
    for file in files:
        assert file.stat().st_mode & 0o777 == 0o600
        assert np.float32(SECRET).tobytes() not in file.read_bytes()
    assert (tmp_path / "site").stat().st_mode & 0o777 == 0o700
    before = {file: file.read_bytes() for file in files if file.suffix == ".vault"}
    memory.keep(of, ReplayRules(examples=100), data(), np.arange(40))
    nonces = [content[19:31] for content in (*before.values(), next((tmp_path / "site").glob("memory*")).read_bytes())]
    assert len(set(nonces)) == 3


@pytest.mark.parametrize("place", [0, 20, 40, -1])
def test_a_vault_that_was_changed_is_damaged(tmp_path: Path, place: int) -> None:
    """One bit of the first line, the nonce, the content or the tag; another use of the file; another key."""
    vault, path = Vault(tmp_path / "key"), tmp_path / "file"
    assert vault.get(path, "use") is None
    vault.put(path, {"x": np.arange(5)}, "use")
    assert vault.get(path, "use")["x"].tolist() == [0, 1, 2, 3, 4]  # type: ignore[index]
    with pytest.raises(DamagedVault):
        vault.get(path, "other use")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedVault):
        vault.get(path, "use")
    content[place] ^= 1
    path.write_bytes(content)
    (tmp_path / "key").write_bytes(bytes(32))
    with pytest.raises(DamagedVault):
        vault.get(path, "use")


def test_changed_memory_counts_as_empty_and_is_said(
    tmp_path: Path, of: Contract, caplog: pytest.LogCaptureFixture
) -> None:
    """Also a file of another site, and one cut short; what is kept next is whole again."""
    memory, rules = Replay(tmp_path / "north", "north"), ReplayRules(examples=100)
    memory.keep(of, rules, data(), np.arange(40))
    file = next((tmp_path / "north").glob("memory*"))
    file.write_bytes(file.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        assert len(everything(memory, of)) == 0
    assert "as good as gone" in caplog.text
    memory.keep(of, rules, data(5), np.arange(5))
    assert rows(everything(memory, of, "next")) == [0, 1, 2, 3, 4]
    south = Replay(tmp_path / "south", "south")
    south.keep(of, rules, data(7), np.arange(7))
    stolen = next((tmp_path / "south").glob("memory*"))
    (tmp_path / "north" / "key").write_bytes((tmp_path / "south" / "key").read_bytes())
    file.write_bytes(stolen.read_bytes())
    assert len(everything(memory, of, "stolen")) == 0


def test_labels_are_known_by_name(tmp_path: Path, of: Contract) -> None:
    """A model with more labels, in another order, replays them as what they are called; one without some, not those."""
    memory, rules = Replay(tmp_path / "site", "north"), ReplayRules(examples=100)
    memory.keep(of, rules, data(10), np.arange(10))
    assert of.outputs[0].labels == ("no", "yes")

    def labelled(*labels: str) -> Contract:
        spec = of.outputs[0].model_copy(update={"labels": labels, "shape": (len(labels),), "kind": "multiclass"})
        return of.model_copy(update={"outputs": (spec,)})

    memory.keep(labelled("no", "yes"), rules, data(10), np.arange(10))
    grown = everything(memory, labelled("maybe", "yes", "no"), "grown")
    assert [grown.y["y"][grown.x["x"][:, 0] == row].item() for row in range(4)] == [2, 1, 2, 1]
    less = everything(memory, labelled("yes", "maybe"), "less")
    assert rows(less) == [1, 3, 5, 7, 9]
    assert set(less.y["y"].tolist()) == {0}


def test_old_runs_and_models_are_forgotten(tmp_path: Path, of: Contract) -> None:
    """The last ones stay; what a run drew goes after a month at most, or when the policy's days are over."""
    memory = Replay(tmp_path / "site", "north")
    for number in range(RUNS + 3):
        named = of.model_copy(update={"preprocessing": str(number)})
        memory.keep(named, ReplayRules(examples=100), data(3), np.arange(3))
        everything(memory, of, f"run-{number}")
    kinds = [file.name.partition("-")[0] for file in (tmp_path / "site").glob("*.vault")]
    assert (kinds.count("run"), kinds.count("memory")) == (RUNS, FORMS)
    late = Replay(tmp_path / "site", "north", lambda: 4e9)
    late.keep(of, ReplayRules(examples=100), data(3), np.arange(3))
    assert not list((tmp_path / "site").glob("run-*"))


def asks(run: str = "run-1", mode: str = "replay", share: float = 0.5) -> PrepareRequest:
    request = job()
    section = {"mode": mode, "since": SINCE, "replay": ReplaySection(share=share), "validation_fraction": 0.1}
    return request.model_copy(update={"run": run, "train": request.train.model_copy(update=section)})


def test_a_site_keeps_nothing_unless_its_policy_says_so(tmp_path: Path) -> None:
    """The default refuses the mode, keeps nothing in any other, and removes what was kept while it was allowed."""
    allowed, refused = Policy(replay=ReplayRules(examples=20)), Policy()
    chooser, site_data = Chooser("north", tmp_path / "replay", allowed), data(60)
    chooser.trained(asks(mode="continue"), site_data)
    assert len(list((tmp_path / "replay").glob("*/memory-*"))) == 1
    check_prepare(allowed, "clinics", asks(), NOON)
    with pytest.raises(DeclinedRequest, match="policy at replay"):
        check_prepare(refused, "clinics", asks(), NOON)
    chooser = Chooser("north", tmp_path / "replay", refused)
    chooser.check(asks(mode="continue"), site_data)
    assert not list((tmp_path / "replay").iterdir())
    chooser.trained(asks(mode="continue"), site_data)
    assert not list((tmp_path / "replay").iterdir())
    with pytest.raises(DeclinedRequest, match="policy at replay"):
        chooser.selection(asks(), site_data)
    assert "Keeps no example for later runs." in describe(refused)
    assert any("at most 20 examples, 64 MiB" in sentence for sentence in describe(allowed))


def test_rounds_that_are_asked_again_use_the_same_rows(tmp_path: Path) -> None:
    """In another process, after the site kept what it trained on: the same selection, round by round."""
    site_data, request = data(60), asks()
    chooser = Chooser("north", tmp_path, None)
    chosen = chooser.selection(request, site_data)
    assert chosen is not None
    assert chooser.counts(request, site_data) == (54, 6)  # 27 new, as many old
    assert chooser.selection(request, site_data) is chosen
    chooser.trained(request, site_data)
    other = Chooser("north", tmp_path, None).selection(request, data(60))
    assert other is not None
    for number in (1, 2):
        both = [some.data.x["x"][some.of_round(request.train, "north", number)].tobytes() for some in (chosen, other)]
        assert both[0] == both[1]
    held = set(parted(site_data, request.train, "north").held.tolist())
    assert not held & set(chosen.data.x["x"][chosen.of_round(request.train, "north", 1), 0].astype(int).tolist())


def test_a_later_run_replays_what_an_earlier_one_trained_on(tmp_path: Path) -> None:
    """The data of the first are gone from the file by then; the policy's number holds."""
    policy = Policy(replay=ReplayRules(examples=8))
    first = Chooser("north", tmp_path, policy)
    first.trained(asks("run-1", "incremental"), data(60))
    later = data(30, 100)
    chosen = Chooser("north", tmp_path, policy).selection(asks("run-2"), later)
    assert chosen is not None
    assert len(chosen.old) == 8
    assert chosen.data.x["x"][chosen.old, 0].max() < 60
    assert chosen.drawn == len(chosen.train) == 30


def test_old_examples_stay_when_the_data_lose_them(tmp_path: Path) -> None:
    """A run of the mode "replay" keeps the old ones among its data too, whatever it drew; none it validated on."""
    policy, site_data = Policy(replay=ReplayRules(examples=100)), data(60)
    parts = parted(site_data, asks().train, "north")
    first = Chooser("north", tmp_path, policy)
    for run, kept in (("run-1", 54), ("run-1", 0), ("run-2", 54)):  # nothing twice
        first.trained(asks(run), site_data)
        assert first.kept() == kept
    assert len(parts.mine) == 54 == 2 * len(parts.old)
    later = Chooser("north", tmp_path, policy).selection(asks("run-3"), data(30, 100))
    assert later is not None
    assert rows(later.data.take(later.old)) == parts.mine.tolist()
    again = Chooser("north", tmp_path, policy).selection(asks("run-1"), site_data)  # drawn before they entered
    assert again is not None
    assert rows(again.data.take(again.old)) == parts.old.tolist()
