"""Nothing passes the gatekeeper but what the coordinator asks of this site now and the policy allows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from client import approvals, record
from client.nonces import ATTEMPTS
from fedretrain.errors import ConfigurationError, DeclinedRequest
from fedretrain.job import NamedConfig
from fedretrain.messages import BASE, PREPARE, RELEASE, TRAIN, ReleaseReply, ReleaseRequest, pack
from fedretrain.seal import SKEW_S, Claims, request_claims, sealed

from .guarded import RUN, Guarded, base, guarded, job, order


@pytest.fixture
def site(tmp_path: Path) -> Guarded:
    """A site that has joined."""
    return guarded(tmp_path)


def test_a_run_passes_and_each_answer_is_sealed_for_its_request(site: Guarded) -> None:
    """Prepare, base and two rounds; the reply's claims are the request's, its kind and signer are the site's."""
    gate = site.start()
    site.prepared(gate)
    for round_ in (1, 2):
        asked = site.seal(TRAIN, order(round_), round=round_)
        claims, body, content = site.opened(gate.handle(TRAIN, asked))
        sent = Claims.model_validate_json(str(asked.config_records["seal"]["json"]))
        assert (claims.kind, claims.nonce, claims.run, claims.round) == ("reply", sent.nonce, RUN, round_)
        assert (body["kind"], body["round"], body["site"]) == ("train", round_, "north")
        assert np.array_equal(content.array_records["arrays"]["00000"].numpy(), np.ones((3, 2), "float32"))
        assert content.metric_records["metrics"]["num-examples"] == 90
    assert record.verify(site.home.record, site.kit.coordinator).problems == ()


def resealed(site: Guarded, content: RecordDict, **changes: Any) -> RecordDict:
    """Signed by the coordinator with other claims."""
    claims = request_claims(site.about(TRAIN), 60).model_copy(update=changes)
    return sealed(content, claims, site.coordinator)


def without(content: RecordDict, name: str) -> RecordDict:
    return RecordDict({key: value for key, value in content.items() if key != name})


def with_seal(content: RecordDict, change: Callable[[ConfigRecord], None]) -> RecordDict:
    seal = ConfigRecord(dict(content.config_records["seal"].items()))
    change(seal)
    return RecordDict({**dict(content.items()), "seal": seal})


def edit(seal: ConfigRecord, name: str, value: Any) -> None:
    claims = json.loads(str(seal["json"]))
    seal["json"] = json.dumps(claims | {name: value}, sort_keys=True, separators=(",", ":"))


def flipped(data: Any) -> bytes:
    return bytes([data[0] ^ 1]) + bytes(data[1:])


NOT_FOR_US: dict[str, Callable[[Guarded], RecordDict]] = {
    "unsigned": lambda _: order(),
    "signature empty": lambda s: with_seal(s.seal(TRAIN, order()), lambda seal: seal.update(signature=b"")),
    "signature flipped": lambda s: with_seal(
        s.seal(TRAIN, order()), lambda seal: seal.update(signature=flipped(seal["signature"]))
    ),
    "claims edited": lambda s: with_seal(s.seal(TRAIN, order(2)), lambda seal: edit(seal, "round", 2)),
    "claims no JSON": lambda s: with_seal(s.seal(TRAIN, order()), lambda seal: seal.update(json="{")),
    "claims endless": lambda s: with_seal(s.seal(TRAIN, order()), lambda seal: seal.update(json="[" * 100_000)),
    "another key": lambda s: sealed(order(), request_claims(s.about(TRAIN), 60), Ed25519PrivateKey.generate()),
    "the seal of another message": lambda s: RecordDict(
        {**dict(order(2).items()), "seal": s.seal(TRAIN, order()).config_records["seal"]}
    ),
    "a reply": lambda s: resealed(s, order(), kind="reply"),
    "another site": lambda s: s.seal(TRAIN, order(), site="south"),
    "another federation": lambda s: s.seal(TRAIN, order(), federation="others"),
    "another type": lambda s: s.seal(PREPARE, order()),
    "another run": lambda s: s.seal(TRAIN, order(), run="digits-2"),
    "another round": lambda s: s.seal(TRAIN, order(), round=2),
    "expired": lambda s: resealed(s, order(), issued=int(s.clock) - 9000, expires=int(s.clock) - SKEW_S - 5),
    "from the future": lambda s: resealed(s, order(), issued=int(s.clock) + SKEW_S + 60, expires=int(s.clock) + 9000),
    "for all time, in the future": lambda s: resealed(s, order(), issued=10**30, expires=10**31),
    "no body": lambda s: without(s.seal(TRAIN, order()), "body"),
    "nothing": lambda _: RecordDict(),
}  # fmt: skip


