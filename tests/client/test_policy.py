"""Each rule of a site's policy refuses what is outside it, by its name, and says its limit."""

from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any

import pytest

from client.policy import (
    Policy,
    ReplayRules,
    bundle_accepted,
    check_examples,
    check_layers,
    check_prepare,
    check_train,
    count_to_tell,
    declined_modes,
    describe,
    statistics_to_tell,
)
from fedretrain.errors import DeclinedRequest
from fedretrain.job import NamedConfig, TrainSection
from fedretrain.planning import MODES

from .guarded import RUN, job

NOON = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


def asks(**train: Any) -> Any:
    return job(train=TrainSection(**{"rounds": 10, **train}))


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "federations": ({"federations": ("other",)}, {}),
    "jobs": ({"jobs": ("heart-*", "lung-?")}, {}),
    "strategies": ({"strategies": ("median",)}, {}),
    "max_rounds": ({"max_rounds": 9}, {}),
    "max_local_epochs": ({"max_local_epochs": 2}, {"local_epochs": 3}),
    "max_local_steps": ({"max_local_steps": 5}, {"local_steps": 6}),
    "hours": ({"hours": ("22:00-06:00", "08:00-12:00")}, {}),
}


@pytest.mark.parametrize("rule", REFUSED)
def test_a_rule_refuses_by_its_name(rule: str) -> None:
    """At preparing and at training, with what is expected; without the rule the same request passes."""
    limits, train = REFUSED[rule]
    for check in (
        lambda policy: check_prepare(policy, "clinics", asks(**train), NOON),
        lambda policy: check_train(policy, "clinics", asks(**train), 1, NOON),
    ):
        check(Policy())
        with pytest.raises(DeclinedRequest) as caught:
            check(Policy(**limits))
        assert (caught.value.code, caught.value.where) == ("policy", rule)
        assert caught.value.expected


def test_the_modes_that_a_policy_declines_are_known_beforehand() -> None:
    """Replay needs examples to be kept; the rest is what no pattern fits. Each is what preparing would decline."""
    assert declined_modes(Policy()) == ("replay",)
    assert declined_modes(Policy(replay=ReplayRules(examples=5))) == ()
    policy = Policy(modes=("incr*", "continue"), replay=ReplayRules(examples=5))
    assert declined_modes(policy) == ("full", "replay", "transfer", "extend")
    assert declined_modes(Policy(modes=())) == MODES
    for mode in MODES:
        request = job(train=TrainSection(rounds=10).model_copy(update={"mode": mode}))
        with pytest.raises(DeclinedRequest) if mode in declined_modes(policy) else nullcontext():
            check_prepare(policy, "clinics", request, NOON)


ALLOWED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"federations": ("other", "clin*")}, {}),
    ({"jobs": ("digits-[0-9]",)}, {}),
    ({"strategies": ("fed*",)}, {}),
    ({"max_rounds": 10, "max_local_epochs": 1}, {}),
    ({"max_local_steps": 6, "max_local_epochs": 1}, {"local_steps": 6}),
    ({"hours": ("12:00-12:01",)}, {}),
    ({"hours": ("00:00-24:00",)}, {}),
    ({"hours": ("23:00-12:30",)}, {}),
]


@pytest.mark.parametrize(("limits", "train"), ALLOWED)
def test_what_is_just_within_the_rules_passes(limits: dict[str, Any], train: dict[str, Any]) -> None:
    """Limits include their value; hours their start and not their end, also over midnight."""
    check_prepare(Policy(**limits), "clinics", asks(**train), NOON)


def test_a_round_beyond_the_most_is_refused() -> None:
    """Whatever number of rounds the job announced."""
    with pytest.raises(DeclinedRequest, match="max_rounds"):
        check_train(Policy(max_rounds=10), "clinics", asks(), 11, NOON)


def test_examples_are_counted_as_they_train() -> None:
    """The smallest count is the least there can be."""
    for policy in (Policy(min_examples=90), Policy(min_examples=1, min_count=90)):
        check_examples(policy, asks(), 90)
        with pytest.raises(DeclinedRequest, match="min_examples: expected at least 90") as caught:
            check_examples(policy, asks(), 89)
        assert "89" not in str(caught.value)


