"""Seals: what was signed is what is opened, and nothing else opens."""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st

from fedretrain import seal
from fedretrain.digest import canonical_json
from fedretrain.messages import TrainReply, TrainRequest, pack
from fedretrain.seal import CONTEXT, LIMIT, About, BrokenSeal, Claims, request_claims, sealed, unsealed

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ABOUT = About(federation="clinics", message_type="train", run="r1", round=3, site="a")
BODY = TrainRequest(run="r1", round=3, contract="c" * 64, globals_digest="d" * 64)
NOW = 1_700_000_000.0


def message(metrics: dict[str, Any] | None = None) -> RecordDict:
    body = TrainReply(**BODY.model_dump(exclude={"kind"}), site="a", update_digest="e" * 64) if metrics else BODY
    return pack(body, {"00000": np.arange(4, dtype=np.float32)}, metrics)


def over_the_wire(content: RecordDict) -> RecordDict:
    return recorddict_from_proto(recorddict_to_proto(content))


def signed_text(text: str) -> RecordDict:
    """A message with claims of any text, signed by the right key."""
    content = message()
    content["seal"] = ConfigRecord({"json": text, "signature": KEY.sign(CONTEXT + text.encode())})
    return content


def complete() -> dict[str, Any]:
    """The claims of a good message, as JSON."""
    found: dict[str, Any] = json.loads(sealed(message(), request_claims(ABOUT, 10), KEY)["seal"]["json"])
    return found


@given(
    metrics=st.one_of(
        st.none(),
        st.dictionaries(st.text(max_size=8), st.one_of(st.floats(), st.integers(-(2**63), 2**63 - 1)), min_size=1),
    )
)
def test_what_was_sealed_opens_after_the_wire(metrics: dict[str, Any] | None) -> None:
    """Whatever the metrics are, NaN and infinity too; nothing of the seal is left in the content."""
    claims = request_claims(ABOUT, 10)
    found, content = unsealed(over_the_wire(sealed(message(metrics), claims, KEY)), KEY.public_key())
    assert found.is_about(ABOUT)
    assert found.nonce == claims.nonce
    assert sorted(content) == sorted(message(metrics))


def test_the_format_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """``fedretrain.seal/1``, byte for byte: seals of deployed sites and servers must open for ever."""
    monkeypatch.setattr(seal.secrets, "token_hex", lambda n: "ab" * n)
    monkeypatch.setattr(seal.time, "time", lambda: NOW)
    claims = request_claims(ABOUT, 10).model_copy(update={"software": "1"})
    record = sealed(message(), claims, KEY)["seal"]
    assert record["json"] == (
        '{"body":"ee2b7bbb8ab0c0183c7197ce0b2aa00b76f2e668fb248700e51761aac0d0e858","expires":1700000010,'
        '"federation":"clinics","issued":1700000000,"kind":"request","message_type":"train","metrics":"",'
        f'"nonce":"{"ab" * 16}","round":3,"run":"r1","site":"a","software":"1"}}'
    )
    assert record["signature"].hex() == (
        "6f552bd5aa01c2c3e98d0131eaf607c43ea40e4850c83dffd8d423af9a5fcf75"
        "17af88599bb6f93288d725ea315c95257c790d12a9bb94329fc1988e9f90ef08"
    )


def _change(record: str, key: str, value: Any) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content[record][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: c.pop("seal"), "not signed"),
        (lambda c: c.update({"seal": MetricRecord({"a": 1})}), "not signed"),
        (lambda c: c["seal"].update({"more": 1}), "malformed"),
        (lambda c: c["seal"].pop("signature"), "malformed"),
        (_change("seal", "signature", b"0" * 63), "malformed"),
        (_change("seal", "signature", "0" * 64), "malformed"),
        (_change("seal", "json", b"{}"), "malformed"),
        (_change("seal", "json", "x" * (LIMIT + 1)), "malformed"),
        (_change("seal", "signature", b"0" * 64), "not by the key"),
        (lambda c: _change("seal", "json", c["seal"]["json"].replace('"round":3', '"round":4'))(c), "not by the key"),
        (_change("body", "json", "{}"), "another message"),
        (lambda c: c.pop("body"), "no body"),
        (_change("body", "json", 1), "no body"),
        (_change("metrics", "num-examples", 8), "another message"),
        (_change("metrics", "num-examples", 7.0), "another message"),
        (_change("metrics", "more", 1), "another message"),
        (lambda c: c.pop("metrics"), "another message"),
    ],
)
def test_whatever_is_changed_breaks_it(change: Callable[[RecordDict], Any], why: str) -> None:
    """Each part of the seal, the body, and the metrics; the text repeats nothing of the message."""
    content = sealed(message({"num-examples": 7}), request_claims(ABOUT, 10), KEY)
    change(content)
    with pytest.raises(BrokenSeal, match=why):
        unsealed(content, KEY.public_key())