@pytest.mark.parametrize("what", NOT_FOR_US)
def test_what_is_not_the_coordinators_for_this_site_now_is_refused_before_data_are_touched(
    site: Guarded, what: str
) -> None:
    """The refusal is sealed and recorded; no data were read and nothing was trained, and the run goes on after it."""
    gate = site.start()
    site.prepared(gate)
    (site.home.root / "data.npz").unlink()
    claims, body, _ = site.opened(gate.handle(TRAIN, NOT_FOR_US[what](site)))
    assert (claims.kind, claims.site, claims.federation) == ("reply", "north", "clinics")
    assert (body["kind"], body["code"]) == ("declined", "request-unsigned")
    assert body["where"] in ("signature", "kind", "site", "federation", "message type", "run", "round", "time")
    assert site.backend.trained == []
    assert site.entries("refused")[-1]["code"] == "request-unsigned"
    assert site.ask(gate, TRAIN, order())["kind"] == "train"


def test_a_clock_that_is_wrong_is_said_with_both_times(site: Guarded) -> None:
    """The site's operator and the server's can compare."""
    asked = site.seal(PREPARE, pack(job()))
    site.clock += 3600
    body = site.opened(site.start().handle(PREPARE, asked))[1]
    assert body["where"] == "time"
    assert "by the server's clock" in body["expected"]
    assert "by this site's" in body["expected"]


def test_a_request_counts_once_also_after_a_restart(site: Guarded) -> None:
    """The same message again is refused as replayed, by this trainer and by the next."""
    gate = site.start()
    site.prepared(gate)
    asked = site.seal(TRAIN, order())
    assert site.opened(gate.handle(TRAIN, asked))[1]["kind"] == "train"
    for again in (gate, site.start()):
        assert site.opened(again.handle(TRAIN, asked))[1]["code"] == "request-replayed"
    assert len(site.backend.trained) == 1


def test_a_refused_request_is_not_answered_another_way_later(site: Guarded) -> None:
    """What the policy refused stays refused under its nonce when the policy allows more."""
    site.policy('jobs = ["other-*"]')
    gate = site.start()
    asked = site.seal(PREPARE, pack(job()))
    assert site.opened(gate.handle(PREPARE, asked))[1]["code"] == "policy"
    site.policy("")
    assert site.opened(gate.handle(PREPARE, asked))[1]["code"] == "request-replayed"


def test_a_request_whose_trainer_died_may_come_again_a_few_times(site: Guarded) -> None:
    """The executor asks again after a crash and gets the answer; a request that kills every time is given up."""
    site.prepared(site.start())
    asked = site.seal(TRAIN, order())
    site.backend.fails = KeyboardInterrupt()
    for _ in range(ATTEMPTS - 1):
        with pytest.raises(KeyboardInterrupt):
            site.start().handle(TRAIN, asked)
    site.backend.fails = None
    assert site.opened(site.start().handle(TRAIN, asked))[1]["kind"] == "train"
    other = site.seal(TRAIN, order(2), round=2)
    site.backend.fails = KeyboardInterrupt()
    for _ in range(ATTEMPTS):
        with pytest.raises(KeyboardInterrupt):
            site.start().handle(TRAIN, other)
    assert site.opened(site.start().handle(TRAIN, other))[1]["code"] == "request-replayed"


def test_nonces_of_expired_requests_are_forgotten_a_day_later(site: Guarded) -> None:
    """The file does not grow for ever, and what it forgets the time in the request refuses."""
    asked = site.seal(PREPARE, pack(job()))
    site.start().handle(PREPARE, asked)
    nonces = site.home.store / "nonces"
    site.start()
    assert nonces.read_text() != ""
    site.clock += 90_000
    assert site.opened(site.start().handle(PREPARE, asked))[1]["where"] == "time"
    assert nonces.read_text() == ""


def test_policy_is_asked_before_data_are_read_and_at_every_message(site: Guarded) -> None:
    """A policy that is written during a run counts from the next message on; a broken site.toml stops everything."""
    gate = site.start()
    site.prepared(gate)
    (site.home.root / "data.npz").unlink()
    site.policy('strategies = ["krum"]')
    body = site.ask(gate, TRAIN, order())
    assert (body["code"], body["where"], body["expected"]) == ("policy", "strategies", "one that fits krum")
    site.policy("strategy = 1")
    body = site.ask(gate, TRAIN, order())
    assert (body["code"], body["where"]) == ("policy", "site.toml")
    site.home.site.unlink()
    assert site.ask(gate, TRAIN, order())["where"] == "site.toml"
    assert site.backend.trained == []


