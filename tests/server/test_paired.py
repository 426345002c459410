"""The paired bounds: published and hand-derived numbers, measured coverage, and what must not matter."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from server.paired import (
    Comparison,
    Z,
    auc,
    examples_needed,
    matched,
    mean,
    mean_bounded,
    tango_lower,
)

Floats = NDArray[Any]
Z_TWO_SIDED = 1.959964


def lower(found: Comparison) -> float:
    assert found.lower is not None
    return found.lower


def upper(found: Comparison) -> float:
    assert found.upper is not None
    return found.upper


@pytest.mark.parametrize(
    ("counts", "z", "limits"),
    [
        ((1, 7, 21), Z_TWO_SIDED, "-0.517 -0.026"),  # Bentur et al. 2009, in Fagerland, Lydersen, Laake (2017), ch. 8
        ((6, 16, 161), Z_TWO_SIDED, "-0.1240 -0.0054"),  # Cavo et al. 2012, ibidem
        ((28, 25, 618), Z, "-0.0148 0.0247"),  # R's PropCIs::scoreci.mp(25, 28, 618, 0.90)
    ],
)
def test_tango_agrees_with_published_intervals(counts: tuple[int, int, int], z: float, limits: str) -> None:
    """The score interval has the limits that textbooks and R print."""
    gained, lost, n = counts
    low, high = float(tango_lower(gained, lost, n, z)), -float(tango_lower(lost, gained, n, z))
    digits = len(limits.split(maxsplit=1)[0].split(".")[1])
    assert f"{low:.{digits}f} {high:.{digits}f}" == limits


def test_tango_without_disagreement_is_wilson() -> None:
    """b = c = 0: n delta^2 = z^2 (-delta) (1 + delta), so delta = -z^2 / (n + z^2); at n = 500 -2.7055 / 502.7055."""
    assert float(tango_lower(0, 0, 500)) == pytest.approx(-2.705543 / 502.705543, abs=1e-8)
    assert float(tango_lower(0, 0, 10**6)) == pytest.approx(-2.705543e-6, rel=1e-4)


def test_tango_with_gains_only_on_every_example() -> None:
    """b = n, c = 0: q = (1 - delta) / 2, so n (1 - delta) = z^2 (1 + delta) and delta = (n - z^2) / (n + z^2)."""
    assert float(tango_lower(50, 0, 50)) == pytest.approx((50 - Z**2) / (50 + Z**2), abs=1e-10)
    assert float(tango_lower(0, 50, 50)) == -1.0


def matched_case(rng: np.random.Generator, cases: int, n: int, difference: float, disagreement: float) -> Any:
    """Counts (gained, lost) of simulated holdouts."""
    p = [(disagreement + difference) / 2, (disagreement - difference) / 2, 1 - disagreement]
    counts = rng.multinomial(n, p, size=cases)
    return counts[:, 0], counts[:, 1]


def test_a_model_two_points_worse_is_hardly_ever_released() -> None:
    """n = 500, margin 1 point, 5 % disagreement: the bound releases under 1 % of 2000, McNemar over 40 %."""
    gained, lost = matched_case(np.random.default_rng(15), 2000, 500, -0.02, 0.05)
    released = tango_lower(gained, lost, 500) > -0.01
    mcnemar_p = stats.chi2.sf((gained - lost) ** 2 / np.maximum(gained + lost, 1), 1)
    assert released.mean() <= 0.01
    assert (mcnemar_p > 0.05).mean() > 0.4


@pytest.mark.parametrize("n", [100, 500])
@pytest.mark.parametrize("disagreement", [0.03, 0.1, 0.3])
def test_tango_misses_a_loss_at_the_margin_in_one_case_of_twenty(n: int, disagreement: float) -> None:
    """Where the true loss is the margin itself, the bound lies above it in about 5 % of cases."""
    gained, lost = matched_case(np.random.default_rng(n), 20_000, n, -0.01, disagreement)
    assert 0.03 < (tango_lower(gained, lost, n) > -0.01).mean() < 0.06


def counted(n: int, gained: int, lost: int) -> Comparison:
    rows = np.arange(n)
    return matched((rows >= gained) * 1.0, ((rows < gained) | (rows >= gained + lost)) * 1.0)


def test_examples_needed_give_the_power_they_promise() -> None:
    """6.183 x 0.05 / 0.01^2 = 3092 examples: equal models with 5 % disagreement pass in about 80 % of cases."""
    n = examples_needed(counted(200, 5, 5), 0.01)
    assert n == 3092
    gained, lost = matched_case(np.random.default_rng(3), 4000, n, 0.0, 0.05)
    assert 0.77 < (tango_lower(gained, lost, n) > -0.01).mean() < 0.83


def test_examples_needed_without_disagreement_is_where_the_bound_passes() -> None:
    """At margin 0.01 it takes 268 examples: the bound is -0.00999 there and -0.01003 with one less."""
    n = examples_needed(counted(50, 0, 0), 0.01)
    assert n == 268
    assert tango_lower(0, 0, n) > -0.01 > tango_lower(0, 0, n - 1)


def test_agreement_of_unequal_weights_takes_more_examples() -> None:
    """Half of the weight on a tenth of 200 examples: Kish's number is 72, so 268 x 200 / 72 = 745 are needed."""
    weights = np.where(np.arange(200) < 20, 9.0, 1.0)
    assert examples_needed(mean_bounded(np.ones(200), np.ones(200), weights), 0.01) == 745


