"""Sealed rounds: only what a member signed for this very request counts, and what is wrong is said of the sender."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message, RecordDict

from fedretrain.errors import ConfigurationError, RunFailed
from fedretrain.messages import BASE, PREPARE, TRAIN, Declined, pack
from fedretrain.parcel import opened
from fedretrain.seal import Claims, sealed, unsealed
from server.exchange import Question, exchange
from server.messenger import messenger_of

from .grid import Answer
from .parts import Loop, bits
from .sealed import Forge, Hospitals, SealedSite, clinics
from .test_rounds import sites


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, unflushed: None) -> None:
    monkeypatch.setattr("server.exchange.POLL_S", 0.005)
    monkeypatch.setattr("server.attendance.LOOK_S", 0.02)
    monkeypatch.setattr("server.attendance.OTHERS_WAIT_S", 0.2)
    monkeypatch.setattr("server.attendance.NODE_WAIT_S", 0.6)
    monkeypatch.setattr("server.spool.CHUNK_BYTES", 1 << 20)


def in_training(forge: Forge, rounds: Any = range(1, 100)) -> Forge:
    """Forge the replies to train requests of some rounds."""
    return lambda claims, reply: forge(claims, reply) if claims.round in rounds else reply


def resealed(claims: Claims, reply: RecordDict, key: Any, **changes: Any) -> RecordDict:
    """A reply sealed anew by ``key``, with other claims."""
    rest = RecordDict({name: value for name, value in reply.items() if name != "seal"})
    return sealed(rest, claims.answered().model_copy(update=changes), key)


def run_with(folder: Path, forge: Forge, rounds: int = 2, **job: Any) -> tuple[Hospitals, Loop]:
    """Three honest sites and one that forges."""
    given = [*clinics(3), SealedSite("x", 50, forge=forge)]
    grid = Hospitals(folder, given)
    loop = grid.loop(folder, rounds=rounds, **job)
    loop.run()
    return grid, loop


def test_sealed_rounds_give_the_same_bits(tmp_path: Path) -> None:
    """A seal changes nothing about what is computed or counted."""
    plain = Loop(tmp_path / "plain", sites(3), rounds=2)
    grid = Hospitals(tmp_path / "sealed", clinics(3))
    loop = grid.loop(tmp_path / "sealed", rounds=2)
    expected, got = plain.run(), loop.run()
    assert bits(got) == bits(expected)
    assert [(r["bytes_down"], r["bytes_up"]) for r in got.history] == [
        (r["bytes_down"], r["bytes_up"]) for r in expected.history
    ]
    assert loop.quarantined() == []


def test_every_request_says_for_whom_and_what_it_is(tmp_path: Path) -> None:
    """Federation, run, round, site and type; a nonce of its own; valid until the deadline."""
    grid, _ = run_with(tmp_path, lambda _, reply: reply)
    claims = [c for site in grid.sites.values() for c in site.claims if c.message_type == TRAIN]
    assert {(c.federation, c.run, c.round, c.site) for c in claims} == {
        ("clinics", "r1", n, name) for n in (1, 2) for name in "abcx"
    }
    assert len({c.nonce for c in claims}) == 8
    assert {c.expires - c.issued for c in claims} == {20}


def test_arrays_are_made_once_for_all_sites(tmp_path: Path) -> None:
    """Each site's message is its own; the arrays in all of them are one object, serialised and hashed once."""
    grid, _ = run_with(tmp_path, lambda _, reply: reply, rounds=1)
    trained = [m.content for m in grid.sent if m.metadata.message_type == TRAIN]
    assert len({id(content["part-0"]) for content in trained}) == 1
    assert len({opened(content)["seal"]["signature"] for content in trained}) == 4


def test_fault_18_last_rounds_reply_again(tmp_path: Path) -> None:
    """Its signature holds, and it is of another round: stale."""
    kept: list[RecordDict] = []

    def repeat(_claims: Claims, reply: RecordDict) -> RecordDict:
        kept.append(reply)
        return kept[0]

    _, loop = run_with(tmp_path, in_training(repeat))
    assert loop.quarantined() == [(2, "x", "stale")]
    assert "expected run r1, round 2, signed for run 'r1', round 1" in loop.named("quarantined")[0]["detail"]