def test_layers_are_looked_at_in_the_model_itself(site: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each job, and before data are read; layers that the policy allows pass."""
    built: list[str] = []
    monkeypatch.setattr("client.gatekeeper.trained_layers", lambda job, _: built.append(job.run) or ("base", "head"))
    (site.home.root / "data.npz").rename(site.home.root / "away.npz")
    site.policy('layers = ["head"]')
    gate = site.start()
    body = site.ask(gate, PREPARE, pack(job()))
    assert (body["code"], body["where"]) == ("policy", "layers")
    site.policy('layers = ["head", "b*"]')
    assert site.ask(gate, PREPARE, pack(job()))["code"] == "data-unreadable"
    assert built == [RUN]


def test_small_data_are_not_counted_out(site: Guarded) -> None:
    """Fewer examples than the policy wants: the refusal names the rule, and no count leaves."""
    site.data(17)
    site.policy("min_examples = 20")
    body = site.ask(site.start(), PREPARE, pack(job()))
    assert (body["code"], body["where"]) == ("policy", "min_examples")
    assert "17" not in json.dumps(body)
    assert site.backend.prepared == []


def test_statistics_leave_by_name_and_by_count_only(site: Guarded) -> None:
    """What the policy does not list, and what is about too few examples, is kept back and recorded as such."""
    site.policy('statistics = ["val-*", "train-loss"]\nmin_count = 20')
    gate = site.start()
    prepared = site.ask(gate, PREPARE, pack(job()))
    assert (prepared["train_examples"], prepared["validation_examples"]) == (90, 0)
    site.ask(gate, BASE, base())
    content = site.opened(gate.handle(TRAIN, site.seal(TRAIN, order())))[2]
    assert dict(content.metric_records["metrics"]) == {"num-examples": 90, "train-loss": 0.5}
    assert site.entries("sent")[-1]["withheld"] == ["seconds", "val-accuracy", "val-loss"]


def test_a_backend_cannot_overwrite_the_number_of_examples(site: Guarded) -> None:
    """Whatever it calls its metrics."""
    site.backend.metrics = {"num-examples": 10**9}
    gate = site.start()
    site.prepared(gate)
    content = site.opened(gate.handle(TRAIN, site.seal(TRAIN, order())))[2]
    assert dict(content.metric_records["metrics"]) == {"num-examples": 90}


def test_training_that_takes_too_long_is_thrown_away(site: Guarded) -> None:
    """Also where the backend pays no attention to the limit it is given."""
    site.policy("max_seconds = 0.05")
    site.backend.takes_s = 0.1
    gate = site.start()
    site.prepared(gate)
    body = site.ask(gate, TRAIN, order())
    assert (body["code"], body["where"]) == ("policy", "max_seconds")
    assert site.backend.trained[0].seconds == 0.05


def test_a_job_waits_for_a_person_and_any_change_of_it_waits_again(site: Guarded) -> None:
    """Pending, approved, a second run of it, a change, and the yes taken back in the middle of a run."""
    site.policy("approval = true")
    gate = site.start()
    body = site.ask(gate, PREPARE, pack(job()))
    waiting = approvals.listed(site.home)
    assert (body["code"], body["where"]) == ("not-approved", f"job {waiting[0].id}")
    assert site.backend.prepared == []
    assert any("age, height, weight" in line for line in waiting[0].words)
    approvals.approve(site.home, waiting[0].id)
    site.prepared(gate)
    assert site.ask(gate, PREPARE, pack(job("digits-2")), run="digits-2")["kind"] == "prepare"
    assert site.ask(gate, PREPARE, pack(job(freeze=())))["code"] == "not-approved"
    assert site.ask(gate, PREPARE, pack(job(codec=NamedConfig(name="topk"))))["code"] == "not-approved"
    assert len(approvals.listed(site.home)) == 3
    approvals.withdraw(site.home, waiting[0].id)
    assert site.ask(gate, TRAIN, order())["code"] == "not-approved"
    assert site.backend.trained == []
    assert [entry["kind"] for entry in record.read(site.home.record) if "job" in entry] == ["approved", "withdrawn"]


def test_an_approval_is_asked_for_by_an_id_that_fits_one_job(site: Guarded) -> None:
    """Nothing is approved by an empty or unknown id; the known ones are named."""
    approvals.is_approved(site.home, job())
    approvals.is_approved(site.home, job(freeze=()))
    known = [approval.id for approval in approvals.listed(site.home)]
    for id_ in ("", "zz"):
        with pytest.raises(ConfigurationError, match="no job") as error:
            approvals.approve(site.home, id_)
        assert all(id_ in str(error.value) for id_ in known)


def test_an_approval_renamed_to_another_job_is_none(site: Guarded) -> None:
    """The file of one job does not speak for another."""
    approvals.is_approved(site.home, job())
    yes = approvals.approve(site.home, approvals.job_digest(job()))
    other = job(freeze=())
    file = site.home.approvals / f"{yes.job}.json"
    (site.home.approvals / f"{approvals.job_digest(other)}.json").write_bytes(file.read_bytes())
    assert approvals.is_approved(site.home, job())
    assert not approvals.is_approved(site.home, other)


def test_the_sites_own_validation_share_counts(site: Guarded) -> None:
    """It replaces the job's before anything is counted or kept."""
    text = site.home.site.read_text().replace('path = "data.npz"', 'path = "data.npz"\nvalidation_fraction = 0.5')
    site.home.site.write_text(text)
    gate = site.start()
    assert site.ask(gate, PREPARE, pack(job()))["validation_examples"] == 50
    site.ask(gate, BASE, base())
    content = site.opened(gate.handle(TRAIN, site.seal(TRAIN, order())))[2]
    assert content.metric_records["metrics"]["num-examples"] == 50


def test_examples_are_kept_only_by_policy_and_that_is_on_record(site: Guarded) -> None:
    """A job of the mode "replay" is refused by default; where the policy keeps some, the first round does it."""
    gate = site.start()
    train = job().train.model_copy(update={"mode": "replay"})
    replay = job().model_copy(update={"train": train})
    body = site.ask(gate, PREPARE, pack(replay))
    assert (body["code"], body["where"]) == ("policy", "replay")
    site.policy("[policy.replay]\nexamples = 20")
    assert site.ask(gate, PREPARE, pack(replay))["train_examples"] == 90  # nothing is kept yet
    site.ask(gate, BASE, base())
    for round_ in (1, 2):
        site.ask(gate, TRAIN, order(round_), round=round_)
    assert [(entry["examples"], entry["round"]) for entry in site.entries("kept")] == [(20, 1)]
    assert len(list(site.home.store.glob("replay/*/memory-*.vault"))) == 1
    again = replay.model_copy(update={"run": "digits-2"})
    assert site.ask(gate, PREPARE, pack(again), run="digits-2")["train_examples"] == 90  # and those are current
    next(site.home.store.glob("replay/*/memory-*.vault")).write_bytes(b"nothing of ours")
    third = replay.model_copy(update={"run": "digits-3"})
    for _ in range(2):  # it is removed, and said once
        assert site.ask(gate, PREPARE, pack(third), run="digits-3")["train_examples"] == 90
    assert [(entry["damaged"], entry["run"]) for entry in site.entries("kept")[1:]] == [(1, "digits-3")]
    site.policy("")
    site.prepared(gate)
    assert not list(site.home.store.glob("replay/*"))


def test_the_record_tells_what_was_asked_and_sent_and_proves_who_asked(site: Guarded) -> None:
    """Each request with the coordinator's signature; a changed line, or another coordinator's, is noticed."""
    gate = site.start()
    site.prepared(gate)
    site.ask(gate, TRAIN, order())
    kinds = [entry["kind"] for entry in record.read(site.home.record)]
    assert kinds == ["asked", "sent"] * 3
    last = site.entries("sent")[-1]
    assert (last["arrays"], last["counts"], last["run"], last["round"]) == (1, {"training examples": 90}, RUN, 1)
    words = "\n".join(record.words(entry) for entry in record.read(site.home.record))
    assert "training examples 90" in words
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
    assert len(record.verify(site.home.record, other).problems) == 3


def test_what_cannot_be_recorded_is_not_done(site: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    """A full disk, here a record that is a folder: declined, and nothing was trained or sent; the log says why."""
    gate = site.start()
    site.prepared(gate)
    site.home.record.unlink()
    site.home.record.mkdir()
    body = site.ask(gate, TRAIN, order())
    assert (body["kind"], body["code"]) == ("declined", "site-failure")
    assert site.backend.trained == []
    assert f"{site.home.record}: cannot write the site's record" in caplog.text


def test_a_flood_of_strangers_messages_is_one_line_a_minute(site: Guarded) -> None:
    """The record counts the others."""
    gate = site.start()
    for _ in range(50):
        gate.handle(TRAIN, order())
    site.clock += 61
    gate.handle(TRAIN, order())
    assert [entry["unrecorded"] for entry in site.entries("refused")] == [0, 49]


def test_an_unexpected_error_leaves_as_a_code(site: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    """Neither its text nor its class is in the answer; its text is not in the log either."""
    gate = site.start()
    site.prepared(gate)
    site.backend.fails = RuntimeError("Aurelia Winterbottom")
    body = site.ask(gate, TRAIN, order())
    assert (body["code"], body["where"], body["expected"]) == ("site-failure", "", "see the site's log")
    assert "Aurelia" not in caplog.text
    assert "Aurelia" not in site.home.record.read_text()


BAD_DATA = {
    "32 a column missing": ({"x": np.zeros((100, 2))}, "data-shape", "weight"),
    "33 an unknown label": ({"y": np.full(100, 7)}, "label-unknown", "y"),
    "34 NaN": ({"x": np.full((100, 3), np.nan)}, "data-not-finite", "age"),
    "35 an empty partition": ({"x": np.zeros((0, 3)), "y": np.zeros(0)}, "data-empty", "x"),
}


@pytest.mark.parametrize("what", BAD_DATA)
def test_fault_32_to_35_bad_data_are_declined_by_name(site: Guarded, what: str) -> None:
    """With a code that names the column; no value and no file name leaves, and the record says so."""
    changes, code, where = BAD_DATA[what]
    site.data(**changes)
    body = site.ask(site.start(), PREPARE, pack(job()))
    assert body["code"] == code
    assert where in body["where"]
    assert "npz" not in json.dumps(body)
    assert site.entries("refused")[-1]["code"] == code


def test_a_release_goes_to_the_installer_with_files_of_the_hashes_that_were_signed(
    site: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are others than the request names never reach it; a refusal there is a coded answer."""
    received: list[Any] = []

    class Installer:
        def __init__(self, *_args: object) -> None: ...

        def receive(self, request: ReleaseRequest, files: dict[str, bytes]) -> ReleaseReply:
            received.append(files)
            if not files:
                raise DeclinedRequest("release-refused", "metadata")
            return ReleaseReply(run=request.run, site="north", installed="a", used="a")

    monkeypatch.setattr("client.installer.Installer", Installer)
    gate = site.start()
    name, data = "metadata/timestamp.json", b"{}"
    files = {name: np.frombuffer(data, np.uint8)}
    hashes = {name: "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}
    request = ReleaseRequest(run=RUN, incumbent="a", files=hashes)
    assert site.ask(gate, RELEASE, pack(request, files))["used"] == "a"
    assert received == [{name: data}]
    lie = pack(request, {name: np.frombuffer(b"[]", np.uint8)})
    assert site.ask(gate, RELEASE, lie)["code"] == "request-invalid"
    assert site.ask(gate, RELEASE, pack(request))["code"] == "request-invalid"
    assert len(received) == 1
    assert site.ask(gate, RELEASE, pack(ReleaseRequest(run=RUN, incumbent="")))["code"] == "release-refused"


def test_a_type_nobody_knows_is_refused(site: Guarded) -> None:
    """Signed or not, with a name of any length."""
    gate = site.start()
    assert site.ask(gate, "query.other", order())["code"] == "request-invalid"
    assert site.opened(gate.handle("x\n" * 5000, order()))[1]["code"] == "request-unsigned"


def test_rounds_before_a_prepared_run_are_declined(site: Guarded) -> None:
    """A run that this site does not know, for instance with a store that was lost."""
    assert site.ask(site.start(), TRAIN, order())["code"] == "model-missing"


def test_arrays_that_are_not_those_of_the_digest_are_declined(site: Guarded) -> None:
    """The seal covers them through the digest in the body."""
    gate = site.start()
    site.prepared(gate)
    content = order()
    asked = site.seal(TRAIN, content)
    asked["arrays"] = ArrayRecord([np.full((3, 2), 9, "float32")], keep_input=False)
    body = site.opened(gate.handle(TRAIN, asked))[1]
    assert (body["code"], body["where"]) == ("request-invalid", "arrays")
    assert site.backend.trained == []
