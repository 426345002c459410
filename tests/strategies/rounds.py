"""A round as the server plays it, without a server: what the tests of strategies have in common."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedretrain.contract import VariableSpec
from fedretrain.job import NamedConfig
from strategies import make
from strategies.base import Arrays, Selecting, Strategy, Streaming

NEEDED: dict[str, dict[str, Any]] = {
    "fgsm": {"epsilon": 0.5},
    "pgd": {"epsilon": 0.5, "steps": 2},
    "recency": {"half_life_days": 30},
    "window": {"days": 30},
}
"""Settings without which an objective cannot be named, and those that make it quick."""


def built(name: str, **settings: Any) -> Strategy:
    strategy = make(NamedConfig(name=name, **settings))
    assert isinstance(strategy, Strategy)
    return strategy


def specs_of(arrays: Arrays, rule: Any = "train") -> list[VariableSpec]:
    return [VariableSpec(shape=a.shape, dtype=a.dtype.name, rule=rule) for a in arrays]


def aggregate(strategy: Strategy, updates: Sequence[Arrays], weights: Sequence[int], total: int = 0) -> Arrays:
    """The aggregated update; updates in the order they arrive."""
    if isinstance(strategy.aggregation, Streaming):
        state = strategy.aggregation.init(specs_of(updates[0]), total or sum(weights))
        for update, weight in zip(updates, weights, strict=True):
            state = strategy.aggregation.fold(state, update, weight)
        return strategy.aggregation.finish(state)
    counts = np.array(weights)
    stacks = [np.stack([u[i].reshape(-1) for u in updates]) for i in range(len(updates[0]))]
    if isinstance(strategy.aggregation, Selecting):
        by_name = sorted(range(len(updates)), key=lambda i: bits(updates[i]))  # what does not depend on arrival
        kept = [by_name[row] for row in strategy.aggregation.select([stack[by_name] for stack in stacks])]
        counts, stacks = counts[kept], [stack[kept] for stack in stacks]
    return [
        strategy.aggregation.reduce(stack, counts).reshape(a.shape) for stack, a in zip(stacks, updates[0], strict=True)
    ]


def bits(arrays: Arrays) -> list[tuple[str, tuple[int, ...], bytes]]:
    """What two equal lists of arrays have in common, to the last bit."""
    assert all(isinstance(a, np.ndarray) for a in arrays)
    return [(a.dtype.name, a.shape, a.tobytes()) for a in arrays]
