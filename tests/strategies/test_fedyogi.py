"""FedYogi against numbers derived by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.fedyogi import Signed

from .rounds import built


def test_one_round_by_hand() -> None:
    """τ = 3, so v = 9; η = 4, β1 = 0.5, β2 = 0.2, from x = 0. One coordinate lowers v, one raises it.

    Δ = 2.5: Δ² = 6.25 < 9,  v = 9 - 0.8·6.25 = 4,  m = 1.25, x = 4·1.25/(2 + 3) = 1.
    Δ = 30:  Δ² = 900 > 9,   v = 9 + 0.8·900 = 729, m = 15,   x = 4·15/(27 + 3)  = 2.
    """
    server = built("fedyogi", tau=3.0, server_learning_rate=4.0, beta_1=0.5, beta_2=0.2).server
    x = [np.float32([0, 0])]
    state, (stepped,) = server.apply(server.init(x), x, [np.float32([2.5, 30])])
    assert state[1] == pytest.approx([4, 729])
    assert stepped == pytest.approx([1, 2])


@given(st.floats(0, 1e6, width=32), st.floats(0, 1e6, width=32), st.floats(0, 0.999))
def test_v_never_becomes_negative(v: float, delta: float, beta_2: float) -> None:
    """From v >= 0 no update leads below 0, so that the root exists."""
    assert Signed(beta_2)(np.float32([v]), np.square(np.float32([delta])))[0] >= 0