def test_metrics_that_were_not_there_when_it_was_signed() -> None:
    """Adding a record is a change."""
    content = sealed(message(), request_claims(ABOUT, 10), KEY)
    content["metrics"] = MetricRecord({"num-examples": 7})
    with pytest.raises(BrokenSeal, match="another message"):
        unsealed(content, KEY.public_key())


def test_another_key_does_not_open() -> None:
    """The signature has to be by the key that was expected."""
    with pytest.raises(BrokenSeal, match="not by the key"):
        unsealed(sealed(message(), request_claims(ABOUT, 10), KEY), Ed25519PrivateKey.generate().public_key())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "{",
        json.dumps({**complete(), "more": 1}, sort_keys=True, separators=(",", ":")),
        json.dumps({**complete(), "round": "3"}, sort_keys=True, separators=(",", ":")),
        json.dumps({**complete(), "round": -1}, sort_keys=True, separators=(",", ":")),
        json.dumps({**complete(), "kind": "order"}, sort_keys=True, separators=(",", ":")),
        json.dumps({**complete(), "nonce": "short"}, sort_keys=True, separators=(",", ":")),
        json.dumps({**complete(), "run": "r" * 65}, sort_keys=True, separators=(",", ":")),
    ],
)
def test_claims_of_another_form_are_refused_though_well_signed(text: str) -> None:
    """A member's key does not make any text a claim."""
    with pytest.raises(BrokenSeal, match="not of this version"):
        unsealed(signed_text(text), KEY.public_key())


def test_claims_have_one_spelling() -> None:
    """The same claims with white space, well signed, are refused: what is logged is what was signed."""
    with pytest.raises(BrokenSeal, match="not canonical"):
        unsealed(signed_text(json.dumps(complete())), KEY.public_key())


def test_arrays_are_shared_and_not_copied() -> None:
    """Sealing for many sites costs a signature each, not the arrays."""
    content = message()
    for site in "ab":
        about = ABOUT.model_copy(update={"site": site})
        assert sealed(content, request_claims(about, 10), KEY)["arrays"] is content["arrays"]
    assert isinstance(content["arrays"], ArrayRecord)
    assert "seal" not in content


def test_an_answer_is_about_the_same_and_as_long_valid() -> None:
    """Nonce and subject of the request; kind reply; its own time; nothing of the request's hashes."""
    request = request_claims(ABOUT, 10).model_copy(update={"issued": 1_000, "expires": 1_010, "body": "0" * 64})
    answer = request.answered()
    assert answer.is_about(ABOUT)
    assert (answer.kind, answer.nonce, answer.body) == ("reply", request.nonce, "")
    assert answer.expires - answer.issued == 10
    assert abs(answer.issued - time.time()) < 5


def test_what_it_is_about_is_compared_whole() -> None:
    """One field off is about something else."""
    claims = request_claims(ABOUT, 10)
    for field, other in {"federation": "x", "message_type": "x", "run": "x", "round": 4, "site": "b"}.items():
        assert not claims.is_about(ABOUT.model_copy(update={field: other}))


@pytest.mark.parametrize(
    ("at", "timely"), [(-301, False), (-299, True), (0, True), (10, True), (309, True), (311, False)]
)
def test_messages_expire(at: float, timely: bool) -> None:
    """Valid from issue to expiry, 300 s more on either side for clocks that differ."""
    claims = request_claims(ABOUT, 10).model_copy(update={"issued": int(NOW), "expires": int(NOW) + 10})
    assert claims.timely(NOW + at) is timely


def test_every_request_has_a_nonce_of_its_own() -> None:
    """And is valid for a second at least."""
    claims = [request_claims(ABOUT, 0.2) for _ in range(100)]
    assert len({c.nonce for c in claims}) == 100
    assert {c.expires - c.issued for c in claims} == {1}


def test_claims_are_small() -> None:
    """With names of the greatest length they stay under the limit a receiver reads."""
    longest = About(federation="f" * 64, message_type="m" * 64, run="r" * 64, round=10**9, site="s" * 64)
    claims = request_claims(longest, 10**6)
    assert len(canonical_json(claims.model_dump(mode="json"))) < LIMIT // 4
    assert isinstance(claims, Claims)