def test_fault_18_a_reply_to_another_request_of_the_same_round(tmp_path: Path) -> None:
    """The round was abandoned once: what was signed for the first attempt does not count in the second."""
    kept: list[RecordDict] = []

    def once(_claims: Claims, reply: RecordDict) -> Answer:
        kept.append(reply)
        return None if len(kept) == 1 else kept[0]

    given = [SealedSite("a"), SealedSite("x", forge=in_training(once))]
    loop = Hospitals(tmp_path, given).loop(tmp_path, rounds=1, deadline_s=0.4)
    with pytest.raises(RunFailed, match="x: stale"):
        loop.run()
    assert loop.quarantined() == [(1, "x", "late"), (1, "x", "stale")]
    assert "another request" in loop.named("quarantined")[1]["detail"]


def test_fault_19_an_update_against_another_base(tmp_path: Path) -> None:
    """Properly signed, and the body names other global values."""

    def other_base(message_type: str, request: Any, reply: RecordDict) -> RecordDict:
        if message_type == TRAIN:
            body = reply["body"]
            body["json"] = body["json"].replace(request.globals_digest, "0" * 64)
        return reply

    given = [*clinics(3), SealedSite("x", tamper=other_base)]
    loop = Hospitals(tmp_path, given).loop(tmp_path, rounds=1)
    loop.run()
    assert loop.quarantined() == [(1, "x", "base")]


def test_fault_20_another_sites_name_inside_the_signed_object(tmp_path: Path) -> None:
    """In the claims, or in the body: the sender is x, and nothing is held against a."""

    def as_a(message_type: str, _request: Any, reply: RecordDict) -> RecordDict:
        if message_type == TRAIN:
            reply["body"]["json"] = reply["body"]["json"].replace('"site":"y"', '"site":"a"')
        return reply

    x = SealedSite("x")
    x.forge = in_training(lambda claims, reply: resealed(claims, reply, x.signing, site="a"))
    grid = Hospitals(tmp_path, [*clinics(2), x, SealedSite("y", tamper=as_a)])
    loop = grid.loop(tmp_path, rounds=1)
    loop.run()
    assert sorted(loop.quarantined()) == [(1, "x", "site"), (1, "y", "site")]
    assert [a["site"] for a in loop.named("round-finished")[0]["admitted"]] == ["a", "b"]


def test_fault_20_another_sites_reply_as_ones_own(tmp_path: Path) -> None:
    """What a signed and x sends does not bear x's signature; a's own reply counts once."""
    seen: list[RecordDict] = []
    a = SealedSite("a", forge=in_training(lambda _, reply: seen.append(reply) or reply))  # type: ignore[func-returns-value]
    x = SealedSite("x", delay_s=0.2, forge=in_training(lambda *_: seen[0]))
    loop = Hospitals(tmp_path, [a, SealedSite("b"), x]).loop(tmp_path, rounds=1)
    loop.run()
    assert loop.quarantined() == [(1, "x", "signature")]


def test_fault_21_another_sites_id_outside(tmp_path: Path) -> None:
    """The label on the outside names node 1; the reply came for node 3's request, and node 3 is x."""
    x = SealedSite("x", forge=in_training(lambda _, reply: Message(reply, reply_to=Message(RecordDict(), 1, TRAIN))))
    loop = Hospitals(tmp_path, [*clinics(2), x]).loop(tmp_path, rounds=1)
    loop.run()
    assert loop.quarantined() == [(1, "x", "site")]


def _other_key(claims: Claims, reply: RecordDict) -> RecordDict:
    return resealed(claims, reply, Ed25519PrivateKey.generate())


def _unsigned(_claims: Claims, reply: RecordDict) -> RecordDict:
    return RecordDict({name: value for name, value in reply.items() if name != "seal"})


def _refused_unsigned(_claims: Claims, _reply: RecordDict) -> RecordDict:
    return pack(Declined(run="r1", site="x", code="trainer-failure"))


def _changed_metrics(_claims: Claims, reply: RecordDict) -> RecordDict:
    reply["metrics"]["num-examples"] = 1_000
    return reply