def test_no_number_of_examples_shows_what_is_not_there() -> None:
    """A threshold at or above the truth, or nearer than anything could tell."""
    assert examples_needed(counted(200, 5, 5), 0.0) is None
    assert examples_needed(counted(200, 5, 5), -0.1) is None
    assert examples_needed(counted(200, 5, 5), 1e-9) is None


def test_mean_without_skew_is_students_bound() -> None:
    """Differences 1..9 and their mirror: mean 5, s^2 = 60 / 8 x 16 / 17, t(17) = 1.7396, so 5 - 1.7396 s / sqrt(18)."""
    differences = np.r_[np.arange(1.0, 10.0), np.arange(1.0, 10.0)]
    found = mean(np.zeros(18), differences)
    expected = 1.739607 * math.sqrt(120 / 17) / math.sqrt(18)
    assert lower(found) == pytest.approx(5 - expected, abs=1e-5)
    assert upper(found) == pytest.approx(5 + expected, abs=1e-5)
    assert found.variance == pytest.approx(120 / 17)


def tails() -> dict[str, Callable[[np.random.Generator, tuple[int, int]], Floats]]:
    """Differences with mean 0 and their long tail on the harmful side."""

    def explode(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
        return rng.normal(0.1, 0.1, size) - np.where(rng.random(size) < 0.1, rng.exponential(1, size), 0)

    return {
        "exponential": lambda rng, size: 1 - rng.exponential(1, size),
        "chi-square": lambda rng, size: 1 - rng.chisquare(1, size),
        "lognormal": lambda rng, size: math.exp(0.5) - rng.lognormal(0, 1, size),
        "one in ten explodes": explode,
    }


@pytest.mark.parametrize("n", [100, 500])
@pytest.mark.parametrize("tail", tails())
def test_mean_covers_where_losses_are_skewed(tail: str, n: int) -> None:
    """Long harmful tails: the bound holds in 92-97 % of cases, clearly more often than plain Student's t."""
    draws = tails()[tail](np.random.default_rng(7), (1500, n))
    bounds = np.array([lower(mean(np.zeros(n), row)) for row in draws])
    student = draws.mean(1) - stats.t.ppf(0.95, n - 1) * draws.std(1, ddof=1) / math.sqrt(n)
    assert 0.91 < (bounds <= 0).mean() < 0.97
    assert (bounds <= 0).mean() > (student <= 0).mean()


def test_correction_never_moves_a_bound_closer_than_t() -> None:
    """With the tail on the other side plain t stands."""
    gains = np.random.default_rng(0).exponential(1, 60)
    t = stats.t.ppf(0.95, 59) * gains.std(ddof=1) / math.sqrt(60)
    found = mean(np.zeros(60), gains)
    assert lower(found) == pytest.approx(gains.mean() - t)
    assert upper(found) > gains.mean() + t


def test_weighted_mean_has_the_linearised_variance() -> None:
    """Ten examples of weight 3 and difference 1, ten of weight 1 and difference 0: mean 3/4, variance by hand.

    Influence is w (d - 3/4) / 40: 0.75/40 ten times and -0.75/40 ten times; squares sum to 20 x 0.5625/1600, times
    20/19. Kish: 40^2 / 100 = 16 examples, t(15) = 1.753050; no skew.
    """
    found = mean(np.zeros(20), np.repeat([1.0, 0.0], 10), np.repeat([3.0, 1.0], 10))
    assert found.difference == pytest.approx(0.75)
    assert lower(found) == pytest.approx(0.75 - 1.753050 * math.sqrt(20 * 0.5625 / 1600 * 20 / 19), abs=1e-6)


def test_scale_of_weights_does_not_matter() -> None:
    """Weights are shares: ten times all of them is the same comparison, and equal ones are no weights."""
    rng = np.random.default_rng(1)
    old, new, w = rng.normal(size=50), rng.normal(size=50), rng.uniform(0.5, 2, 50)
    assert lower(mean(old, new, 10 * w)) == pytest.approx(lower(mean(old, new, w)), abs=1e-12)
    assert lower(mean(old, new, np.full(50, 4.0))) == pytest.approx(lower(mean(old, new)), abs=1e-12)


def test_weighted_agreement_on_few_examples_is_no_evidence() -> None:
    """Scores in [0, 1] without any disagreement have the score bound, not a bound of 0."""
    ones = np.ones(50)
    assert lower(mean_bounded(ones, ones, ones)) == pytest.approx(float(tango_lower(0, 0, 50)))
    assert lower(mean(ones, ones)) == 0.0


def test_weighted_accuracy_covers() -> None:
    """Weights from 0.2 to 5 and a true loss at the margin: missed in 2-6 % of cases, no more."""
    rng = np.random.default_rng(4)
    weights = np.exp(rng.normal(0, 0.8, 400))
    missed = 0
    for _ in range(800):
        kind = rng.choice(3, size=400, p=[0.045, 0.055, 0.9])
        missed += lower(mean_bounded((kind == 1) * 1.0, (kind == 0) * 1.0, weights)) > -0.01
    assert missed / 800 < 0.065


def delong_by_definition(old: Floats, new: Floats, y: Floats) -> tuple[float, float]:
    """Difference and variance by the pairwise kernel, O(n^2), straight from the paper."""
    components = []
    for scores in (old, new):
        x, z = scores[y == 1][:, None], scores[y == 0][None, :]
        kernel = (x > z) + 0.5 * (x == z)
        components.append((kernel.mean(), kernel.mean(1), kernel.mean(0)))
    (a, a10, a01), (b, b10, b01) = components
    s10, s01 = np.cov(np.stack([a10, b10])), np.cov(np.stack([a01, b01]))
    contrast = np.array([-1.0, 1.0])
    m, n = len(a10), len(a01)
    return float(b - a), float(contrast @ (s10 / m + s01 / n) @ contrast)


@pytest.mark.parametrize("levels", [0, 5])
def test_auc_is_delongs(levels: int) -> None:
    """Difference and variance agree with the pairwise definition, with and without ties."""
    rng = np.random.default_rng(levels)
    y = (rng.random(200) < 0.3) * 1.0
    old, new = rng.normal(y, 1), rng.normal(0.5 * y, 1)
    if levels:
        old, new = np.round(old * levels) / levels, np.round(new * levels) / levels
    difference, variance = delong_by_definition(old, new, y)
    found = auc(old, new, y)
    assert found.difference == pytest.approx(difference, abs=1e-12)
    assert found.variance == pytest.approx(200 * variance, rel=1e-9)


def test_auc_weights_count_like_copies() -> None:
    """An example of weight 2 has the area of the same example twice."""
    rng = np.random.default_rng(2)
    y = np.tile([0.0, 1.0], 30)
    old, new = rng.normal(y), rng.normal(y)
    twice = np.r_[np.arange(60), np.arange(20)]
    weights = np.where(np.arange(60) < 20, 2.0, 1.0)
    assert auc(old, new, y, weights).candidate == pytest.approx(auc(old[twice], new[twice], y[twice]).candidate)


def test_auc_of_one_label_or_too_few_has_no_bound() -> None:
    """Constant labels, and fewer than ten of one label, are said to be undecidable."""
    scores = np.arange(40.0)
    assert auc(scores, scores, np.ones(40)).problem == "AUC takes examples of both labels"
    few = auc(scores, scores, (scores < 5) * 1.0)
    assert (few.lower, few.problem, few.fewest) == (None, "a bound takes 10 of each label", 80)


def test_auc_with_equal_ranks_has_the_bound_of_the_smaller_class() -> None:
    """Two perfect models on 20 positives and 180 negatives: -z^2 / (20 + z^2), not 0."""
    scores = np.arange(200.0)
    found = auc(scores, scores**2, (scores >= 180) * 1.0)
    assert (found.incumbent, found.difference) == (1.0, 0.0)
    assert lower(found) == pytest.approx(-(Z**2) / (20 + Z**2))


def test_mean_of_few_examples_has_no_bound() -> None:
    """Nine examples, or ten of which one has nearly all weight, support no t bound."""
    assert mean(np.zeros(9), np.ones(9)).lower is None
    heavy = mean(np.zeros(12), np.ones(12), np.array([1000.0] + [1.0] * 11))
    assert heavy.lower is None
    assert heavy.fewest is not None
    assert heavy.fewest > 100


COMPARISONS: dict[str, Callable[[Floats, Floats, Floats], Comparison]] = {
    "matched": lambda a, b, _: matched((a > 0) * 1.0, (b > 0) * 1.0),
    "mean": lambda a, b, _: mean(a, b),
    "weighted mean": lambda a, b, y: mean(a, b, 1 + np.abs(y)),
    "bounded mean": lambda a, b, _: mean_bounded(1 / (1 + np.exp(a)), 1 / (1 + np.exp(b))),
    "auc": lambda a, b, y: auc(a, b, (y > 0) * 1.0),
}


@pytest.mark.parametrize("name", COMPARISONS)
@given(seed=st.integers(0, 10**6), n=st.integers(30, 80), shift=st.floats(-2, 2))
def test_exchanging_the_models_mirrors_the_comparison(name: str, seed: int, n: int, shift: float) -> None:
    """Difference and bounds change sign and place; the order of the examples changes nothing."""
    rng = np.random.default_rng(seed)
    a, b, y = rng.normal(size=n), rng.normal(shift, size=n), rng.normal(size=n)
    compare = COMPARISONS[name]
    found, mirrored = compare(a, b, y), compare(b, a, y)
    assert mirrored.difference == pytest.approx(-found.difference, abs=1e-12)
    order = rng.permutation(n)
    shuffled = compare(a[order], b[order], y[order])
    if found.lower is None:
        assert (mirrored.lower, shuffled.lower) == (None, None)
        return
    assert lower(mirrored) == pytest.approx(-upper(found), abs=1e-9)
    assert lower(shuffled) == pytest.approx(lower(found), abs=1e-9)
    assert lower(found) <= found.difference <= upper(found)
