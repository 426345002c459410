"""Same evidence, same plan; and what must hold for all evidence."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedretrain.errors import ConfigurationError
from fedretrain.planning import ACTIONS, RETRAININGS, PlanSection
from server.deciding.evidence import Evidence, Past, Signal
from server.deciding.plan import Cost, Plan, Range
from server.deciding.planner import decide

from .cases import CASES, DRIFTED, FELL, GOLDEN, NOW, QUIET, ago, estimate, made, past, same

EXPECTED = {
    "no-evidence": ("watch", None),
    "nothing-fired": ("nothing", None),
    "too-little-data": ("watch", None),
    "covariate": ("replay", None),
    "unlabelled": ("replay", None),
    "harmless-drift": ("watch", "replay"),
    "hysteresis": ("watch", None),
    "sure-loss": ("replay", None),
    "concept": ("replay", None),
    "label-shift": ("replay", None),
    "quality": ("watch", None),
    "much-more-of-the-same": ("full", None),
    "little-more-of-the-same": ("incremental", None),
    "schedule": ("incremental", None),
    "new-site": ("incremental", None),
    "new-labels": ("extend", None),
    "metric-below": ("incremental", None),
    "metric-not-surely-below": ("nothing", None),
    "no-new-data": ("watch", "replay"),
    "cool-down": ("watch", "replay"),
    "cool-down-doubled": ("watch", "replay"),
    "budget": ("watch", "replay"),
    "budget-leaves-the-cheaper": ("incremental", None),
    "hours": ("replay", None),
    "site-hours": ("replay", None),
    "roll-back": ("roll-back", None),
    "roll-back-explained-by-drift": ("replay", None),
    "experience": ("incremental", None),
    "not-recovered": ("incremental", None),
    "not-allowed": ("watch", None),
    "declined": ("incremental", None),
}


@pytest.mark.parametrize("name", CASES)
def test_a_situation_has_its_plan(name: str) -> None:
    """The same evidence, policy and costs give the plan that is kept, byte for byte, and the right one."""
    kept = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    plan = made(name)
    assert json.dumps(plan.to_json(), sort_keys=True) == json.dumps(kept, sort_keys=True)
    assert (plan.action, plan.wanted) == EXPECTED[name]
    assert Plan.from_json(kept) == plan


def test_every_situation_is_told_whole() -> None:
    """A plan names all other actions with a reason, says what would change its mind, and gives ranges in order."""
    for name in CASES:
        plan = made(name)
        assert [other.action for other in plan.alternatives] == [a for a in ACTIONS if a != plan.action], name
        assert all(other.why_not.endswith(".") for other in plan.alternatives), name
        assert plan.would_change, name
        assert plan.sentence, name
        assert plan.threshold, name
        for gain in [plan.gain, *(other.gain for other in plan.alternatives)]:
            assert gain is None or -1 <= gain.low <= gain.expected <= gain.high <= 1, name


def test_a_changed_plan_is_refused() -> None:
    """The id is of the content; what somebody changed is not the plan any more."""
    kept = made("covariate").to_json()
    kept["action"] = "full"
    with pytest.raises(ConfigurationError, match="expected id"):
        Plan.from_json(kept)


# --- what holds for all evidence

KINDS = ("covariate", "label", "concept", "quality")
shares = st.floats(0, 1).map(lambda value: round(value, 3))


def estimates() -> st.SearchStrategy[Any]:
    return st.none() | st.builds(
        lambda value, n: replace(estimate(value, n), low=max(0.0, value - 0.05), high=min(1.0, value + 0.05)),
        shares,
        st.integers(1, 500),
    )


signals = st.lists(
    st.builds(Signal, st.sampled_from(KINDS), shares, st.integers(0, 5), st.just(5), st.integers(1, 4)),
    max_size=4,
    unique_by=lambda signal: signal.kind,
).map(tuple)
pasts = st.lists(
    st.builds(
        past,
        st.floats(0.1, 60),
        st.sampled_from(RETRAININGS),
        gain=st.none() | st.floats(-0.1, 0.3),
        predicted=st.none() | st.floats(0, 0.3),
        released=st.booleans(),
        curve=st.sampled_from(((), (0.9,) * 4)),
    ),
    max_size=4,
).map(lambda found: tuple(sorted(found, key=lambda one: one.at)))
evidences = st.builds(
    Evidence,
    at=st.just(NOW),
    release=st.just("r2"),
    released_at=st.just(ago(4)) | st.just(ago(30)) | st.none() | st.floats(0, 50).map(ago),
    signals=signals,
    metric=estimates(),
    reference=estimates(),
    best=estimates(),
    expected_accuracy=st.none() | shares,
    new_examples=st.just(400) | st.integers(51, 3000) | st.none() | st.integers(0, 100),
    old_examples=st.none() | st.integers(0, 3000),
    new_labels=st.just(()) | st.just((("8", 30),)),
    sites=st.just(5) | st.integers(0, 5),
    new_sites=st.just(()) | st.just(("f",)),
    past=st.just(()) | pasts,
    previous_release=st.just("r1") | st.none(),
    previous_metric=estimates(),
    too_little=st.booleans(),
    declined=st.just(())
    | st.lists(st.sampled_from(RETRAININGS), unique=True).map(lambda w: tuple((x, ("a",)) for x in w)),
    needed=st.integers(1, 5),
)
allowed = st.lists(st.sampled_from((*RETRAININGS, "roll-back")), unique=True).map(tuple)
policies = st.builds(
    PlanSection,
    metric_below=st.none() | st.just(0.8),
    drift=st.booleans(),
    schedule=st.none() | st.just("20d"),
    volume=st.none() | st.just(1000),
    new_site=st.booleans(),
    new_labels=st.booleans(),
    hysteresis=st.integers(1, 3),
    cool_down=st.sampled_from(("1h", "2d")),
    least_gain=st.sampled_from((0.0, 0.01, 0.1)),
    actions=st.just(PlanSection().actions) | st.just(PlanSection().actions) | allowed,
    hours=st.just(()) | st.just(("22:00-06:00",)),
    price=st.sampled_from(({}, {"hour": 1.0}, {"gigabyte": 200.0})),
    budget=st.sampled_from(({}, {}, {"retrainings": 2}, {"seconds": 250.0})).map(lambda b: {"period": "30d", **b}),
).map(lambda section: PlanSection.model_validate(section.model_dump()))
prices = st.dictionaries(
    st.sampled_from(RETRAININGS),
    st.floats(1, 500).map(lambda seconds: Cost(same(seconds), same(1000 * seconds), same(seconds), None, 1)),
)


@settings(max_examples=150, deadline=None)
@given(evidences, policies, prices, st.sampled_from(KINDS), shares, st.integers(0, 5), st.integers(0, 3), st.booleans())
def test_more_drift_never_makes_it_less_likely_to_act(  # noqa: PLR0917
    evidence: Evidence,
    policy: PlanSection,
    costs: dict[str, Cost],
    kind: Any,
    effect: float,
    sites: int,
    checks: int,
    falls: bool,
) -> None:
    """A greater effect, more sites, more checks, a further kind, or a lower metric: who acted acts still."""
    found = {signal.kind: signal for signal in evidence.signals}
    old = found.get(kind, Signal(kind, 0.0, 0, 5, 1))
    found[kind] = replace(old, effect=old.effect + effect, sites=max(old.sites, sites), checks=old.checks + checks)
    more = replace(evidence, signals=tuple(found[name] for name in KINDS if name in found))
    if falls and evidence.metric is not None:
        metric = evidence.metric
        lower = {name: getattr(metric, name) * 0.8 for name in ("value", "low", "high")}
        more = replace(more, metric=replace(metric, **lower))
    if decide(evidence, policy, costs).acts:
        assert decide(more, policy, costs).acts


@settings(max_examples=100, deadline=None)
@given(policies, prices, st.floats(0, 100))
def test_no_evidence_never_acts(policy: PlanSection, costs: dict[str, Cost], days: float) -> None:
    """Whatever the policy asks for, what is not known is no reason."""
    for evidence in (Evidence(NOW), Evidence(NOW, "r2", ago(days), previous_release="r1", too_little=True)):
        assert not decide(evidence, policy, costs).acts


def test_what_a_way_costs_is_said_by_its_kind_where_it_is_not_known() -> None:
    """Seconds that a run took are compared; without any, only the kind can be."""
    unknown = {other.action: other.why_not for other in made("metric-below").alternatives}
    known = {other.action: other.why_not for other in made("experience").alternatives}
    assert unknown["replay"] == "It should gain as much, and its kind usually takes more seconds than incremental."
    assert "It should gain as much, and cost more seconds." in known.values()


def test_drift_is_told_with_its_greatest_effect_apart_from_where_it_was_found() -> None:
    """The effect is the subject's; the sites are those with any drift of the kind."""
    told = "Drift in inputs, most of all brightness (effect 0.6); at 3 of 5 sites, in 2 checks in a row."
    assert made("covariate").sentence == told
    bare = replace(DRIFTED, signals=(replace(DRIFTED.signals[0], subject=""),))
    said = decide(bare, PlanSection(), {}).sentence
    assert said == "Drift in inputs (effect 0.6), at 3 of 5 sites, in 2 checks in a row."


