"""The coordinate-wise median against numbers derived by hand, and its hold against bad sites."""

import numpy as np
import pytest

from .rounds import aggregate, built


def median(*values: float) -> float:
    sent = [[np.float32([v])] for v in values]
    return float(aggregate(built("median"), sent, [10**6, *[1] * (len(values) - 1)])[0][0])


@pytest.mark.parametrize(
    ("values", "expected"),
    [((4,), 4), ((4, 1), 2.5), ((100, 1, 2), 2), ((100, 2, 1, 3), 2.5), ((1e6, 1e6, 1, 2, 3), 3)],
)
def test_small_numbers_of_sites_by_hand(values: tuple[float, ...], expected: float) -> None:
    """Odd: the middle value. Even: the mean of the two in the middle. The first site's million examples buy nothing."""
    assert median(*values) == expected


def test_fewer_than_half_cannot_leave_the_others_range() -> None:
    """Three of seven sites collude: every coordinate stays between the least and the greatest honest value."""
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(4, 50)).astype(np.float32)
    bad = np.full((3, 50), 1e5, np.float32) * rng.choice([-1, 1], size=50)
    (got,) = aggregate(built("median"), [[u] for u in np.concatenate([bad, honest]).astype(np.float32)], [1] * 7)
    assert ((honest.min(axis=0) <= got) & (got <= honest.max(axis=0))).all()


@pytest.mark.parametrize("name", ["median", "trimmed_mean"])
def test_the_sign_of_zero_does_not_depend_on_the_order_of_sites(name: str) -> None:
    """-0.0 and 0.0 are equal in any order of sites; the result is 0.0 with the same bits."""
    for values in ((-0.0, 0.0, -0.0), (0.0, -0.0, -0.0), (-0.0, -0.0, 0.0)):
        (got,) = aggregate(built(name), [[np.float32([v])] for v in values], [1, 1, 1])
        assert got.tobytes() == np.float32([0.0]).tobytes()
