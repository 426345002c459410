"""Formulas of the drift statistics against numbers worked out by hand or by SciPy's own functions."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, chi2, chi2_contingency, fisher_exact

from server.drift.correct import least_alike, most_alike, noise_variance, pair
from server.drift.psi import compare
from server.drift.tests import benjamini_hochberg, homogeneity, rise, share


def test_psi_and_its_threshold_are_the_formula() -> None:
    """Before 50, 50 and since 70, 30, half an example in each cell: shares 50.5/101 and 70.5/101, 30.5/101, so
    PSI = 0.198020 (ln 1.396040 - ln 0.603960) = 0.165906; threshold (1/100 + 1/100) 6.6349; mean 0.02."""
    found = compare([pair((50, 50), (70, 30), 1, None)], 0.01, ordered=True)
    assert found is not None
    assert found.alike.psi == pytest.approx(0.165906, abs=2e-5)
    assert found.alike.threshold == pytest.approx(0.132698, abs=1e-6)
    assert found.alike.effect == pytest.approx(0.165906 - 0.02, abs=2e-5)
    assert (found.alike.reference, found.alike.recent) == (100, 100)


def test_one_site_has_pearsons_statistic() -> None:
    """Times (N - 1) / N, here 199 / 200, with one degree of freedom for two cells."""
    reference, recent = np.array([[50.0, 50.0]]), np.array([[70.0, 30.0]])
    pearson = chi2_contingency(np.concatenate([reference, recent]), correction=False).statistic
    found = homogeneity(reference, recent, np.zeros((1, 2)))
    assert found == pytest.approx(float(chi2.sf(pearson * 199 / 200, 1)), rel=1e-9)


def test_a_changed_mixture_of_sites_is_no_drift() -> None:
    """Two sites unlike each other bring other numbers of examples since: added up blindly, everything would change."""
    pairs = [pair((90, 10), (900, 100), 1, None), pair((100, 900), (10, 90), 1, None)]
    found = compare(pairs, 0.01, ordered=True)
    assert found is not None
    assert found.alike.p == pytest.approx(1.0)
    assert found.alike.effect == 0


def test_opposite_shifts_cancel_in_the_sum_and_not_at_the_sites() -> None:
    """What one site gains another loses: the sum is as before, each site is not."""
    pairs = [pair((500, 500), (700, 300), 1, None), pair((500, 500), (300, 700), 1, None)]
    together = compare(pairs, 0.01, ordered=True)
    assert together is not None
    assert together.alike.p == pytest.approx(1.0)
    for each in pairs:
        alone = compare([each], 0.01, ordered=True)
        assert alone is not None
        assert alone.alike.is_drift(0.01, 0.1)


def test_neighbours_are_joined_until_each_cell_holds_five() -> None:
    """Before and since 2, 2, 2, 94: the first three are expected to hold six together, so one degree is left."""
    found = compare([pair((2, 2, 2, 94), (2, 2, 2, 94), 1, None)], 0.01, ordered=True)
    assert found is not None
    assert found.alike.threshold == pytest.approx(0.02 * 6.634897, rel=1e-6)
    assert compare([pair((2, 98), (2, 98), 1, None)], 0.01, ordered=True) is None


def test_a_suppressed_count_is_read_both_ways() -> None:
    """Below 5 it is 0 to 4: 4 is nearest to the other window's 40 of as many examples, 0 is farthest."""
    counts = pair((40, 160), (None, 196), 5, None)
    assert most_alike(counts)[1][0] == 4
    assert least_alike(counts)[1][0] == 0
    found = compare([counts], 0.01, ordered=True)
    assert found is not None
    assert found.apart.psi > found.alike.psi
    assert found.alike.is_drift(0.01, 0.1)


def test_noise_has_the_variance_of_discrete_laplace() -> None:
    """At epsilon 1, a = 0.367879: 2 a / (1 - a)^2 = 1.841348; none without an epsilon."""
    assert noise_variance(1.0) == pytest.approx(1.841348, abs=1e-6)
    assert noise_variance(None) == 0