def test_what_was_seen_is_told_before_what_was_not() -> None:
    """Too little data is why it is watched only where nothing else is."""
    evidence = replace(QUIET, too_little=True, unknown_labels=3)
    assert decide(evidence, PlanSection(), {}).rule == "unknown-labels"
    assert decide(replace(evidence, unknown_labels=0), PlanSection(), {}).rule == "too-little-data"


@settings(max_examples=40, deadline=None)
@given(evidences, policies, prices)
def test_without_new_data_nothing_is_retrained(evidence: Evidence, policy: PlanSection, costs: dict[str, Cost]) -> None:
    """No trigger, drift or schedule retrains on what the model has seen already."""
    for new in (None, 0, policy.fewest_new - 1):
        starved = replace(evidence, new_examples=new, new_labels=())
        assert decide(starved, policy, costs).action in {"nothing", "watch", "roll-back"}


@settings(max_examples=100, deadline=None)
@given(evidences, policies, prices)
def test_limits_hold(evidence: Evidence, policy: PlanSection, costs: dict[str, Cost]) -> None:
    """What trains is allowed, affordable, not in a cool-down, and within the hours."""
    plan = decide(evidence, policy, costs)
    if plan.action not in RETRAININGS:
        return
    assert plan.action in policy.actions
    assert not evidence.barred(plan.action)
    assert evidence.last is None or NOW - evidence.last >= timedelta(hours=1 if policy.cool_down == "1h" else 48)
    recent = [one for one in evidence.past if one.at > NOW - timedelta(days=30)]
    if policy.budget.retrainings is not None:
        assert len(recent) < policy.budget.retrainings
    if policy.budget.seconds is not None:
        asked = plan.cost.seconds.expected if plan.cost and plan.cost.seconds else 0.0
        assert asked + sum(one.seconds for one in recent) <= policy.budget.seconds
    if policy.hours:
        assert plan.not_before is not None
        assert plan.not_before.hour == 22


