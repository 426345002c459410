"""Small counts stay at the site, and noise has the distribution that is promised."""

import math
from fractions import Fraction

import numpy as np
import pytest

from client.checking.suppress import Guard, _Draws, hidden, laplace

KEY = b"k" * 32


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ([0, 7, 9], [0, 7, 9]),
        ([1, 4, 9], [-1, -1, 9]),
        ([3, 9, 0, 0], [-1, 9, -1, 0]),  # alone it would be what is missing to the total
        ([3, 9, 8], [-1, 9, 8]),  # no empty cell to hide it with
        ([5, 0], [5, 0]),
    ],
)
def test_small_cells_are_withheld_and_never_alone_beside_an_empty_one(counts: list[int], told: list[int]) -> None:
    """A count from 1 to 4 is -1; if it is the only one, an empty cell is -1 with it."""
    assert hidden(np.array(counts), 5).tolist() == told


def test_in_a_matrix_rows_and_columns_hide_nothing_alone() -> None:
    """Two hidden cells in each line that has an empty one to offer."""
    found = hidden(np.array([[90, 2, 0], [0, 80, 0], [0, 0, 70]]), 5)
    assert found[0, 1] == -1
    assert found.diagonal().tolist() == [90, 80, 70]
    assert {int(n) for n in [*(found == -1).sum(axis=0), *(found == -1).sum(axis=1)]} <= {0, 2, 3}


def test_noise_is_discrete_laplace() -> None:
    """At epsilon 1: P(0) = (1 - 1/e) / (1 + 1/e) = 0.462, P(-1) = P(1) = 0.170; 20,000 draws, five standard errors."""
    draws, n = _Draws(b"seed"), 20_000
    found = np.array([laplace(draws, Fraction(1)) for _ in range(n)])
    zero = (1 - math.exp(-1)) / (1 + math.exp(-1))
    for value, p in ((0, zero), (1, zero / math.e), (-1, zero / math.e), (3, zero / math.e**3)):
        assert abs((found == value).mean() - p) < 5 * math.sqrt(p * (1 - p) / n)
    variance = 2 * math.exp(-1) / (1 - math.exp(-1)) ** 2
    assert found.var() == pytest.approx(variance, rel=0.1)


def test_a_small_epsilon_is_wide_in_proportion() -> None:
    """The sum of confidences counts an example a thousand times: its noise is a thousand times as wide."""
    cells = np.full(400, 10**7)
    once, often = (Guard(5, 0.5, KEY).noise(cells, "f", unit=unit) for unit in (1, 1000))
    assert np.abs(often).mean() == pytest.approx(1000 * np.abs(once).mean(), rel=0.3)
    assert np.abs(once).mean() == pytest.approx(2, rel=0.3)  # about 1 / epsilon


def test_asking_again_brings_the_same_noise() -> None:
    """It follows from the site's key, the table and its counts: an average over requests is worth no more than one."""
    counts = np.arange(10, 60)
    guard = Guard(5, 0.3, KEY)
    first = guard.told(counts, "labels", "y", "recent")
    assert (first == guard.told(counts, "labels", "y", "recent")).all()
    others = (
        guard.told(counts, "labels", "y", "reference"),
        Guard(5, 0.3, b"j" * 32).told(counts, "labels", "y", "recent"),
        guard.told(counts + 1, "labels", "y", "recent") - 1,
    )
    assert all((first != other).any() for other in others)


def test_noisy_counts_are_neither_negative_nor_small() -> None:
    """What noise makes of a count is told as 0, withheld, or at least the smallest count; whatever the true one is."""
    told = Guard(5, 0.2, KEY).told(np.tile(np.arange(8), 50), "f")
    assert set(told[told < 5].tolist()) == {-1, 0}
    assert (told > 30).sum() < 5
