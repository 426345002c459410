"""What runs brought and cost, and what plans promised."""

import pytest

from server.deciding.plan import Cost, Range
from server.deciding.score import Amount, Score, measured, score, spent

from .kept import plan, result


def test_a_gain_is_what_holdouts_that_must_improve_say() -> None:
    """(0.08 + 0.04) / 2 = 0.06; of -0.02 and 0.01 on what must not get worse, 0.02 is forgotten; no loss counts."""
    holdouts = (
        ("improve", "accuracy", 0.08),
        ("improve", "accuracy", 0.04),
        ("improve", "loss", 3.0),
        ("not-worse", "accuracy", -0.02),
        ("not-worse", "accuracy", 0.01),
    )

    found = measured(result("r", holdouts=holdouts), "incremental")

    assert (found.gain, found.forgetting, found.source) == (pytest.approx(0.06), 0.02, "holdout")


def test_without_such_a_holdout_the_sites_say_what_was_gained() -> None:
    """0.80 before the first round, 0.90 before the last: 0.10. The curve is what came after rounds, 0.86 and 0.90."""
    found = measured(result("r"), "incremental", before=0.5)

    assert (found.gain, found.source, found.curve) == (pytest.approx(0.1), "sites", (0.86, 0.9))


def test_a_run_that_began_from_another_model_is_compared_with_the_check() -> None:
    """A new head knows nothing before its first round: 0.90 - 0.70 of the check before; without one nobody knows."""
    assert measured(result("r"), "transfer", before=0.7).gain == pytest.approx(0.2)
    assert measured(result("r"), "transfer").gain is None


def test_what_a_run_took_is_added_up() -> None:
    """10 s of this start and 1 s of rounds before it; 3 rounds of two sites with 2 s each are 12 s."""
    assert spent(result("r", kwh=0.25)) == {"seconds": 11.0, "bytes": 1000.0, "site_seconds": 12.0, "kwh": 0.25}


def test_a_plan_is_scored_against_its_ranges() -> None:
    """0.10 lies within 0.05 to 0.15, 11 s within 5 to 20 s; of bytes nothing was expected."""
    found = score(plan(), result("r"))

    assert (found.outcome, found.gain and found.gain.within, found.costs["seconds"].within) == ("released", True, True)
    assert found.costs["bytes"] == Amount(None, 1000.0, None)
    assert "kwh" not in found.costs
    assert Score.from_json(found.to_json()) == found


def test_a_promise_that_was_not_kept_says_so() -> None:
    """A gain of 0.10 where 0.2 to 0.4 were expected, and 11 s where at most 2 were."""
    promised = plan(gain=Range(0.2, 0.3, 0.4), cost=Cost(seconds=Range(0.5, 1.0, 2.0)))

    found = score(promised, result("r", release=None))

    assert (found.outcome, found.gain and found.gain.within, found.costs["seconds"].within) == (
        "rejected",
        False,
        False,
    )
    assert found.text == (
        "incremental: rejected; gain 10 points (expected 30 points, 20 points to 40 points); "
        "time 11.0 s (expected 1.0 s, 0.5 s to 2.0 s); sent 1 kB; training at the sites 12.0 s; "
        "of the others nothing was expected"
    )


def test_that_nothing_was_expected_is_said_once() -> None:
    """Each number with its unit, and one word about all of them."""
    found = score(plan(gain=None, cost=None), result("r", kwh=6.5e-05))

    assert found.text.endswith("; sent 1 kB; training at the sites 12.0 s; energy 6.5e-05 kWh; nothing was expected")


def test_what_has_no_result_is_a_roll_back_or_a_failure() -> None:
    """Neither has a gain."""
    assert score(plan("roll-back", {"release": "r"}), None).outcome == "rolled back"
    assert score(plan(), None).outcome == "failed"