@settings(max_examples=50, deadline=None)
@given(st.permutations([1.0, 2.0, 3.0, 4.0]))
def test_the_cheaper_of_equal_ways_wins(order: list[float]) -> None:
    """Where the gains are equal only the cost decides, in the unit that the policy names."""
    ways = RETRAININGS[:4]
    costs = {way: Cost(same(price), same(10 - price), None, None, 1) for way, price in zip(ways, order, strict=True)}
    loose = {"equal_gain": 0.99, "volume": 1}
    assert decide(QUIET, PlanSection(**loose), costs).action == ways[order.index(1.0)]
    by_bytes = PlanSection(compare_by="bytes", **loose)
    assert decide(QUIET, by_bytes, costs).action == ways[order.index(4.0)]


def test_a_dearer_way_with_more_gain_wins() -> None:
    """Cost decides between equals only."""
    costs = {"replay": Cost(same(1e6), runs=1), "incremental": Cost(same(1), runs=1)}
    assert decide(DRIFTED, PlanSection(), costs).action == "replay"


def test_a_gain_is_set_against_what_it_costs() -> None:
    """Replay gains 0.121 in 2 h, incremental 0.091 in 1 h: worth less at 0.04 an hour, and 0.15 lost is no 0.16."""
    costs = {"replay": Cost(same(2 * 3600), runs=1), "incremental": Cost(same(3600), runs=1)}
    costs |= {"transfer": Cost(same(3600), runs=1), "full": Cost(same(9 * 3600), runs=1)}
    chosen = {}
    for hour in (0.0, 0.04, 0.16):
        plan = decide(DRIFTED, PlanSection.model_validate({"price": {"hour": hour}, "equal_gain": 0.0}), costs)
        chosen[hour] = plan.action
    assert chosen == {0.0: "replay", 0.04: "incremental", 0.16: "watch"}
    asked = PlanSection.model_validate({"price": {"hour": 0.16}, "metric_below": 0.9})
    assert decide(DRIFTED, asked, costs).acts  # what a person asked for by a number


