"""Sums over the sites: exact, the same in any order, and what is wrong with one answer costs that answer alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from safetensors.numpy import load_file

from fedretrain.digest import weights_digest
from fedretrain.errors import ConfigurationError, RunFailed
from fedretrain.job import NamedConfig
from fedretrain.messages import COMPANION, SUM, TRAIN, SumReply, pack, request_arrays
from server.events import EventLog
from server.prepare import Site
from server.sums import Line, Sum, ask_sum

from .grid import NumpySite
from .parts import Loop, bits
from .sealed import Hospitals, clinics

FISHER = NamedConfig(name="fisher")
EWC = {"objectives": [{"name": "ewc", "strength": 1.0}]}


def line_of(loop: Loop) -> Line:
    emit = EventLog(loop.folder, loop._take)
    return Line(loop.plan, loop.grid, loop.folder.spool, emit, loop.messenger)


def sites_of(loop: Loop) -> list[Site]:
    return [Site(s.name, node, s.examples, s.examples // 10) for node, s in loop.grid.sites.items()]


def summed(out: Path, sites: list[NumpySite], what: NamedConfig = FISHER, **job: Any) -> tuple[Sum, Loop]:
    loop = Loop(out, sites, **job)
    params = [loop.plan.base.weights[i] for i in loop.plan.contract.changing]
    return ask_sum(line_of(loop), what, params, sites_of(loop)), loop


def three(**first: Any) -> list[NumpySite]:
    """Sites of 10, 20 and 30 examples whose means are 1, 2 and 3."""
    made = [NumpySite(name, 10 * i, **(first if i == 1 else {})) for i, name in enumerate("abc", 1)]
    for i, site in enumerate(made, 1):
        site.mean = float(i)
    return made


def test_the_mean_is_over_all_examples_and_in_any_order_the_same_bits(tmp_path: Path) -> None:
    """(10·1 + 20·2 + 30·3) / 60 = 7/3, for every value of every variable that trains."""
    found, loop = summed(tmp_path / "1", three())
    assert (found.examples, found.sites) == (60, ("a", "b", "c"))
    assert {name: a.shape for name, a in found.arrays.items()} == {"00001": (3, 2), "00004": ()}
    np.testing.assert_allclose(found.arrays["00001"], 7 / 3, rtol=1e-7)
    assert found.bytes_up > 0
    assert loop.named("sum") == [{"event": "sum", "sum": "fisher", "sites": ["a", "b", "c"], "examples": 60}]
    again, _ = summed(tmp_path / "2", three()[::-1])
    assert [a.tobytes() for a in again.arrays.values()] == [a.tobytes() for a in found.arrays.values()]


def with_body(reply: RecordDict, **changes: Any) -> RecordDict:
    body = SumReply.model_validate_json(str(reply.config_records["body"]["json"])).model_copy(update=changes)
    return RecordDict({**dict(reply.items()), "body": pack(body)["body"]})


def with_arrays(reply: RecordDict, change: Callable[[np.ndarray], np.ndarray]) -> RecordDict:
    arrays = {name: change(a) for name, a in request_arrays(reply).items()}
    body = SumReply.model_validate_json(str(reply.config_records["body"]["json"]))
    told = body.model_copy(update={"sum_digest": weights_digest(arrays.values())})
    return pack(told, arrays, dict(reply.metric_records["metrics"]))


HOSTILE: dict[str, tuple[str, Callable[[RecordDict], Any]]] = {
    "NaN": ("not-finite", lambda r: with_arrays(r, lambda a: np.full_like(a, np.nan))),
    "negative": ("malformed", lambda r: with_arrays(r, lambda a: -a)),
    "far too large": ("norm", lambda r: with_arrays(r, lambda a: a * 1e5)),
    "beyond what can be summed": ("malformed", lambda r: with_arrays(r, lambda a: a * 1e7)),
    "another shape": ("shape", lambda r: with_arrays(r, lambda a: np.ones((9, 9), a.dtype))),
    "another dtype": ("dtype", lambda r: with_arrays(r, lambda a: a.astype("float64"))),
    "another digest": ("malformed", lambda r: with_body(r, sum_digest="0" * 64)),
    "another site": ("site", lambda r: with_body(r, site="b")),
    "another run": ("stale", lambda r: with_body(r, run="r2")),
    "another sum": ("malformed", lambda r: with_body(r, sum="evaluation")),
    "other values": ("base", lambda r: with_body(r, globals_digest="0" * 64)),
    "another contract": ("contract", lambda r: with_body(r, contract="0" * 64)),
    "no examples": (
        "examples",
        lambda r: RecordDict({**dict(r.items()), "metrics": MetricRecord({"num-examples": 0})}),
    ),
    "no arrays": ("variables", lambda r: RecordDict({k: v for k, v in r.items() if k != "arrays"})),
    "no body": ("malformed", lambda r: RecordDict({**dict(r.items()), "body": ConfigRecord({"json": "{"})})),
    "an error": ("malformed", lambda _: ValueError("boom")),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_wrong_answer_costs_itself_alone(tmp_path: Path, what: str) -> None:
    """The other sites' mean comes out, (20·2 + 30·3) / 50, and the event says why one is not in it."""
    code, spoil = HOSTILE[what]
    found, loop = summed(tmp_path, three(tamper=lambda kind, _, reply: spoil(reply) if kind == SUM else reply))
    assert (found.sites, found.examples) == (("b", "c"), 50)
    np.testing.assert_allclose(found.arrays["00004"], 2.6, rtol=1e-6)
    (refused,) = loop.named("sum-refused")
    assert (refused["site"], refused["code"]) == ("a", code)


