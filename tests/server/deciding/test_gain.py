"""What a retraining should bring and take, in numbers by hand."""

from dataclasses import replace

import pytest

from fedretrain.planning import RETRAININGS, PlanSection
from server.deciding.cost import cheapness, costs_of_all, price_of
from server.deciding.evidence import Signal
from server.deciding.gain import Experience, experience_of, gain_of, lost, shares, stake
from server.deciding.level import level, power_law
from server.deciding.plan import Cost, Range
from server.deciding.rules import nature

from .cases import COVARIATE, DRIFTED, FELL, QUIET, estimate, past, same

POLICY = PlanSection()


def about(low: float, expected: float, high: float) -> object:
    return pytest.approx((low, expected, high), abs=2e-6)


def three(found: Range) -> tuple[float, float, float]:
    return found.low, found.expected, found.high


def test_what_was_lost_is_the_distance_of_two_intervals() -> None:
    """0.95 (0.92 to 0.98) before, 0.80 (0.77 to 0.83) since: 0.15, from 0.92 - 0.83 to 0.98 - 0.77."""
    assert three(lost(FELL, POLICY)) == about(0.09, 0.15, 0.21)
    assert three(lost(replace(FELL, metric=estimate(0.95)), POLICY)) == about(0, 0, 0.06)


def test_what_can_be_reached_is_the_best_that_is_known() -> None:
    """On older data or in an earlier check; what is asked for is a level only for a metric that is below it."""
    earlier = replace(FELL, reference=estimate(0.85), best=estimate(0.95))
    assert three(lost(earlier, POLICY)) == about(0.09, 0.15, 0.21)
    asked = PlanSection(metric_below=0.9)
    alone = replace(FELL, reference=None)
    assert three(lost(alone, asked)) == about(0.07, 0.1, 0.13)
    drifted = replace(alone, metric=estimate(0.96), signals=(COVARIATE,))
    assert lost(drifted, asked).expected == pytest.approx(0.06)  # by its effect


def test_without_labels_drift_is_taken_to_cost_by_its_effect() -> None:
    """PSI 0.6 is 0.1 of that, at most 0.4 of it; half of all at most. A confident model does not make it less."""
    blind = replace(QUIET, signals=(COVARIATE,))
    assert three(lost(blind, POLICY)) == about(0, 0.06, 0.24)
    assert three(lost(replace(blind, signals=(replace(COVARIATE, effect=8.0),)), POLICY)) == about(0, 0.5, 0.5)
    sure = replace(blind, reference=estimate(0.95), expected_accuracy=0.95)
    assert lost(sure, POLICY).expected == pytest.approx(0.06)
    unsure = replace(sure, expected_accuracy=0.85)
    assert three(lost(unsure, POLICY)) == about(0.02, 0.1, 0.24)  # 0.92 - 0.90, 0.95 - 0.85


def test_few_labels_do_not_count_as_a_metric() -> None:
    """What 29 examples say is no reason to believe that nothing was lost."""
    few = replace(DRIFTED, metric=estimate(0.95, n=29))
    assert lost(few, POLICY).expected == pytest.approx(0.06)
    assert lost(replace(few, metric=estimate(0.95, n=30)), POLICY).expected == 0


def test_more_of_the_same_brings_what_a_power_law_says() -> None:
    """0.05 * (1 - 1.1^-0.25) = 0.0011773 with 400 new examples beside 4000, an error of 0.05."""
    at_stake = stake(replace(QUIET, reference=estimate(0.95)), POLICY)
    assert at_stake.expected == pytest.approx(0.0011773, abs=1e-6)


def test_new_labels_are_at_stake_by_their_share() -> None:
    """100 of 400 recent examples bear them: 0.8 of a quarter, and the power law's 0.1 * (1 - 1.1^-0.25) = 0.0023546."""
    at_stake = stake(replace(QUIET, new_labels=(("8", 100),)), POLICY)
    assert at_stake.expected == pytest.approx(0.2 + 0.0023546, abs=1e-6)


def test_the_nature_of_new_data_decides_which_way_gets_most_back() -> None:
    """Many of the same: all data. Few: going on. Changed meaning: recent ones with a few old. Labels: extending."""
    best = {}
    for name, evidence in {
        "much": replace(QUIET, new_examples=800),
        "little": QUIET,
        "concept": replace(QUIET, new_examples=800, signals=(Signal("concept", 0.1, 1, 5, 2), COVARIATE)),
        "labels": replace(QUIET, new_labels=(("8", 100),), signals=(COVARIATE,)),
    }.items():
        found = shares(evidence, POLICY)
        most = max(share.expected for share in found.values())
        best[name] = {way for way, share in found.items() if share.expected == most}
    assert best == {"much": {"full"}, "little": {"incremental", "replay"}, "concept": {"replay"}, "labels": {"extend"}}