def test_hysteresis_and_schedule_turn_at_their_thresholds() -> None:
    """One check less, one second less: not yet."""
    for checks, acts in ((2, False), (3, True)):
        drifted = replace(DRIFTED, metric=estimate(0.85), signals=(replace(DRIFTED.signals[0], checks=checks),))
        assert decide(drifted, PlanSection(hysteresis=3), {}).acts is acts
    for seconds, acts in ((-1, False), (0, True)):
        evidence = replace(QUIET, released_at=ago(7) - timedelta(seconds=seconds))
        assert decide(evidence, PlanSection(schedule="7d"), {}).acts is acts


def test_one_check_is_enough_where_the_metric_surely_fell() -> None:
    """From 0.92 at least to 0.87 at most is 0.05; the points, 0.95 and 0.84, do not matter."""
    once = (replace(DRIFTED.signals[0], checks=1),)
    for high, acts in ((0.871, False), (0.87, True)):
        metric = replace(estimate(0.84), high=high)
        assert decide(replace(DRIFTED, metric=metric, signals=once), PlanSection(), {}).acts is acts


def test_what_a_retraining_did_not_get_over_is_tried_again_until_its_curves_say_otherwise() -> None:
    """A level of 0.88 and a metric of 0.83 at most; where a further curve ends at 0.80 too, the mean is 0.84."""
    stuck = replace(QUIET, metric=estimate(0.79), past=(past(20, curve=(0.88,) * 5),))
    assert decide(stuck, PlanSection(), {}).rule == "not-recovered"
    assert decide(replace(stuck, metric=estimate(0.81)), PlanSection(), {}).action == "nothing"
    again = replace(stuck, past=(*stuck.past, past(10, curve=(0.8,) * 5)))
    assert decide(again, PlanSection(), {}).action == "nothing"


def test_retraining_in_vain_waits_ever_longer() -> None:
    """Each after the first in a row that came to nothing doubles the cool-down; a release ends that."""
    vain = tuple(past(days, released=False) for days in (6, 5, 3.5))
    held = decide(replace(DRIFTED, past=vain), PlanSection(), {})
    assert held.not_before == ago(3.5) + timedelta(days=4)
    assert decide(replace(DRIFTED, past=vain[:1]), PlanSection(cool_down="6d"), {}).acts
    assert decide(replace(DRIFTED, past=(*vain, past(1.1))), PlanSection(), {}).acts


