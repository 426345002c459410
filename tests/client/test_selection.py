"""What of a site's data a run trains on, with rows counted by hand."""

import dataclasses
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from client.sampling import repeated, split
from client.selection import parted, select, selects
from fedretrain.dataset import Dataset
from fedretrain.errors import DataMismatch, DeclinedRequest
from fedretrain.job import NamedConfig, ReplaySection
from fedretrain.messages import PrepareRequest
from strategies.recency import DAY_S, weights

from .guarded import job

SINCE = datetime(1970, 1, 31, tzinfo=UTC)  # day 30
ROWS = 100
DATA = Dataset(
    x={"x": np.arange(ROWS, dtype=np.float32).reshape(ROWS, 1)},
    y={"y": np.arange(ROWS, dtype=np.int32) % 2},
    time=np.arange(ROWS) * DAY_S,
)  # one example a day: 30 old ones, 70 new ones


def asks(*objectives: dict[str, Any], **train: Any) -> PrepareRequest:
    request = job()
    strategy = NamedConfig(name="fedavg", objectives=list(objectives)) if objectives else request.strategy
    section = request.train.model_copy(update={"validation_fraction": 0.1, **train})
    return request.model_copy(update={"train": section, "strategy": strategy})


def test_without_words_about_time_the_split_is_the_one_there_ever_was() -> None:
    """And a job that selects nothing is not even looked at."""
    request = asks()
    mine, held = split(ROWS, request.train, "north")
    parts = parted(DATA, request.train, "north")
    assert not selects(request)
    assert (parts.old.size, parts.new.tolist(), parts.held.tolist()) == (0, mine.tolist(), held.tolist())
    assert not selects(asks(since=SINCE))


@pytest.mark.parametrize("mode", ["continue", "incremental", "replay"])
def test_every_mode_validates_on_the_same_old_and_new_examples(mode: str) -> None:
    """A tenth of each; what is trained on is none of them."""
    request = asks(mode=mode, since=SINCE)
    parts = parted(DATA, request.train, "north")
    assert [np.count_nonzero(parts.held < 30), np.count_nonzero(parts.held >= 30)] == [3, 7]
    assert parts.held.tolist() == parted(DATA, asks(since=SINCE).train, "north").held.tolist()
    assert sorted([*parts.old, *parts.new, *parts.held]) == list(range(ROWS))
    assert max(parts.old) < 30 <= min(parts.new)


def test_few_validation_examples_are_none_and_each_part_keeps_one_to_train_on() -> None:
    """Of 2 old and 3 new examples none is held; a part of one is never held whole."""
    few = DATA.take(np.array([28, 29, 30, 31, 32]))
    assert parted(few, asks(since=SINCE, validation_fraction=0.5).train, "north").held.size == 0
    lone = DATA.take(np.array([29, *range(30, 60)]))
    assert parted(lone, asks(since=SINCE, validation_fraction=0.99).train, "north").old.tolist() == [0]


def test_incremental_trains_on_new_examples_alone() -> None:
    """63 of 70; without ``since`` on all of them; where nothing is new the site says so."""
    chosen = select(asks(mode="incremental", since=SINCE), DATA, "north")
    assert (chosen.examples, len(chosen.held)) == (63, 10)
    assert min(chosen.train) >= 30
    assert select(asks(mode="incremental"), DATA, "north").examples == 90
    later = datetime(2026, 1, 1, tzinfo=UTC)
    with pytest.raises(DeclinedRequest, match=r"no-new-data at train.since: expected .* since 2026-01-01 00:00:00 UTC"):
        select(asks(mode="incremental", since=later), DATA, "north")


def test_times_are_needed_where_they_decide() -> None:
    """By name of what needs them; a job that only says since when goes on without."""
    timeless = dataclasses.replace(DATA, time=None)
    for request in (
        asks(mode="incremental", since=SINCE),
        asks({"name": "recency", "half_life_days": 3}),
        asks({"name": "window", "examples": 3}),
    ):
        with pytest.raises(DataMismatch, match="data-missing at timestamp"):
            select(request, timeless, "north")
    assert parted(timeless, asks(since=SINCE).train, "north").old.size == 0


def test_a_window_leaves_out_and_recency_weighs_what_is_left() -> None:
    """20 days before day 99; weights by hand; what is validated on keeps its weights."""
    data = dataclasses.replace(DATA, sample_weight=np.full(ROWS, 2, np.float32))
    chosen = select(asks({"name": "recency", "half_life_days": 5}, {"name": "window", "days": 20}), data, "north")
    newest = max(parted(DATA, asks().train, "north").new)
    assert min(chosen.train) > newest - 20
    found = chosen.data.sample_weight
    assert found is not None
    assert DATA.time is not None
    assert found[chosen.train] == pytest.approx(2 * weights(DATA.time[chosen.train], 5), rel=1e-6)
    assert set(found[chosen.held]) == {2}
    assert chosen.data.x["x"] is data.x["x"]
    late = asks({"name": "window", "days": 1, "until": "1960-01-01"})
    with pytest.raises(DeclinedRequest, match="no-new-data at objective window"):
        select(late, DATA, "north")


def test_replay_adds_its_share_of_old_examples() -> None:
    """A quarter of a round: 21 beside 63 new ones, from 10 kept ones, so each twice and one three times."""
    request = asks(
        {"name": "recency", "half_life_days": 5}, mode="replay", since=SINCE, replay=ReplaySection(share=0.25)
    )
    kept = dataclasses.replace(DATA.take(np.arange(10)), time=None)
    chosen = select(request, DATA, "north", kept)
    rounds = [chosen.of_round(request.train, "north", round_) for round_ in (1, 2, 1)]
    assert chosen.examples == len(rounds[0]) == 84
    days = chosen.data.x["x"][rounds[0], 0]
    assert np.count_nonzero(days < 30) == 21
    assert sorted(np.bincount(days[days < 30].astype(int))) == [2] * 9 + [3]
    assert rounds[0].tolist() == rounds[2].tolist() != rounds[1].tolist()
    assert sorted(chosen.data.x["x"][chosen.held, 0]) == parted(DATA, request.train, "north").held.tolist()
    assert chosen.data.sample_weight is not None
    assert set(chosen.data.sample_weight[chosen.old]) == {1}
    assert chosen.data.time is None


def test_replay_without_anything_kept_trains_on_what_is_new() -> None:
    """As in the first run of a federation."""
    request = asks(mode="replay", since=SINCE)
    assert select(request, DATA, "north", DATA.take(np.arange(0))).examples == 63
    assert repeated(np.arange(0), 5, request.train, "north", 1).size == 0
