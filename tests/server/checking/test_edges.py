"""Edges of histograms from numbers."""

import numpy as np

from server.checking.edges import edges


def test_quantiles_make_cells_of_equal_size() -> None:
    """0 to 99 in four cells: 24.75, 49.5, 74.25, with 25 numbers in each."""
    assert edges(np.arange(100.0), 4) == (24.75, 49.5, 74.25)


def test_ties_are_merged_and_no_cell_is_empty_at_the_beginning() -> None:
    """Half of them 0: the quantiles that are 0 would make cells that nothing is in."""
    numbers = np.concatenate([np.zeros(50), np.arange(1.0, 51.0)])
    found = edges(numbers, 4)
    assert found == tuple(sorted(set(found)))
    assert all(edge > 0 for edge in found)
    rare = np.concatenate([np.zeros(990), np.arange(1.0, 11.0)])  # every quantile is 0
    assert edges(rare, 4) == (1.0,)


def test_few_values_are_told_apart_and_one_value_from_all_others() -> None:
    """0 and 1 make two cells; a constant makes those below, at and above it."""
    assert edges(np.array([0.0, 1, 1, 0]), 4) == (1.0,)
    assert edges(np.array([3.0, 1, 2]), 4) == (2.0, 3.0)
    low, high = edges(np.full(5, 7.0), 4)
    assert low == 7.0 < high == np.nextafter(7.0, 8.0)