@pytest.mark.parametrize("forge", [_other_key, _unsigned, _refused_unsigned, _changed_metrics])
def test_a_reply_without_the_sites_signature(tmp_path: Path, forge: Forge) -> None:
    """Another key, none, one of our own making, or metrics changed under way."""
    _, loop = run_with(tmp_path, in_training(forge), rounds=1)
    assert loop.quarantined() == [(1, "x", "signature")]
    assert "expected the signature of x" in loop.named("quarantined")[0]["detail"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"kind": "request"}, "signature"),
        ({"federation": "others"}, "signature"),
        ({"message_type": "query.prepare"}, "signature"),
        ({"run": "r0"}, "stale"),
        ({"nonce": "0" * 32}, "stale"),
        ({"issued": 1, "expires": 2}, "stale"),
        ({"issued": 2**40, "expires": 2**41}, "stale"),
    ],
)
def test_a_signature_for_something_else(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    """Signed by the right key, for another purpose, run, request or time."""
    x = SealedSite("x")
    x.forge = in_training(lambda claims, reply: resealed(claims, reply, x.signing, **changes))
    loop = Hospitals(tmp_path, [*clinics(2), x]).loop(tmp_path, rounds=1)
    loop.run()
    assert loop.quarantined() == [(1, "x", code)]


def test_a_forged_answer_to_prepare_costs_its_sender_the_run(tmp_path: Path) -> None:
    """The refusal bears the name on the roster, whatever the answer says, signed or not."""

    def renamed(_type: str, _request: Any, reply: RecordDict) -> RecordDict:
        reply["body"]["json"] = reply["body"]["json"].replace('"site":"z"', '"site":"zz"')
        return reply

    x = SealedSite("x", forge=_other_key)
    y = SealedSite("y", forge=lambda *_: pack(Declined(run="r1", site="a", code="data-empty")))
    z = SealedSite("z", tamper=renamed)
    loop = Hospitals(tmp_path, [*clinics(2), x, y, z]).loop(tmp_path, rounds=1)
    loop.run()
    assert [(e["site"], e["code"]) for e in loop.named("site-declined")] == [
        ("x", "signature"), ("y", "signature"), ("z", "site")
    ]  # fmt: skip
    assert [e["site"] for e in loop.named("site-prepared")] == ["a", "b"]


def test_fault_27_a_site_slower_than_the_deadline_is_invited_again(tmp_path: Path) -> None:
    """Late in round 1; in round 2 it is asked again and counts."""
    slow = in_training(lambda *_: None, {1})
    _, loop = run_with(tmp_path, slow, deadline_s=0.6)
    assert loop.quarantined() == [(1, "x", "late")]
    assert [len(e["admitted"]) for e in loop.named("round-finished")] == [3, 4]


def test_fault_28_a_site_that_is_connected_and_never_answers(tmp_path: Path) -> None:
    """It costs each round its deadline and nothing else."""
    start = time.monotonic()
    _, loop = run_with(tmp_path, in_training(lambda *_: None), deadline_s=0.4)
    assert loop.quarantined() == [(1, "x", "late"), (2, "x", "late")]
    assert [len(e["admitted"]) for e in loop.named("round-finished")] == [3, 3]
    assert time.monotonic() - start < 3


def after_round(loop: Loop, number: int, act: Callable[[], None]) -> None:
    """Have something happen when a round's replies are in, before the next round looks who is there."""
    take, waiting = loop._take, 0

    def watched(event: dict[str, Any]) -> None:
        nonlocal waiting
        take(event)
        if event.get("round") != number or event["event"] not in {"round-started", "reply", "quarantined"}:
            return
        waiting += len(event["sites"]) if event["event"] == "round-started" else -1
        if not waiting:
            act()

    loop._take = watched  # type: ignore[method-assign]


def test_fault_30_a_site_that_goes_and_comes_back(tmp_path: Path) -> None:
    """Rounds go on at once without it; when it is back it takes part, without being prepared again."""
    grid = Hospitals(tmp_path, clinics(3))
    loop = grid.loop(tmp_path, rounds=4, deadline_s=30.0)
    after_round(loop, 1, lambda: grid.offline.add("c"))
    after_round(loop, 3, grid.offline.clear)
    start = time.monotonic()
    loop.run()
    assert time.monotonic() - start < 5
    assert [e["sites"] for e in loop.named("round-started")] == [
        ["a", "b", "c"],
        ["a", "b"],
        ["a", "b"],
        ["a", "b", "c"],
    ]
    assert [(e["event"], e["site"]) for e in loop.events if e["event"] in {"site-away", "site-back"}] == [
        ("site-away", "c"), ("site-back", "c")
    ]  # fmt: skip
    assert grid.sites[3].asked.count(PREPARE) == 1


def test_a_site_that_comes_late_is_invited(tmp_path: Path) -> None:
    """It is prepared between two rounds and counts from the next one on."""
    grid = Hospitals(tmp_path, clinics(3))
    grid.offline.add("c")
    loop = grid.loop(tmp_path, rounds=3)
    after_round(loop, 1, grid.offline.clear)
    loop.run()
    assert [e["sites"] for e in loop.named("round-started")] == [["a", "b"], ["a", "b", "c"], ["a", "b", "c"]]


def test_a_site_that_declined_may_change_its_mind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at once: a minute later, then two, then four."""
    monkeypatch.setattr("server.attendance.INVITE_AGAIN_S", 0.15)
    waiting = SealedSite("x", declines={PREPARE: ("not-approved", "", "a person's yes")})
    grid = Hospitals(tmp_path, [*clinics(2), waiting])
    loop = grid.loop(tmp_path, rounds=3)
    for number in (1, 2):
        after_round(loop, number, lambda: time.sleep(0.2))
    loop.run()
    assert waiting.asked == [PREPARE, PREPARE]
    assert [e["code"] for e in loop.named("site-declined")] == ["not-approved"] * 2


def test_a_site_that_declined_and_came_back_is_asked_at_once(tmp_path: Path) -> None:
    """Whoever restarted it has mended something."""
    x = SealedSite("x", declines={PREPARE: ("data-empty", "", "at least one example")})
    grid = Hospitals(tmp_path, [*clinics(2), x])
    loop = grid.loop(tmp_path, rounds=3)
    after_round(loop, 1, lambda: (grid.offline.add("x"), x.declines.clear()))  # type: ignore[arg-type,return-value]
    after_round(loop, 2, grid.offline.clear)
    loop.run()
    assert [len(e["sites"]) for e in loop.named("round-started")] == [2, 2, 3]


def test_a_site_admitted_anew_takes_its_old_place(tmp_path: Path) -> None:
    """Another machine with other keys under the same name: prepared, and asked instead of the old one."""
    anew = SealedSite("c", 30)
    grid = Hospitals(tmp_path, clinics(3))
    loop = grid.loop(tmp_path, rounds=2)

    def replace() -> None:
        grid.sites[4] = anew
        grid.enroll([grid.sites[1], grid.sites[2], anew])

    after_round(loop, 1, replace)
    loop.run()
    assert anew.asked == [PREPARE, BASE, TRAIN]
    assert [len(e["admitted"]) for e in loop.named("round-finished")] == [3, 3]


def test_fault_31_too_few_connected_sites_are_waited_for_with_a_limit(tmp_path: Path) -> None:
    """Twice, then the run stops with its state; when they are back it goes on to the same bits."""
    grid = Hospitals(tmp_path / "1", clinics(2))
    loop = grid.loop(tmp_path / "1", rounds=2)
    after_round(loop, 1, lambda: grid.offline.add("b"))
    start = time.monotonic()
    with pytest.raises(RunFailed, match=r"round 2: abandoned 2 times in a row.*connected.*got 1 \(a\)"):
        loop.run()
    assert time.monotonic() - start < 4
    grid.offline.clear()
    whole = Hospitals(tmp_path / "2", clinics(2)).loop(tmp_path / "2", rounds=2)
    assert bits(grid.loop(tmp_path / "1", rounds=2).run()) == bits(whole.run())


def test_at_the_start_it_is_said_who_is_there(tmp_path: Path) -> None:
    """With fewer members connected than the quorum nothing begins."""
    grid = Hospitals(tmp_path, clinics(3))
    grid.offline |= {"a", "c"}
    with pytest.raises(RunFailed, match=r"expected at least 2 members .* connected within 0.6 s, got 1 \(b\)"):
        grid.loop(tmp_path).run()


def test_a_site_that_connects_a_moment_later_ends_the_wait(tmp_path: Path) -> None:
    """A round below the quorum begins as soon as the quorum is there."""
    grid = Hospitals(tmp_path, clinics(2))
    loop = grid.loop(tmp_path, rounds=2)
    after_round(loop, 1, lambda: (grid.offline.add("b"), threading.Timer(0.2, grid.offline.clear).start()))  # type: ignore[arg-type,return-value]
    loop.run()
    assert loop.named("round-abandoned") == []


def test_a_revoked_site_is_out_at_the_next_round(tmp_path: Path) -> None:
    """It stays connected, and is sent nothing more."""
    grid = Hospitals(tmp_path, clinics(3))
    loop = grid.loop(tmp_path, rounds=3)
    after_round(loop, 1, lambda: grid.revoke("c"))
    loop.run()
    assert [len(e["sites"]) for e in loop.named("round-started")] == [3, 2, 2]
    assert grid.sites[3].asked.count(TRAIN) == 1
    assert loop.named("site-away")[0]["site"] == "c"


def test_a_site_revoked_while_it_trains_does_not_count(tmp_path: Path) -> None:
    """Its reply is not opened any more."""
    x = SealedSite("x", delay_s=0.1)
    grid = Hospitals(tmp_path, [*clinics(2), x])
    x.forge = in_training(lambda _, reply: grid.revoke("x") or reply)  # type: ignore[func-returns-value]
    loop = grid.loop(tmp_path, rounds=1)
    loop.run()
    assert loop.quarantined() == [(1, "x", "site")]
    assert "revoked" in loop.named("quarantined")[0]["detail"]


def test_a_site_revoked_just_before_is_not_written_to(tmp_path: Path) -> None:
    """Between looking who is there and sending."""
    grid = Hospitals(tmp_path, clinics(2))
    messenger = messenger_of(grid.federation, grid, "r1")
    assert messenger.online() == {1: "a", 2: "b"}
    grid.revoke("b")
    arrivals = list(exchange(grid, [2], Question(pack(Declined(run="", site="", code="")), TRAIN, "1", 5.0), messenger))
    assert [str(a.outcome) for a in arrivals] == ["site: not asked: it is no member of the federation any more"]
    assert grid.sent == []


def test_a_node_that_is_not_on_the_roster_is_never_asked(tmp_path: Path) -> None:
    """Connected or not, by whatever name it calls itself."""
    stranger = SealedSite("a")
    grid = Hospitals(tmp_path, [*clinics(2), stranger])
    grid.enroll(list(grid.sites.values())[:2])
    grid.loop(tmp_path, rounds=1).run()
    assert stranger.asked == []
    assert {m.metadata.dst_node_id for m in grid.sent} == {1, 2}


def test_a_site_that_lost_its_memory_is_prepared_again(tmp_path: Path) -> None:
    """As in a simulation."""
    grid = Hospitals(tmp_path, clinics(3))
    grid.sites[3].declines = {TRAIN: ("model-missing", "run", "a request to prepare this run before")}
    loop = grid.loop(tmp_path, rounds=2)
    after_round(loop, 1, lambda: setattr(grid.sites[3], "declines", {}))
    loop.run()
    assert loop.quarantined() == [(1, "c", "declined")]
    assert grid.sites[3].asked.count(PREPARE) == 2
    assert len(loop.named("round-finished")[1]["admitted"]) == 3


def test_a_damaged_roster_stops_the_run_and_blames_no_site(tmp_path: Path) -> None:
    """It is the operator's to restore."""
    grid = Hospitals(tmp_path, clinics(2))
    loop = grid.loop(tmp_path, rounds=1)
    grid.sites[1].forge = in_training(lambda _, reply: grid.federation.roster.write_bytes(b"{") and reply)
    with pytest.raises(ConfigurationError, match="restore it from a backup"):
        loop.run()
    assert loop.quarantined() == []


def test_a_federation_needs_a_grid_that_knows_its_nodes(tmp_path: Path) -> None:
    """A simulation's grid is refused with a federation, and is plain without one."""
    from .grid import ScriptedGrid

    grid = Hospitals(tmp_path, clinics(1))
    with pytest.raises(ConfigurationError, match="behind a SuperLink"):
        messenger_of(grid.federation, ScriptedGrid([]), "r1")
    assert messenger_of(None, ScriptedGrid([]), "r1").online() is None


def test_what_a_site_opens_is_what_was_asked(tmp_path: Path) -> None:
    """The coordinator's signature is over this body; another key's is refused at the site (``fedretrain.seal``)."""
    grid, loop = run_with(tmp_path, lambda _, reply: reply, rounds=1)
    message = next(m for m in grid.sent if m.metadata.message_type == TRAIN)
    claims, content = unsealed(opened(message.content), grid.coordinator.public_key())
    assert claims.site == "a"
    assert "seal" not in content
    assert loop.plan.contract.digest in content["body"]["json"]