def test_more_examples_than_declared_count_for_no_more(tmp_path: Path) -> None:
    """A site that claims a billion examples weighs what it declared."""

    def boast(kind: str, _: Any, reply: RecordDict) -> RecordDict:
        return (
            RecordDict({**dict(reply.items()), "metrics": MetricRecord({"num-examples": 10**9})})
            if kind == SUM
            else reply
        )

    found, _ = summed(tmp_path, three(tamper=boast))
    assert found.examples == 60


def test_too_few_answers_fail_with_the_reasons(tmp_path: Path) -> None:
    """Two of three decline and two are needed: the error names them; what is no sum is a mistake of ours."""
    sites = three(declines={SUM: ("policy", "statistics", "one that fits val-*")})
    sites[1].declines = {SUM: ("data-too-few", "old examples", "at least 5")}
    with pytest.raises(
        RunFailed, match=r"a: declined: policy at statistics.*b: declined: data-too-few at old examples"
    ):
        summed(tmp_path / "1", sites)
    with pytest.raises(ConfigurationError, match="expected one of fisher"):
        summed(tmp_path / "2", three(), NamedConfig(name="everything"))
    with pytest.raises(ConfigurationError, match="sum fisher: most: Extra inputs"):
        summed(tmp_path / "3", three(), NamedConfig.model_validate({"name": "fisher", "most": 3}))


def test_an_evaluation_weighs_by_validation_examples(tmp_path: Path) -> None:
    """Sites declare 1, 2 and 3 of them; a loss that is far from the others' is no reason to leave it out."""
    sites = three()
    for site in sites:
        site.examples *= 10
        site.mean = 1.0
    found, _ = summed(tmp_path, sites, NamedConfig(name="evaluation"))
    assert found.examples == 60
    assert found.arrays["00001"].tolist() == [[1.0, 1.0]]


def test_examples_without_a_label_are_in_no_mean(tmp_path: Path) -> None:
    """Loss 3 over a quarter of 30 examples, and 1 over all of 10: (3 · 7.5 + 1 · 10) / 17.5."""

    def site(name: str, examples: int, loss: float, labelled: float) -> NumpySite:
        arrays = [np.array(1.0), np.array([[loss * labelled, labelled]]), np.array([labelled])]

        def answer(kind: str, _: Any, reply: RecordDict) -> RecordDict:
            if kind != SUM:
                return reply
            told = with_body(reply, sum_digest=weights_digest(arrays))
            body = SumReply.model_validate_json(str(told.config_records["body"]["json"]))
            return pack(body, {f"{i:05d}": a for i, a in enumerate(arrays)}, {"num-examples": examples})

        return NumpySite(name, 10 * examples, tamper=answer)

    found, _ = summed(tmp_path, [site("a", 30, 3.0, 0.25), site("b", 10, 1.0, 1.0)], NamedConfig(name="evaluation"))
    np.testing.assert_allclose(found.arrays["00001"], [[32.5 / 17.5, 1.0]])


