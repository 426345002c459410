"""Rounds whose updates are folded in the workers: as by messages, bit for bit, whatever a site or a worker does."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedretrain.simsites import SiteSource
from server.checkpoint import Checkpoint
from server.prepare import Site
from simulations.engine import LocalGrid
from simulations.memory import Memory, extent, shapes_of
from simulations.pool import WorkerPool
from simulations.together import LARGEST_GROUP, grouped
from simulations.worker import Sites
from tests.server.parts import Loop, bits

NUMBERS = "tests.simulations.numbers:Numbers"
HONEST = ("a", "bb", "ccc", "dddd", "e")


class ByMessage(LocalGrid):
    """The engine as it would be without combining."""

    combines = False


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerPool]:
    with WorkerPool(2, logs=tmp_path_factory.mktemp("logs"), handler=NUMBERS) as pool:
        yield pool


def run(out: Path, pool: WorkerPool, names: tuple[str, ...], kind: type[LocalGrid] = LocalGrid, **job: Any) -> Any:
    """The state after the last round, and the loop with its events."""
    sites = Sites({name: SiteSource(name, Path("/nowhere")) for name in names}, Path("/nowhere"))
    with kind(sites, pool=pool) as grid:
        loop = Loop(out, [], grid, **job)  # type: ignore[arg-type]
        return loop.run(), loop


def told(loop: Loop, state: Checkpoint) -> tuple[list[str], list[str]]:
    """Events and records without their seconds, in an order that arrival does not decide."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(v) for key, v in value.items() if key != "seconds"}
        return [timeless(v) for v in value] if isinstance(value, list | tuple) else value

    events = sorted(json.dumps(timeless(event), sort_keys=True) for event in loop.events)
    return events, [json.dumps(timeless(record), sort_keys=True) for record in state.history]


@pytest.mark.parametrize("settings", [{}, {"max_update_norm": 50.0}], ids=["bound-by-others", "bound-by-the-job"])
def test_combining_comes_to_what_messages_come_to(tmp_path: Path, pool: WorkerPool, settings: dict[str, Any]) -> None:
    """Parameters, events, records and bytes: with updates out of bounds in any round, NaN and refusals."""
    names = (*HONEST, "boast-1", "boast-3", "burst-1", "nan-2", "refuses")
    by_message, messages = run(tmp_path / "messages", pool, names, ByMessage, **settings)
    combined, loop = run(tmp_path / "combined", pool, names, **settings)
    assert bits(combined) == bits(by_message)
    assert told(loop, combined) == told(messages, by_message)
    assert combined.norms == by_message.norms
    codes = {(number, site): code for number, site, code in loop.quarantined()}
    assert (codes[1, "boast-1"], codes[3, "boast-3"], codes[2, "nan-2"]) == ("norm", "norm", "not-finite")


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_no_bit(tmp_path: Path, pool: WorkerPool, workers: int) -> None:
    """Sums made apart are the sums made at once."""
    expected, _ = run(tmp_path / "two", pool, (*HONEST, "boast-2"))
    with WorkerPool(workers, handler=NUMBERS) as other:
        assert bits(run(tmp_path / "other", other, (*HONEST, "boast-2"))[0]) == bits(expected)


def test_a_site_that_kills_its_worker_costs_itself_alone(tmp_path: Path, pool: WorkerPool) -> None:
    """Its group is asked again by messages; it is late, the others count as if it had been silent."""
    state, loop = run(tmp_path / "1", pool, (*HONEST, "die"))
    assert loop.quarantined() == [(2, "die", "late")]
    assert [len(record["admitted"]) for record in state.history] == [6, 5, 6]
    by_message, _ = run(tmp_path / "2", pool, (*HONEST, "die"), ByMessage)
    assert bits(state) == bits(by_message)


def test_a_site_that_hangs_is_late_and_the_round_ends_in_time(tmp_path: Path, pool: WorkerPool) -> None:
    """What its group had done by the deadline counts; its worker is replaced."""
    state, loop = run(tmp_path, pool, (*HONEST, "hang"), deadline_s=3.0, min_sites=1)
    assert (2, "hang", "late") in loop.quarantined()
    assert {number for number, _, _ in loop.quarantined()} == {2}
    assert state.history[1]["admitted"]
    assert state.history[1]["seconds"] < 8


def test_sites_are_dealt_evenly_and_stay_where_they_were() -> None:
    """Every site once; places within one site of each other; groups bounded; most sites at the place of their node."""
    sites = [Site(f"s{n:03d}", n, 600, 0) for n in range(1, 201)]
    asked = [sites[n] for n in np.random.default_rng(1).permutation(200)[:150]]
    groups = grouped(asked, 2)
    assert sorted(site.node for _, group in groups for site in group) == sorted(site.node for site in asked)
    loads = [sum(len(group) for place, group in groups if place == p) for p in (0, 1)]
    assert abs(loads[0] - loads[1]) <= 1
    assert max(len(group) for _, group in groups) <= LARGEST_GROUP
    at_home = sum(site.node % 2 == place for place, group in groups for site in group)
    assert at_home > 0.8 * len(asked)


def test_a_large_site_is_dealt_first() -> None:
    """One site as large as all others together has a place for itself."""
    sites = [Site(f"s{n}", n, 10, 0) for n in range(9)] + [Site("large", 9, 90, 0)]
    assert sorted(sum(s.train_examples for s in group) for _, group in grouped(sites, 2)) == [90, 90]


def test_memory_is_seen_through_every_view_of_it() -> None:
    """Aligned arrays, views made before it grew included."""
    memory = Memory.create()
    arrays = [np.arange(5, dtype=np.float32), np.asarray(2.5), np.empty((0, 3), np.int64), np.eye(3, dtype=np.int64)]
    shapes = shapes_of(arrays)
    memory.reserve(extent(shapes))
    before = memory.arrays(0, shapes)
    memory.reserve(100 + 2 * extent(shapes))
    for there, values in zip(memory.arrays(0, shapes), arrays, strict=True):
        there[...] = values
    memory.arrays(extent(shapes), shapes)[0][...] = 7
    assert all((a == b).all() for a, b in zip(before, arrays, strict=True))
    assert all(a.ctypes.data % 64 == 0 for a in before)
    memory.close()