def test_steps_are_passes_over_the_data_too() -> None:
    """Many steps over few examples are more passes than allowed: 90 examples, batches of 32, two passes."""
    policy = Policy(max_local_epochs=2)
    check_examples(policy, asks(local_steps=5), 90)
    with pytest.raises(DeclinedRequest, match="max_local_epochs"):
        check_examples(policy, asks(local_steps=6), 90)


def test_modes_and_objectives_are_allowed_by_pattern() -> None:
    """Every objective of a job has to fit; a job without any does."""
    policy = Policy(modes=("continue", "incr*"), objectives=("e*", "recency"))
    both = NamedConfig(name="fedavg", objectives=["ewc", {"name": "recency"}])
    for request in (asks(), asks(mode="incremental"), job(strategy=both)):
        check_prepare(policy, "clinics", request, NOON)
    with pytest.raises(DeclinedRequest, match=r"policy at modes: expected one that fits continue, incr"):
        check_prepare(policy, "clinics", asks(mode="full"), NOON)
    more = NamedConfig(name="fedavg", objectives=[*both.settings["objectives"], "pgd"])
    with pytest.raises(DeclinedRequest, match=r"policy at objectives"):
        check_prepare(policy, "clinics", job(strategy=more), NOON)
    odd = NamedConfig(name="fedavg", objectives="ewc")
    with pytest.raises(DeclinedRequest, match=r"request-invalid at strategy"):
        check_prepare(policy, "clinics", job(strategy=odd), NOON)


def test_layers_are_allowed_with_all_that_is_inside() -> None:
    """By path; a pattern that is longer than the path does not fit."""
    policy = Policy(layers=("head", "outer/conv*"))
    check_layers(policy, ["head", "head/inner", "outer/conv2d_1"])
    for path in ("base", "outer", "outer/dense", "inner/head"):
        with pytest.raises(DeclinedRequest, match="policy at layers: expected only head, outer/conv"):
            check_layers(policy, ["head", path])


def test_statistics_leave_by_pattern_and_count() -> None:
    """The time it took is about nobody; counts below the smallest are told as none."""
    metrics = {"train-loss": 1.0, "val-loss": 2.0, "val-accuracy": 3.0, "seconds": 4.0, "own": 5.0}
    assert statistics_to_tell(Policy(), metrics, 5, 5) == metrics
    assert set(statistics_to_tell(Policy(), metrics, 5, 4)) == {"train-loss", "seconds", "own"}
    assert set(statistics_to_tell(Policy(min_count=6), metrics, 5, 6)) == {"val-loss", "val-accuracy", "seconds"}
    assert set(statistics_to_tell(Policy(statistics=("val-*",)), metrics, 9, 9)) == {"val-loss", "val-accuracy"}
    assert statistics_to_tell(Policy(statistics=()), metrics, 9, 9) == {}
    assert [count_to_tell(Policy(), count) for count in (0, 4, 5)] == [0, 0, 5]


def test_bundles_are_the_kits_and_those_that_are_named() -> None:
    """No other."""
    policy = Policy(bundles=("a" * 64,))
    assert [bundle_accepted(policy, "b" * 64, got * 64) for got in "abc"] == [True, True, False]


def test_a_policy_is_told_in_words() -> None:
    """Every rule that is set is in a sentence; an empty list of patterns allows nothing."""
    policy = Policy(
        jobs=("digits-*",),
        strategies=(),
        layers=("head",),
        max_rounds=7,
        max_local_epochs=3,
        max_local_steps=99,
        max_seconds=60.5,
        hours=("22:00-06:00",),
        min_examples=30,
        min_count=8,
        statistics=("val-*",),
        approval=True,
        bundles=("a" * 64,),
    )
    text = " ".join(describe(policy))
    for word in ("digits-*", "(none)", "head", "7 rounds", "3 times", "99", "60.5", "22:00-06:00", "30", "8", "val-*"):
        assert word in text
    assert "must approve" in text
    assert len(describe(Policy())) < len(describe(policy))
    with pytest.raises(DeclinedRequest, match="strategies: expected one that fits nothing"):
        check_prepare(policy, "clinics", job(strategy=NamedConfig(name="fedavg")), NOON)
    assert RUN.startswith("digits-")