def test_sums_are_signed_in_a_federation(tmp_path: Path) -> None:
    """Members' answers count; one that is not signed by its member does not, nor one signed for another request."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from fedretrain.seal import sealed

    other = Ed25519PrivateKey.generate()

    def forge(claims: Any, reply: RecordDict) -> RecordDict:
        if claims.message_type != SUM:
            return reply
        return sealed(RecordDict({k: v for k, v in reply.items() if k != "seal"}), claims.answered(), other)

    for name, change, counted in (("good", None, ("a", "b", "c")), ("forged", forge, ("b", "c"))):
        hospitals = Hospitals(tmp_path / name / "federation", clinics(3, forge=change) if change else clinics(3))
        loop = hospitals.loop(tmp_path / name / "out")
        loop.messenger.online()
        params = [loop.plan.base.weights[i] for i in loop.plan.contract.changing]
        assert ask_sum(line_of(loop), FISHER, params, sites_of(loop)).sites == counted
        assert all(c.round == 0 for s in hospitals.sites.values() for c in s.claims if c.message_type == SUM)


def test_objectives_get_what_they_need_once_and_a_resumed_run_goes_on_with_it(tmp_path: Path) -> None:
    """One sum before the first round, one companion to each site; after a restart the same one from the disk."""
    sites = three()
    loop = Loop(tmp_path, sites, rounds=2, settings=EWC)
    first = loop.run()
    for site in sites:
        assert site.asked.count(SUM) == site.asked.count(COMPANION) == 1
        assert site.asked.index(SUM) < site.asked.index(COMPANION) < site.asked.index(TRAIN)
    (digest,) = sites[0].companions
    np.testing.assert_allclose(sites[0].companions[digest]["00001"], 7 / 3, rtol=1e-7)
    assert load_file(loop.folder.state / "companion-fisher.safetensors").keys() == {"00001", "00004"}
    down = [record["bytes_down"] for record in first.history]
    assert down[0] > down[1]
    stopping = three()
    for site in stopping:
        site.tamper = lambda kind, request, reply: None if kind == TRAIN and request.round == 2 else reply
    with pytest.raises(RunFailed):
        Loop(tmp_path / "2", stopping, rounds=2, settings=EWC, deadline_s=0.3).run()
    other = three()
    for site in other:
        site.mean = 9.0  # is not asked again
    resumed = Loop(tmp_path / "2", other, rounds=2, settings=EWC, deadline_s=0.3)
    assert bits(resumed.run()) == bits(first)
    assert [site.asked.count(SUM) for site in other] == [0, 0, 0]
    assert other[0].companions.keys() == {digest}


def test_a_site_that_lost_its_companion_gets_it_again(tmp_path: Path) -> None:
    """It is prepared and brought what it needs once more, and trains in the round after."""
    sites = three()

    def forgets(kind: str, request: Any, reply: RecordDict) -> RecordDict:
        if kind == TRAIN and request.round == 1:
            sites[0].companions.clear()
        return reply

    sites[0].tamper = forgets
    loop = Loop(tmp_path, sites, rounds=3, settings=EWC)
    state = loop.run()
    assert [len(record["admitted"]) for record in state.history] == [3, 2, 3]
    assert sites[0].asked.count(COMPANION) == 2
    assert sites[0].asked.count(SUM) == 1


def test_a_site_that_cannot_keep_a_companion_is_left_out(tmp_path: Path) -> None:
    """It is not asked to train, the event says why, and the others go on."""
    sites = three(declines={COMPANION: ("site-failure", "", "")})
    loop = Loop(tmp_path, sites, rounds=1, settings=EWC)
    state = loop.run()
    assert [a["site"] for a in state.history[0]["admitted"]] == ["b", "c"]
    assert [(e["site"], e["where"]) for e in loop.named("site-declined")] == [("a", "companion fisher")]


def test_a_strength_that_the_learning_rate_does_not_bear_is_told(tmp_path: Path) -> None:
    """0.5 · 3 · 7/3 is over 2, at which plain steps diverge; a third of that is not."""
    sgd = NamedConfig.model_validate({"name": "sgd", "learning_rate": 0.5})
    for strength, told in ((3.0, 1), (1.0, 0)):
        settings = {"objectives": [{"name": "ewc", "strength": strength}]}
        loop = Loop(tmp_path / str(told), three(), rounds=1, settings=settings)
        train = loop.plan.train.model_copy(update={"optimizer": sgd})
        object.__setattr__(loop.plan, "train", train)
        loop.run()
        texts = [e["text"] for e in loop.named("warning")]
        assert len(texts) == told
        assert not texts or "A strength of at most 0.86 is safe" in texts[0]


def test_without_objectives_nothing_is_asked_and_messages_are_as_before(tmp_path: Path) -> None:
    """No sum, no companion, and no new field in any request."""
    sites = three()
    loop = Loop(tmp_path, sites, rounds=1)
    loop.run()
    assert not {SUM, COMPANION} & set(sites[0].asked)
    for message in loop.grid.sent:
        text = str(message.content.config_records["body"]["json"])
        assert '"sums"' not in text
        assert '"companions"' not in text
