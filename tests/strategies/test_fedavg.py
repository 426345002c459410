"""FedAvg against numbers derived by hand."""

import numpy as np

from .rounds import aggregate, built


def test_two_sites_by_hand() -> None:
    """x = (1, 2); 1 example returns (2, 2), 3 examples return (3, 0).

    Updates (1, 0) and (2, -2); Δ = ((1·1 + 3·2)/4, (1·0 + 3·(-2))/4) = (1.75, -1.5).
    η = 1: x = (2.75, 0.5).  η = 0.5: x = (1 + 0.875, 2 - 0.75) = (1.875, 1.25).
    """
    x, sent = [np.float32([1, 2])], [[np.float32([1, 0])], [np.float32([2, -2])]]
    for eta, expected in ((1.0, [2.75, 0.5]), (0.5, [1.875, 1.25])):
        strategy = built("fedavg", server_learning_rate=eta)
        delta = aggregate(strategy, sent, [1, 3])
        np.testing.assert_array_equal(delta[0], [1.75, -1.5])
        _, params = strategy.server.apply(strategy.server.init(x), x, delta)
        np.testing.assert_array_equal(params[0], expected)
