"""Checks pass the gatekeeper signed, allowed and on record; training leaves out what the policy says."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from client import approvals, record
from client.checking.predictions import Answers
from client.policy import Policy, QualityRules, check_watch, describe
from fedretrain.checks import SECTIONS, Answer, CheckSettings
from fedretrain.contract import Contract, Feature, keys
from fedretrain.dataset import Dataset
from fedretrain.digest import weights_digest
from fedretrain.errors import DeclinedRequest
from fedretrain.job import NamedConfig, TrainSection
from fedretrain.messages import PREPARE, SUM, TRAIN, SumRequest, TrainRequest, pack

from .guarded import RECEIVED, RUN, Backend, Guarded, base, guarded, job

SETTINGS = CheckSettings(labels=("maybe",), metrics=("revenue", "staff"))
AGE = Feature(name="age", kind="column", input="x", index=0, edges=(0.0,))
METRICS = """
[metrics.revenue]
function = "own_numbers_b:revenue"
unit = "EUR"
path = "."
[metrics.staff]
function = "own_numbers_b:staff"
unit = "people"
path = "."
"""


class Answering(Backend):
    """Says "no" with certainty 0.9 to everything, and is sure of "yes" for the last thirty."""

    def answers(self, _order: Any, base: Any, received: Any, data: Dataset) -> Answers:
        base()
        assert received[0].tolist() == RECEIVED[0].tolist()
        no = np.array([0.9] * (len(data) - 30) + [0.05] * 30)
        return Answers({"y": np.column_stack([no, 1 - no])}, {})


@pytest.fixture
def site(tmp_path: Path) -> Guarded:
    """A site that has joined, whose file has a gap, an impossible age, and a label that nobody knows."""
    there = guarded(tmp_path)
    there.backend = Answering()
    x = np.random.default_rng(0).normal(size=(100, 3))
    x[0, 0], x[1, 0] = np.nan, 1e30
    y = np.repeat([0, 1], 50)
    y[60] = 7
    there.data(x=x, y=y)
    return there


def contract() -> Contract:
    narrow = job().contract.inputs[0].model_copy(update={"low": -9.0, "high": 9.0})
    return job().contract.model_copy(update={"features": (AGE,), "inputs": (narrow,)})


def check(run: str = "check-1") -> Any:
    return job(run, contract=contract(), check=True, sums=("check",))


def asked(run: str = "check-1", settings: CheckSettings = SETTINGS, **changes: Any) -> RecordDict:
    fields = {"run": run, "contract": contract().digest, "globals_digest": weights_digest(RECEIVED)}
    body = SumRequest.model_validate({**fields, "sum": settings.config, **changes})
    return pack(body, dict(zip(keys([0]), RECEIVED, strict=True)))


def answer(site: Guarded, gate: Any, settings: CheckSettings = SETTINGS) -> Answer:
    """Prepare the check, ask, and open the reply."""
    prepared = site.ask(gate, PREPARE, pack(check()), run="check-1")
    assert prepared["kind"] == "prepare", prepared
    assert site.ask(gate, "query.base", base("check-1"), run="check-1")["kind"] == "base"
    sealed = site.seal(SUM, asked(settings=settings), run="check-1")
    _, body, content = site.opened(gate.handle(SUM, sealed))
    assert body["kind"] == "sum", body
    arrays = [array.numpy() for _, array in sorted(content.array_records["arrays"].items())]
    assert body["sum_digest"] == weights_digest(arrays)
    return Answer.from_arrays(arrays, contract(), settings)


def test_a_check_counts_what_training_refuses(site: Guarded) -> None:
    """One row is missing, one impossible, 98 are complete; the record names what left, and no number of it."""
    gate = site.start()
    assert site.ask(gate, PREPARE, pack(job(contract=contract())))["code"] == "data-not-finite"
    got = answer(site, gate)
    assert got.examples == {"reference": 0, "recent": 98}
    recent = got.windows["recent"]
    assert recent["labels"]["y"].tolist() == [48, 49, -1, -1]  # the unknown one, and an empty cell that hides it
    assert recent["confusion"]["y"].tolist() == [[48, 0], [19, 30]]
    assert int(recent["missing"]["age"]) == -1
    sent = site.entries("sent")[-1]
    assert sent["statistics"] == sorted(
        f"check-{name}" for name in SECTIONS if name not in ("age", "business", "stream")
    )
    assert (sent["withheld"], sent["counts"]) == ([], {"examples": 98})
    assert "arrays of counts" in record.words(sent)


def test_a_policy_forbids_each_section_by_itself_and_all_at_once(site: Guarded) -> None:
    """The others are there; without "sum-check" nothing is read; a job's training rules do not hold for a check."""
    gate = site.start()
    site.policy('statistics = ["sum-*", "check-quality", "check-histogram"]\nmodes = ["full"]\nmax_rounds = 1')
    got = answer(site, gate)
    assert {name for name, code in got.reasons.items() if code == 0} == {"quality", "histogram"}
    assert "check-labels" in site.entries("sent")[-1]["withheld"]
    assert "kept back by policy: " in record.words(site.entries("sent")[-1])
    site.policy('statistics = ["val-*", "check-*"]')
    refused = site.ask(gate, PREPARE, pack(check()), run="check-1")
    assert (refused["code"], refused["where"]) == ("policy", "statistics")
    site.policy("min_examples = 99")
    assert site.ask(gate, PREPARE, pack(check()), run="check-1")["where"] == "min_examples"


