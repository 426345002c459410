"""FedAvgM against numbers derived by hand."""

import numpy as np

from .rounds import built


def test_two_rounds_by_hand() -> None:
    """β = 0.5, η = 2, Δ = 1 in both rounds, from x = 0.

    u = 0.5·0 + 2·1 = 2, x = 2;  u = 0.5·2 + 2·1 = 3, x = 5.
    """
    server = built("fedavgm", server_momentum=0.5, server_learning_rate=2.0).server
    params, seen = [np.float32([0])], []
    state = server.init(params)
    for _ in range(2):
        state, params = server.apply(state, params, [np.float32([1])])
        seen.append(float(params[0][0]))
    assert seen == [2, 5]


def test_the_papers_form_has_the_same_bits_where_eta_is_one() -> None:
    """v ← β v + Δ, x ← x + v in NumPy float32, over five rounds of random updates."""
    server, rng = built("fedavgm", server_momentum=0.9).server, np.random.default_rng(0)
    x, v = rng.normal(size=9).astype(np.float32), np.zeros(9, np.float32)
    params = [x]
    state = server.init(params)
    for _ in range(5):
        delta = rng.normal(size=9).astype(np.float32)
        state, params = server.apply(state, params, [delta])
        v = np.float32(0.9) * v + delta
        x = x + v
        np.testing.assert_array_equal(params[0], x)


def test_without_momentum_it_is_fedavg() -> None:
    """β = 0 and η = 1 is the plain sum, and keeps no state."""
    assert built("fedavgm", server_momentum=0.0).server == built("fedavg").server
