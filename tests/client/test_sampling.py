"""Which examples, in which order: deterministic, complete, and dependent on what it should depend on."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.sampling import MIN_COUNT, batches, in_order, seed_for, split
from fedretrain.job import TrainSection


def test_a_seed_is_the_same_everywhere() -> None:
    """Golden value: seeds must not change between versions, or a resumed run has other bits than an unbroken one."""
    assert seed_for("order", 7, "north", 3, 0) == 17028292824003099284


@given(count=st.integers(1, 400), fraction=st.floats(0, 0.99), seed=st.integers(0, 2**32 - 1))
def test_a_split_uses_every_example_once_and_leaves_some_to_train(count: int, fraction: float, seed: int) -> None:
    """Training and validation examples are disjoint, all of them, and at least one is trained on."""
    train, held = split(count, TrainSection(validation_fraction=fraction, seed=seed), "a")
    assert sorted([*train, *held]) == list(range(count))
    assert len(train) >= 1
    assert len(held) == 0 or len(held) >= MIN_COUNT


def test_too_few_validation_examples_are_trained_on_instead() -> None:
    """A tenth of 49 examples could not be reported, so nothing is held back; a tenth of 50 can."""
    sizes = [[len(part) for part in split(n, TrainSection(), "a")] for n in (49, 50)]
    assert sizes == [[49, 0], [45, 5]]


def test_a_split_depends_on_seed_and_site() -> None:
    """Two sites, or two seeds, hold back different examples."""
    held = [tuple(split(200, TrainSection(seed=s), site)[1]) for s, site in ((0, "a"), (0, "b"), (1, "a"), (0, "a"))]
    assert len(set(held)) == 3
    assert held[0] == held[3]


def test_epochs_are_permutations_and_the_last_batch_is_smaller() -> None:
    """Ten examples in batches of four, twice: 4, 4, 2, then another order of the same ten."""
    steps = list(batches(10, TrainSection(local_epochs=2, batch_size=4), "a", 1))
    assert [len(s) for s in steps] == [4, 4, 2, 4, 4, 2]
    first, second = (np.concatenate(part) for part in (steps[:3], steps[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second)


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_local_steps_counts_steps_across_epochs(steps: int) -> None:
    """local_steps ends in the middle of an epoch, and goes on into further ones."""
    found = list(batches(10, TrainSection(local_steps=steps, batch_size=4), "a", 1))
    whole = list(itertools.islice(batches(10, TrainSection(local_epochs=9, batch_size=4), "a", 1), steps))
    assert [list(b) for b in found] == [list(b) for b in whole]


def test_the_order_depends_on_round_site_and_seed() -> None:
    """Each of them gives another order; the same ones, the same."""

    def order(seed: int, site: str, round_: int) -> tuple[int, ...]:
        return tuple(np.concatenate(list(batches(50, TrainSection(seed=seed), site, round_))))

    assert len({order(0, "a", 1), order(1, "a", 1), order(0, "b", 1), order(0, "a", 2)}) == 4
    assert order(0, "a", 1) == order(0, "a", 1)


def test_in_order_covers_everything_once() -> None:
    """Evaluation sees each example once, in order."""
    assert [list(b) for b in in_order(5, 2)] == [[0, 1], [2, 3], [4]]
