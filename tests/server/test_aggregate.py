"""From a round's updates to the next global values: sums made elsewhere, and rules that need all updates at once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedretrain.contract import VariableSpec
from fedretrain.errors import RunFailed
from fedretrain.job import NamedConfig
from server.aggregate import BuiltIn, Contribution
from server.checkpoint import Checkpoint
from server.spool import Spool
from strategies import make
from strategies.base import Arrays, Strategy

SPECS = (
    VariableSpec(shape=(100_001, 2), dtype="float32", rule="train"),
    VariableSpec(shape=(), dtype="float32", rule="average"),
    VariableSpec(shape=(0,), dtype="float32", rule="train"),
)
SITES = {name: seed for seed, name in enumerate("abcde")}


def update(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=spec.shape), np.float32) for spec in SPECS]


def method(name: str, **settings: Any) -> BuiltIn:
    strategy = make(NamedConfig(name=name, **settings))
    assert isinstance(strategy, Strategy)
    return BuiltIn(strategy, SPECS)


def advanced(rule: BuiltIn, spool: Spool, arriving: str) -> list[bytes]:
    """The global values after a round that began with zeros, as bytes."""
    before = Checkpoint("r", "c", 0, [np.zeros_like(a) for a in update(0)], {}, (), ())
    collector = rule.collect(spool, 5, at_once=True)
    for site in arriving:
        collector.add(site, update(SITES[site]), 1)
    _, params = rule.advance(collector, [Contribution(site, 0, 1, {}) for site in sorted(arriving)], before, 1.0)
    return [values.tobytes() for values in params]


@pytest.mark.parametrize(
    ("name", "settings"), [("median", {}), ("trimmed_mean", {}), ("krum", {}), ("krum", {"keep": 2})]
)
def test_memory_and_order_do_not_change_a_bit(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    """All of a variable at once, or a mebibyte at a time with the sites the other way round: the same global values."""
    results = []
    for arriving, memory in (("abcde", 1 << 30), ("edcba", 1 << 20)):
        with Spool(tmp_path, SPECS) as spool:
            results.append(advanced(method(name, **settings, memory_bytes=memory), spool, arriving))
    assert results[0] == results[1]


def test_krum_keeps_whole_updates(tmp_path: Path) -> None:
    """One site is chosen for all variables, and its update is taken as it is."""
    with Spool(tmp_path, SPECS) as spool:
        result = advanced(method("krum"), spool, "abcde")
    assert result in [[values.tobytes() for values in update(seed)] for seed in SITES.values()]


def test_updates_folded_elsewhere_count_alike(tmp_path: Path) -> None:
    """Three sites folded into a state of a worker's and two here have the bits of five folded here."""
    rule, results = method("fedavg"), []
    with Spool(tmp_path, SPECS) as spool:
        for here in ("abcde", "ad"):
            collector = rule.collect(spool, 5, at_once=True)
            aggregation, state = collector.empty()
            for site, seed in SITES.items():
                if site in here:
                    collector.add(site, update(seed), 1)
                else:
                    state = aggregation.fold(state, update(seed), 1)
            collector.merge(state)
            results.append([values.tobytes() for values in collector.mean()])
    assert results[0] == results[1]


def test_what_waits_on_disk_is_folded_by_nobody(tmp_path: Path) -> None:
    """A median, and a round whose updates are not final on arrival, have no state to hand out."""
    with Spool(tmp_path, SPECS) as spool:
        for name, at_once in (("median", True), ("fedavg", False)):
            collector = method(name).collect(spool, 5, at_once=at_once)
            assert not collector.folds
            with pytest.raises(RunFailed, match="not folded on arrival"):
                collector.empty()