def test_noise_raises_the_threshold_and_the_p_value() -> None:
    """The same counts with noise of epsilon 0.1 on each are weaker evidence."""
    plain = compare([pair((500, 500), (560, 440), 1, None)], 0.01, ordered=True)
    noisy = compare([pair((500, 500), (560, 440), 1, 0.1)], 0.01, ordered=True)
    assert plain is not None
    assert noisy is not None
    assert noisy.alike.p > 3 * plain.alike.p
    assert noisy.alike.threshold > plain.alike.threshold


def test_too_much_noise_leaves_no_cells() -> None:
    """Noise of epsilon 0.02 has a variance of 5,000: more than chance alone makes in cells of a hundred."""
    assert compare([pair((100,) * 4, (100,) * 4, 1, 0.02)], 0.01, ordered=True) is None


def test_one_stratum_is_fishers_test() -> None:
    """9 of 50 before, 20 of 50 since."""
    found = rise(np.array([[9.0], [20.0]]), np.array([[50.0], [50.0]]))
    assert found is not None
    assert found.p == pytest.approx(fisher_exact([[20, 30], [9, 41]], alternative="greater").pvalue)
    assert found.effect == pytest.approx(0.22)


def test_strata_are_compared_with_themselves() -> None:
    """a = 20, 30 of m = 100, 100; b = 10, 20 of n = 100, 100. Expected 15 and 25, so (50 - 40 - 1/2) /
    sqrt(100 100 30 170 / (200^2 199) + 100 100 50 150 / (200^2 199)) = 9.5 / sqrt(6.40704 + 9.42211) = 2.38775."""
    found = rise(np.array([[10.0, 20.0], [20.0, 30.0]]), np.full((2, 2), 100.0))
    assert found is not None
    assert found.p == pytest.approx(0.5 * math.erfc(2.38775 / math.sqrt(2)), rel=1e-4)
    assert found.effect == pytest.approx(0.1)


def test_few_hits_in_several_strata_have_their_exact_probability() -> None:
    """Two strata of 4 and 4: of 2 and 1 hits all are recent with (4 choose 2) / (8 choose 2) * 4 / 8 = 6 / 28 / 2."""
    found = rise(np.array([[0.0, 0.0], [2.0, 1.0]]), np.full((2, 2), 4.0))
    assert found is not None
    assert found.p == pytest.approx(6 / 28 / 2)
    none = rise(np.zeros((2, 2)), np.full((2, 2), 4.0))
    assert none is not None
    assert none.p == pytest.approx(1.0)


def test_a_rise_that_the_mixture_makes_is_none() -> None:
    """Ten times as many since where half is wrong, as many elsewhere: shares within strata are as before."""
    found = rise(np.array([[10.0, 50.0], [10.0, 500.0]]), np.array([[100.0, 100.0], [100.0, 1000.0]]))
    assert found is not None
    assert found.effect == pytest.approx(0.0)
    assert found.p is not None
    assert found.p > 0.4


def test_benjamini_hochberg_steps_up() -> None:
    """At 0.05 of four: 0.001 <= 0.0125, 0.02 <= 0.025, 0.03 <= 0.0375, 0.5 > 0.05."""
    assert benjamini_hochberg([0.5, 0.03, 0.001, 0.02], 0.05) == [False, True, True, True]
    assert benjamini_hochberg([], 0.05) == []


def test_a_share_has_wilsons_interval() -> None:
    """As SciPy has it; wider by hits that nobody knows, and by noise on them."""
    found, wider, noisy = share((8, 8), 10), share((6, 8), 10), share((800, 800), 1000, 400)
    own = binomtest(8, 10).proportion_ci(0.95, method="wilson")
    assert found is not None
    assert found.low == pytest.approx(own.low)
    assert found.high == pytest.approx(own.high)
    assert wider is not None
    assert wider.low < found.low
    assert wider.value == pytest.approx(0.7)
    assert noisy is not None
    assert noisy.high - 0.8 > 1.96 * 20 / 1000
    assert share((0, 0), 0) is None