def test_drift_that_is_not_acted_upon_is_no_nature() -> None:
    """Neither with plan.drift off, nor before it stood for long enough."""
    assert nature(DRIFTED, POLICY) == "covariate"
    assert nature(DRIFTED, PlanSection(drift=False)) == "more"
    assert nature(replace(DRIFTED, metric=estimate(0.9)), PlanSection(hysteresis=3)) == "more"


def test_experience_corrects_and_narrows() -> None:
    """Ratios 0.2, 0.4, 0.6: (2 + 1.2) / 5; 0.4 +- 4.302653 * 0.2 * sqrt(4 / 3) = 0.4 +- 0.993655, not below 0."""
    runs = [past(9 - i, gain=gain, predicted=0.1) for i, gain in enumerate((0.02, 0.04, 0.06))]
    found = experience_of("replay", runs)
    assert found.correction == pytest.approx(0.64)
    assert found.ratios == pytest.approx((0.0, 1.393655), abs=1e-5)
    assert three(gain_of(same(0.1), same(0.8), found)) == about(0, 0.0512, 0.111492)
    assert experience_of("full", runs) == Experience()
    assert experience_of("replay", [past(3, gain=None, predicted=0.1), past(2, predicted=None)]) == Experience()


def test_a_learning_curve_is_a_power_law() -> None:
    """0.9 - 0.4 / sqrt(r) is found again, and ends at 0.9 - 0.4 / sqrt(8) = 0.758579 after eight rounds."""
    curve = tuple(0.9 - 0.4 * r**-0.5 for r in range(1, 9))
    assert power_law(curve) == pytest.approx((0.9, 0.4, 0.5), abs=1e-3)
    found = level([past(3, curve=curve), past(2, curve=curve[:3]), past(1, curve=(0.1,) * 8, released=False)])
    assert found is not None
    assert three(found) == pytest.approx((0.758579,) * 3, abs=1e-4)


def test_the_level_of_past_curves_stands_for_what_can_be_reached() -> None:
    """Where retrainings ended at 0.86 not 0.95 is lost, and a flat curve is one too."""
    known = replace(FELL, past=(past(30, curve=(0.86,) * 6),))
    assert lost(known, POLICY).expected == pytest.approx(0.06, abs=1e-4)


def test_a_way_that_never_ran_is_scaled_from_one_that_did() -> None:
    """Replay took 100 s and is 1.3 of the work of incremental: 76.9 s, from half to double; bytes are the same."""
    found = costs_of_all({"replay": Cost(same(100), same(1e6), None, None, 2), "full": Cost(same(1), runs=0)})
    assert found["replay"].runs == 2
    assert found["incremental"].seconds is not None
    assert three(found["incremental"].seconds) == pytest.approx((38.4615, 76.9231, 153.846), abs=1e-3)
    assert found["incremental"].bytes == Range(5e5, 1e6, 2e6)
    assert found["incremental"].site_seconds is None
    assert found["full"].seconds is not None
    assert found["full"].seconds.expected == pytest.approx(100 * 1.5 / 1.3)


def test_a_price_is_of_an_hour_a_gigabyte_and_a_kwh() -> None:
    """0.1 * 2 h + 0.01 * 3 GB + 0.5 * 4 kWh = 2.23; what is unknown is free."""
    policy = PlanSection.model_validate({"price": {"hour": 0.1, "gigabyte": 0.01, "kwh": 0.5, "site_hour": 9.0}})
    assert price_of(Cost(same(7200), same(3e9), None, same(4)), policy) == pytest.approx(2.23)


def test_cheap_is_what_is_known_else_relative_work() -> None:
    """By relative work where one of them is unknown in the unit."""
    costs = {way: Cost(same(10 - i)) for i, way in enumerate(RETRAININGS)}
    assert min(RETRAININGS, key=cheapness(costs, "seconds")) == "extend"
    assert min(RETRAININGS, key=cheapness(costs, "kwh")) == "transfer"
    assert min(RETRAININGS, key=cheapness({**costs, "full": Cost()}, "seconds")) == "transfer"
