"""Krum against numbers derived by hand and against its definition, and its hold against bad sites."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedretrain.errors import RejectedUpdate, RunFailed
from strategies.krum import KrumMean, gram, scores

from .rounds import aggregate, built


def test_five_sites_by_hand() -> None:
    """n = 5, f = 1, two nearest each: of 0, 1, 3, 7, 100 the scores are 10, 5, 13, 52, 18058; 1 is kept."""
    values = np.float32([[0], [1], [3], [7], [100]])
    assert scores(gram([values]), nearest=2).tolist() == [10, 5, 13, 52, 97**2 + 93**2]
    assert KrumMean(0.2, keep=1).select([values]) == [1]
    assert KrumMean(0.2, keep=2).select([values]) == [0, 1]
    sent = [[v] for v in values]
    assert aggregate(built("krum"), sent, [1, 1, 1, 1, 10**6])[0][0] == 1
    assert aggregate(built("krum", keep=2), sent, [1] * 5)[0][0] == 0.5
    assert aggregate(built("krum", keep=99), sent, [1] * 5)[0][0] == 0.5  # never more than n - f - 2


@given(st.integers(3, 12), st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_scores_are_those_of_the_definition(sites: int, bad: int, seed: int) -> None:
    """Against squared distances taken one by one, whatever the pieces the updates come in."""
    nearest = max(1, sites - bad - 2)
    values = np.random.default_rng(seed).normal(size=(sites, 50)).astype(np.float32)
    exact = values.astype(np.float64)
    apart = np.square(exact[:, None] - exact[None]).sum(axis=2)
    expected = [np.sort(np.delete(apart[i], i))[:nearest].sum() for i in range(sites)]
    np.testing.assert_allclose(scores(gram([values[:, :13], values[:, 13:]]), nearest), expected, rtol=1e-9)


def test_colluding_sites_are_not_kept() -> None:
    """Three of ten send the same far update, which is 0 apart from two others: the nearest six are honest ones."""
    rng = np.random.default_rng(0)
    honest, bad = rng.normal(size=(7, 400)), np.full((3, 400), 5.0)
    assert set(KrumMean(0.3, keep=5).select([np.concatenate([bad, honest])])) <= set(range(3, 10))


def test_too_few_sites_are_refused() -> None:
    """The paper's 2 f + 2 < n: two of six sites cannot be held off, and two sites leave nothing to choose."""
    for sites, share, needed in ((6, 0.4, 7), (2, 0.0, 3)):
        with pytest.raises(RunFailed, match=rf"expected at least {needed} updates to hold off \d, got {sites}"):
            KrumMean(share, keep=1).select([np.zeros((sites, 3), np.float32)])


def test_numbers_that_cannot_be_squared_are_refused() -> None:
    """The distance of such an update is no number."""
    with pytest.raises(RejectedUpdate, match="not-finite"):
        gram([np.full((3, 2), 1e200)])