def test_a_release_to_blame_is_rolled_back_only_soon_after_it() -> None:
    """What comes later is not the release's fault."""
    worse = replace(FELL, previous_metric=estimate(0.9))
    for days, action in ((6.9, "roll-back"), (7.1, "nothing")):
        assert decide(replace(worse, released_at=ago(days)), PlanSection(), {}).action == action


def test_rolls_back_where_drift_might_explain_it_but_nothing_can_be_learnt() -> None:
    """Without new data the better of two models is all there is."""
    worse = replace(DRIFTED, previous_metric=estimate(0.9), released_at=ago(3), new_examples=10)
    assert decide(worse, PlanSection(), {}).action == "roll-back"


def test_a_way_that_too_few_sites_allow_is_not_taken() -> None:
    """Two of three decline replay: with two needed another way is taken, and the plan says who; with one it is replay.

    Where no way is left it waits, and says what is missing; labels that no run may learn keep nothing else back.
    """
    plan = made("declined")
    [replay] = [other for other in plan.alternatives if other.action == "replay"]
    assert replay.why_not == "2 of 3 sites do not allow it (clinic-a, clinic-b); a run needs 2 that do."
    evidence = CASES["declined"][0]
    assert decide(replace(evidence, needed=1), PlanSection(), {}).action == "replay"
    stuck = decide(evidence, PlanSection(actions=("replay", "extend")), {})
    assert (stuck.action, stuck.rule, stuck.threshold) == (
        "watch", "not-allowed", "plan.actions, participation.min_sites",
    )  # fmt: skip
    assert stuck.would_change[:2] == (
        "incremental, transfer, full in plan.actions.", "2 sites that allow one of replay.",
    )  # fmt: skip
    labels = replace(DRIFTED, new_labels=(("8", 30),), declined=(("extend", ("a", "b", "c", "d", "e")),), needed=2)
    assert decide(labels, PlanSection(), {}).action == "replay"


def test_withheld_statistics_cost_only_what_needs_them() -> None:
    """Without labels it goes by drift and confidence, without drift by labels, without either by the calendar."""
    blind = replace(QUIET, new_examples=400)
    assert decide(replace(blind, signals=DRIFTED.signals), PlanSection(), {}).rule == "covariate-drift"
    assert decide(replace(FELL, signals=()), PlanSection(metric_below=0.9), {}).rule == "metric-below"
    assert decide(blind, PlanSection(schedule="1d"), {}).rule == "schedule"


def test_settings_say_what_the_job_has_to_be() -> None:
    """What is new begins with the release; changed meaning favours what is recent, with few old examples."""
    assert made("covariate").settings == {
        "mode": "replay",
        "since": "2026-02-28T12:00:00+00:00",
        "replay_share": 0.5,
    }
    assert made("concept").settings["half_life_days"] == 5.0
    assert made("concept").settings["replay_share"] == 0.3
    assert made("new-labels").settings == {"mode": "extend", "labels": ["8"]}
    assert made("roll-back").settings == {"release": "r1"}
    assert decide(replace(QUIET, new_examples=800), PlanSection(volume=800, full_mode="full"), {}).settings == {
        "mode": "full"
    }


def test_due_only_from_its_time_on() -> None:
    """A plan that waits for its hours is not due before; one that does not act never is."""
    plan = made("hours")
    assert plan.not_before is not None
    assert not plan.due(NOW)
    assert plan.due(plan.not_before)
    assert made("covariate").due(NOW)
    assert not made("nothing-fired").due(NOW)


def test_ranges_scale() -> None:
    """All three numbers, and none of a past without a plan."""
    assert Range(1, 2, 4).times(0.5) == Range(0.5, 1, 2)
    assert Past.__dataclass_fields__["predicted"].default is None
