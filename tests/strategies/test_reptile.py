"""Reptile against numbers derived by hand."""

import numpy as np
import pytest

from strategies.reptile import MOST_SITES

from .rounds import aggregate, built


def test_one_round_by_hand() -> None:
    """Changes 1 and 3 of sites with 1 and 99 examples have the mean 2; with ε = 0.25, x = 10 goes to 10.5."""
    strategy = built("reptile", step_size=0.25)
    update = aggregate(strategy, [[np.float32([1])], [np.float32([3])]], [1, 99])
    assert update[0] == 2
    _, params = strategy.server.apply(strategy.server.init([np.float32([10])]), [np.float32([10])], update)
    assert params[0] == 10.5


@pytest.mark.parametrize("examples", [1, 10**9])
def test_how_many_examples_there_are_does_not_matter(examples: int) -> None:
    """One site of a thousand million examples is not refused for lack of resolution, and its change arrives whole."""
    update = aggregate(built("reptile"), [[np.float32([1e-3])]], [examples])
    assert float(update[0][0]) == pytest.approx(1e-3, abs=2**-26)
    assert MOST_SITES * 2**20 * 2**25 < 2**62
