"""The trimmed mean against numbers derived by hand, and what it does with few sites."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.errors import ConfigurationError
from fedretrain.job import NamedConfig
from strategies import make
from strategies.trimmed_mean import TrimmedMean

from .rounds import aggregate, built


def test_five_sites_by_hand() -> None:
    """β = 0.2 of 5 sites cuts 1 at each end: of 100, 1, 2, 6, -50 remain 1, 2, 6 with mean 3."""
    sent = [[np.float32([v])] for v in (100, 1, 2, 6, -50)]
    assert aggregate(built("trimmed_mean", trim=0.2), sent, [1, 1, 1, 10**6, 1])[0][0] == 3


def test_too_few_sites_are_not_trimmed() -> None:
    """β = 0.2 of 4 sites cuts floor(0.8) = 0: the plain mean, the bad site included."""
    sent = [[np.float32([v])] for v in (100, 1, 2, 1)]
    assert aggregate(built("trimmed_mean", trim=0.2), sent, [1, 1, 1, 1])[0][0] == 26


def test_trim_is_read_as_the_decimal_it_is() -> None:
    """0.29 of 100 sites is 29, though 0.29 · 100 is 28.999… in binary."""
    assert TrimmedMean(0.29).cut(100) == 29


@given(st.floats(0, 0.5, exclude_max=True), st.integers(1, 1000))
def test_at_least_one_value_stays(trim: float, sites: int) -> None:
    """For every valid trim and number of sites something is left to average."""
    assert sites - 2 * TrimmedMean(trim).cut(sites) >= 1


@pytest.mark.parametrize("trim", [0.5, 0.7, -0.1, "0.1", True])
def test_trim_outside_its_range_is_refused(trim: object) -> None:
    """Half or more would leave nothing; text is no number."""
    with pytest.raises(ConfigurationError, match=r"^strategy\.trim: expected [^\n]*$"):
        make(NamedConfig.model_validate({"name": "trimmed_mean", "trim": trim}))