def test_a_check_is_told_which_modes_are_declined_and_training_is_not(site: Guarded) -> None:
    """By the policy of the moment; the record has what was told."""
    site.data()
    gate = site.start()
    assert site.ask(gate, PREPARE, pack(check()), run="check-1")["declines"] == ["replay"]
    assert site.entries("sent")[-1]["declines"] == ["replay"]
    assert "modes not allowed here: replay" in record.words(site.entries("sent")[-1])
    site.policy('modes = ["replay", "full"]\n[policy.replay]\nexamples = 20')
    told = site.ask(gate, PREPARE, pack(check("check-2")), run="check-2")
    assert told["declines"] == ["continue", "incremental", "transfer", "extend"]
    site.policy("")
    trained = site.ask(gate, PREPARE, pack(job()))
    assert trained["kind"] == "prepare"
    assert "declines" not in trained


def test_hours_jobs_and_federations_hold_for_checks_too() -> None:
    """Each by its name; what is about training is not asked."""
    noon = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
    check_watch(Policy(modes=("full",), strategies=("median",)), "clinics", check(), noon)
    for rule, value in {"hours": ("22:00-06:00",), "jobs": ("digits-*",), "federations": ("other",)}.items():
        with pytest.raises(DeclinedRequest) as caught:
            check_watch(Policy(**{rule: value}), "clinics", check(), noon)  # type: ignore[arg-type]
        assert (caught.value.code, caught.value.where) == ("policy", rule)


def test_a_check_is_no_way_to_train_and_training_none_to_check(site: Guarded) -> None:
    """What was prepared for one is refused for the other: rules of one were never asked for the other."""
    gate = site.start()
    answer(site, gate)
    body = TrainRequest(run="check-1", round=1, contract=contract().digest, globals_digest=weights_digest(RECEIVED))
    order = pack(body, dict(zip(keys([0]), RECEIVED, strict=True)))
    refused = site.ask(gate, TRAIN, order, run="check-1")
    assert (refused["code"], refused["where"]) == ("request-invalid", "run")
    other = asked(sum=NamedConfig(name="evaluation"))
    assert site.ask(gate, SUM, other, run="check-1")["where"] == "sum"
    site.policy('[policy.quality]\nleave_out = ["missing", "impossible"]')
    site.data()
    run = job(contract=contract(), sums=("check",))
    assert site.ask(gate, PREPARE, pack(run))["kind"] == "prepare"
    assert site.ask(gate, SUM, asked(RUN))["where"] == "sum"
    assert site.backend.trained == []


