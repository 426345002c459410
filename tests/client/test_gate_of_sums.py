"""Sums and companions pass the gatekeeper signed, allowed and on record, as everything else does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from client import approvals, record
from fedretrain.contract import keys
from fedretrain.digest import weights_digest
from fedretrain.job import NamedConfig
from fedretrain.messages import COMPANION, PREPARE, SUM, TRAIN, CompanionRequest, SumRequest, TrainRequest, pack

from .guarded import RECEIVED, RUN, Guarded, base, guarded, job, order

ARRAYS = [np.full((3, 2), 0.5, "float32")]
DIGEST = weights_digest(ARRAYS)


@pytest.fixture
def site(tmp_path: Path) -> Guarded:
    """A site that has joined."""
    return guarded(tmp_path)


def asked(**changes: Any) -> RecordDict:
    """The coordinator's request for a sum."""
    fields = {"run": RUN, "contract": job().contract.digest, "globals_digest": weights_digest(RECEIVED)}
    body = SumRequest.model_validate({**fields, "sum": NamedConfig(name="fisher"), **changes})
    return pack(body, dict(zip(keys([0]), RECEIVED, strict=True)))


def brought() -> RecordDict:
    """A companion."""
    return pack(CompanionRequest(run=RUN, companion=DIGEST), dict(zip(keys([0]), ARRAYS, strict=True)))


def test_a_sum_is_answered_sealed_and_is_on_record(site: Guarded) -> None:
    """Signature, nonce and record as for an update; what is not signed for this request is refused unseen."""
    gate = site.start()
    assert site.ask(gate, PREPARE, pack(job(sums=("fisher",))))["kind"] == "prepare"
    assert site.ask(gate, "query.base", base())["kind"] == "base"
    sealed = site.seal(SUM, asked())
    claims, body, content = site.opened(gate.handle(SUM, sealed))
    assert (claims.kind, claims.message_type, body["kind"], body["sum"]) == ("reply", SUM, "sum", "fisher")
    assert body["sum_digest"] == weights_digest([content.array_records["arrays"]["00000"].numpy()])
    sent = site.entries("sent")[-1]
    assert (sent["sum"], sent["counts"]) == ("fisher", {"examples": 50})
    assert "1 arrays of the sum fisher" in record.words(sent)
    assert "a sum over the data" in record.words(site.entries("asked")[-1])
    assert site.opened(gate.handle(SUM, sealed))[1]["code"] == "request-replayed"
    assert site.opened(gate.handle(SUM, asked()))[1]["code"] == "request-unsigned"
    assert site.ask(gate, SUM, asked(), round=1)["code"] == "request-unsigned"
    assert site.backend.summed == ["fisher"]


def test_a_sum_is_refused_before_data_are_touched(site: Guarded) -> None:
    """One the run did not name, one the policy keeps back, and one of another run; the backend is not asked."""
    gate = site.start()
    site.prepared(gate)
    assert site.ask(gate, SUM, asked())["where"] == "sum"
    assert site.ask(gate, SUM, asked(run="other"), run="other")["code"] == "model-missing"
    assert site.ask(gate, PREPARE, pack(job(sums=("fisher",))))["kind"] == "prepare"
    site.policy('statistics = ["val-*"]')
    refused = site.ask(gate, SUM, asked())
    assert (refused["code"], refused["where"]) == ("policy", "statistics")
    site.policy("min_count = 60")
    assert site.ask(gate, SUM, asked())["where"] == "min_count"
    assert site.backend.summed == ["fisher"]  # the last one, which was about 50


def test_a_person_approves_the_sums_too(site: Guarded) -> None:
    """A job that asks for one is another job, and says so in words."""
    site.policy("approval = true")
    gate = site.start()
    for sums in ((), ("fisher",)):
        assert site.ask(gate, PREPARE, pack(job(sums=sums)))["code"] == "not-approved"
    plain, with_sum = sorted(approvals.listed(site.home), key=lambda approval: len(approval.words))
    assert plain.job == approvals.job_digest(job())
    assert with_sum.words[-1].startswith("sends beside, as sums over the data: fisher, how much the model's answers")


def test_a_companion_is_kept_and_named_by_each_order(site: Guarded) -> None:
    """An order that names it trains with its arrays; before it came, the site says what it lacks."""
    gate = site.start()
    site.prepared(gate)
    fields = {"run": RUN, "round": 1, "contract": job().contract.digest, "globals_digest": weights_digest(RECEIVED)}
    body = TrainRequest.model_validate({**fields, "companions": {"fisher": DIGEST}})
    needing = pack(body, dict(zip(keys([0]), RECEIVED, strict=True)))
    lacking = site.ask(gate, TRAIN, needing)
    assert (lacking["code"], lacking["where"]) == ("model-missing", "companion")
    assert site.ask(gate, COMPANION, brought())["companion"] == DIGEST
    assert site.ask(gate, TRAIN, needing)["kind"] == "train"
    np.testing.assert_array_equal(site.backend.trained[-1].given["companion:fisher"][0], ARRAYS[0])
    assert site.ask(gate, TRAIN, order())["kind"] == "train"
    assert site.backend.trained[-1].given == {}
