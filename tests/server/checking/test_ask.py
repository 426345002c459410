"""A check of scripted sites: who is in it, who is not and why, whatever the others send."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedretrain.checks import POLICY
from fedretrain.errors import RunFailed
from fedretrain.messages import PREPARE, SUM, TRAIN, PrepareReply, pack
from server.checking.ask import Answers, ask_check
from server.checking.watched import Watched
from server.events import EventLog
from server.messenger import PLAIN, SealedMessenger
from tests.server.grid import NumpySite
from tests.server.parts import Loop
from tests.server.sealed import Hospitals, SealedSite

from .answers import SETTINGS, WATCHED, CheckSite


class SealedCheckSite(SealedSite, CheckSite):
    """A member that answers checks."""


def asked(out: Path, sites: Sequence[NumpySite], grid: Any = None) -> tuple[Answers, Loop]:
    loop = Loop(out, sites, grid) if grid is None else grid.loop(out)
    plan = dataclasses.replace(loop.plan, contract=WATCHED.model_copy(update={"base": loop.plan.contract.base}))
    what = Watched(plan, SETTINGS, None, None)
    messenger = SealedMessenger(grid.federation, grid, plan.run) if grid is not None else PLAIN
    return ask_check(what, loop.grid, EventLog(loop.folder, loop._take), messenger), loop


def test_each_site_answers_for_itself_and_trains_nothing(tmp_path: Path) -> None:
    """One question to each, as a check; counts stay apart, and the order of the sites does not matter."""
    sites = [CheckSite("a", 10), CheckSite("b", 20)]
    found, loop = asked(tmp_path / "1", sites)
    assert {name: site.recent.examples for name, site in found.sites.items()} == {"a": 7, "b": 18}
    assert found.bytes > 0
    assert all(site.asked.count(SUM) == 1 and TRAIN not in site.asked for site in sites)
    prepared = [m for m in loop.grid.sent if m.metadata.message_type == PREPARE]
    assert all('"check":true' in str(m.content.config_records["body"]["json"]) for m in prepared)
    (first, _) = loop.named("check-answer")
    assert (first["site"], first["reference"], first["recent"]) == ("a", 4, 7)
    again, _ = asked(tmp_path / "2", sites[::-1])
    assert again.sites == found.sites


def test_whoever_lies_declines_or_breaks_costs_itself_alone(tmp_path: Path) -> None:
    """The others' answers are in the check, and the reasons are told."""

    def boasting(answer: Any) -> None:
        answer.examples["recent"] = 10**6

    def withholding(answer: Any) -> None:
        answer.reasons["labels"] = POLICY
        for window in answer.windows.values():
            window["labels"]["y"][...] = -1

    sites = [
        CheckSite("a", 10),
        CheckSite("b", 10, change=boasting),
        CheckSite("c", 10, declines={SUM: ("policy", "statistics", "one that fits val-*")}),
        CheckSite("d", 10, tamper=lambda kind, _, reply: ValueError("boom") if kind == SUM else reply),
        CheckSite("e", 10, declines={PREPARE: ("data-empty", "x", "at least one example")}),
        CheckSite("f", 10, change=withholding),
        NumpySite("g", 10),
    ]
    found, loop = asked(tmp_path, sites)
    assert sorted(found.sites) == ["a", "f"]
    assert found.sites["f"].withheld["labels"] == "policy"
    assert {site: why.split(":")[0] for site, why in found.declined.items()} == {
        "b": "malformed",
        "c": "declined",
        "d": "malformed",
        "e": "data-empty at x (at least one example)",
        "g": "malformed",
    }
    assert [e["site"] for e in loop.named("check-refused")] == ["b", "c", "d", "g"]


def test_what_sites_do_not_allow_is_in_their_answers_and_nonsense_costs_a_site(tmp_path: Path) -> None:
    """As they say when they are prepared."""

    def declining(*modes: str) -> Any:
        def tamper(kind: str, _: Any, reply: Any) -> Any:
            if kind != PREPARE:
                return reply
            body = PrepareReply.model_validate_json(str(reply.config_records["body"]["json"]))
            return pack(body.model_copy(update={"declines": modes}))

        return tamper

    sites = [CheckSite("a", 10, tamper=declining("replay", "full")), CheckSite("b", 10)]
    sites.append(CheckSite("c", 10, tamper=declining("everything")))
    found, _ = asked(tmp_path, sites)
    assert {name: site.declines for name, site in found.sites.items()} == {"a": ("replay", "full"), "b": ()}
    assert found.declined["node 3"].startswith("malformed")


def put(array: int, place: Any, value: Any) -> Callable[[list[Any]], None]:
    def spoil(arrays: list[Any]) -> None:
        if place is None:
            arrays[array] = value
        else:
            arrays[array][place] = value

    return spoil


SPOILT = {
    "a smallest count that is no number": ("not-finite", put(0, 0, np.nan)),
    "a smallest count without bound": ("malformed", put(0, 0, 1e30)),
    "a unit that is no text": ("malformed", put(5, (0, 0), 255)),
    "an event of no stream": ("malformed", put(6, (0, 0), 9)),
    "counts of another shape": ("shape", put(7, None, np.zeros(99, np.int64))),
    "counts of another dtype": ("dtype", put(7, None, np.zeros(3, np.float64))),
}


@pytest.mark.parametrize("what", SPOILT)
def test_arrays_that_are_no_answer_cost_the_site_alone(tmp_path: Path, what: str) -> None:
    """Whatever is in them; the code says what."""
    code, spoil = SPOILT[what]
    found, _ = asked(tmp_path, [CheckSite("a", 10, spoil=spoil), CheckSite("b", 10)])
    assert sorted(found.sites) == ["b"]
    assert found.declined["a"].startswith(code)


def test_a_second_answer_changes_nothing(tmp_path: Path) -> None:
    """The first one stands, whatever comes after it."""

    def twice(kind: str, _: Any, reply: Any) -> Any:
        return [reply, reply] if kind == SUM else reply

    found, loop = asked(tmp_path, [CheckSite("a", 10, tamper=twice)])
    assert (sorted(found.sites), found.declined) == (["a"], {})
    assert loop.named("check-refused") == []


def test_no_answer_at_all_fails_with_the_reasons(tmp_path: Path) -> None:
    """There is nothing to write down."""
    declines = {SUM: ("policy", "statistics", "one that fits val-*")}
    with pytest.raises(RunFailed, match=r"check: expected the answer of at least one site.*a: declined: policy at"):
        asked(tmp_path, [CheckSite("a", 10, declines=declines)])


def test_answers_are_signed_in_a_federation(tmp_path: Path) -> None:
    """A member's answer counts; one with another's signature does not."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from flwr.app import RecordDict

    from fedretrain.seal import sealed

    other = Ed25519PrivateKey.generate()

    def forge(claims: Any, reply: RecordDict) -> RecordDict:
        if claims.message_type != SUM:
            return reply
        return sealed(RecordDict({k: v for k, v in reply.items() if k != "seal"}), claims.answered(), other)

    sites = [SealedCheckSite("a", 10, forge=forge), SealedCheckSite("b", 20)]
    found, _ = asked(tmp_path / "out", [], Hospitals(tmp_path / "federation", sites))
    assert sorted(found.sites) == ["b"]
    assert found.declined["a"].startswith("signature")