def test_noise_is_on_every_count_and_on_record(site: Guarded) -> None:
    """The same each time it is asked for; its key is the site's alone."""
    site.policy("[policy.noise]\nepsilon = 0.5")
    gate = site.start()
    first, second = answer(site, gate), answer(site, gate)
    assert (first.epsilon, first.examples) == (0.5, second.examples)
    recent = first.windows["recent"]
    assert recent["histograms"]["age"].tolist() == second.windows["recent"]["histograms"]["age"].tolist()
    assert recent["confusion"]["y"].tolist() != [[48, 0], [19, 30]]
    assert "each count with noise of epsilon 0.5" in record.words(site.entries("sent")[-1])
    key = site.home.store / "checking" / "noise.key"
    assert (key.stat().st_mode & 0o777, len(key.read_bytes())) == (0o600, 32)


def test_what_a_site_declares_tells_no_small_window(site: Guarded) -> None:
    """41 of 100 complete examples are from before, fewer than 50: they are in no sum, so that none tells them."""
    x, time = np.random.default_rng(0).normal(size=(100, 3)), np.arange(100.0)
    site.data(x=x, y=np.repeat([0, 1], 50), timestamp=time)
    site.policy("min_count = 50")
    since = job().train.model_copy(update={"since": datetime.fromtimestamp(41.0, UTC)})
    request = job("check-1", contract=contract(), check=True, sums=("check",), train=since)
    assert site.ask(site.start(), PREPARE, pack(request), run="check-1")["train_examples"] == 59
    assert site.ask(site.start(), PREPARE, pack(check()), run="check-1")["train_examples"] == 100


def test_business_metrics_are_what_the_sites_functions_give(site: Guarded) -> None:
    """One takes the recent examples, one nothing; one that fails costs itself alone."""
    code = (
        "def revenue(arrays):\n    return len(arrays['x']) * 2\n\ndef staff():\n    raise ValueError('Winterbottom')\n"
    )
    (site.home.root / "own_numbers_b.py").write_text(code)
    site.policy(METRICS)
    got = answer(site, site.start())
    assert got.business == {"revenue": (196.0, "EUR")}


def test_training_leaves_out_what_the_policy_says_and_the_record_tells(site: Guarded) -> None:
    """Suspected labels are those of the last check: labelled "yes" and certain to be "no", and the other way round."""
    site.policy('[policy.quality]\nleave_out = ["missing", "impossible", "label-noise"]')
    y = np.repeat([0, 1], 50)
    x = np.random.default_rng(0).normal(size=(100, 3))
    x[0, 0], x[1, 0] = np.nan, 1e30
    site.data(x=x, y=y)
    gate = site.start()
    train = TrainSection(optimizer=NamedConfig(name="sgd"), loss="-", validation_fraction=0.0)
    before = site.ask(gate, PREPARE, pack(job(contract=contract(), train=train)))
    assert before["train_examples"] == 98
    answer(site, gate)
    after = site.ask(gate, PREPARE, pack(job(contract=contract(), train=train)))
    assert after["train_examples"] == 98 - 20  # labelled "yes", taken for "no" with 0.9
    assert site.entries("omitted")[-1]["counts"] == {"missing": 1, "impossible": 1, "label-noise": 20}
    assert "20 for label-noise" in record.words(site.entries("omitted")[-1])


def test_a_person_approves_a_check_as_what_it_is(site: Guarded) -> None:
    """Another job than training; its words say that nothing is trained."""
    site.policy("approval = true")
    gate = site.start()
    assert site.ask(gate, PREPARE, pack(check()), run="check-1")["code"] == "not-approved"
    (waiting,) = approvals.listed(site.home)
    assert "trains nothing" in waiting.words[0]
    assert "age" in waiting.words[1]
    assert approvals.job_digest(check()) != approvals.job_digest(check().model_copy(update={"check": False}))
    approvals.approve(site.home, waiting.id)
    assert site.ask(gate, PREPARE, pack(check("check-2")), run="check-2")["kind"] == "prepare"


def test_the_policy_says_what_of_a_check_leaves() -> None:
    """In plain words."""
    assert "Answers checks of data and model with counts: any part." in describe(Policy())
    assert "Answers no check of data and model." in describe(Policy(statistics=("val-*",)))
    narrow = Policy(statistics=("sum-check", "check-labels"), quality=QualityRules(leave_out=("missing",)))
    assert "Answers checks of data and model with counts: labels." in describe(narrow)
    assert "Leaves out of training, for its quality: missing." in describe(narrow)
