"""The round loop over sites that answer, misbehave, fall silent or come back."""

import gc
import itertools
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from fedretrain.contract import VariableSpec
from fedretrain.errors import ConfigurationError, MachineError, RunFailed
from fedretrain.messages import BASE, PREPARE, TRAIN
from server.checkpoint import Checkpoint, Checkpoints
from server.rounds import sample

from .grid import CONTRACT, Answer, NumpySite, ScriptedGrid, pull_towards
from .parts import Loop, bits, weights


@pytest.fixture(autouse=True)
def _poll_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.exchange.POLL_S", 0.005)
    monkeypatch.setattr("server.spool.CHUNK_BYTES", 1 << 20)


def only(message_type: str, change: Callable[[RecordDict], Answer], rounds: Any = None) -> Callable[..., Answer]:
    """A tamper function for one kind of message, in all rounds or in some."""

    def tamper(given_type: str, request: Any, reply: RecordDict) -> Answer:
        hit = given_type == message_type and (rounds is None or request.round in rounds)
        return change(reply) if hit else reply

    return tamper


def silent(_: RecordDict) -> None:
    return None


def sites(n: int = 3) -> list[NumpySite]:
    return [NumpySite(name, 10 * (i + 1)) for i, name in enumerate("abcdefgh"[:n])]


def test_what_two_rounds_of_fedavg_give_by_hand(tmp_path: Path) -> None:
    """Sites pull half the way to 0 and 1 with 10 and 30 examples: x <- x + 0.5 (0.75 - x), twice; the rest stays."""
    loop = Loop(tmp_path, [NumpySite("a", 10, pull_towards(0.0)), NumpySite("b", 30, pull_towards(1.0))], rounds=2)
    state = loop.run()
    start = [weights()[i] for i in (1, 2, 4)]
    assert state.round == 2
    for got, x in zip(state.params, start, strict=True):
        np.testing.assert_allclose(got, 0.25 * x + 0.75 * 0.75, rtol=1e-6, atol=1e-6)
        assert (got.dtype, got.shape) == (x.dtype, x.shape)
    assert [e["event"] for e in loop.events if e["event"] not in {"reply", "site-prepared"}] == [
        "run-started", *["round-started", "checkpoint", "round-finished"] * 2
    ]  # fmt: skip


def test_only_changing_variables_travel_and_bytes_are_measured(tmp_path: Path) -> None:
    """36 bytes of values and three npy headers each way per site and round; the base goes once, counted apart."""
    loop = Loop(tmp_path, [NumpySite("a", has_base=True), NumpySite("b")], rounds=2)
    first, second = loop.run().history
    one_way = 2 * (4 * (6 + 2 + 1) + 3 * 128)
    assert [(r["bytes_down"], r["bytes_up"]) for r in (first, second)] == [(one_way, one_way)] * 2
    assert (first["bytes_base"], second["bytes_base"]) == (4 * (12 + 6 + 2 + 2 + 1) + 5 * 128, 0)
    assert [site.asked for site in loop.grid.sites.values()] == [[PREPARE, TRAIN, TRAIN], [PREPARE, BASE, TRAIN, TRAIN]]
    sent = [set(m.content.array_records["arrays"]) for m in loop.grid.sent if m.metadata.message_type == TRAIN]
    assert all(keys == {"00001", "00002", "00004"} for keys in sent)


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "median", "trimmed_mean"])
def test_the_order_of_arrival_does_not_change_a_bit(tmp_path: Path, strategy: str) -> None:
    """Every order of three replies, one of them poisoned: the same parameters, the same quarantine."""
    outcomes = set()
    for order in itertools.permutations((0.0, 0.03, 0.06)):
        given = [NumpySite(n, 7 + i, pull_towards(i + 0.1)) for i, n in enumerate("abc")]
        given.append(NumpySite("d", 50, pull_towards(1e4)))
        for site, delay in zip(given, (*order, 0.02), strict=True):
            site.delay_s = delay
        loop = Loop(tmp_path / str(order), given, rounds=2, strategy=strategy)
        outcomes.add((bits(loop.run()), tuple(loop.quarantined())))
    assert len(outcomes) == 1
    assert next(iter(outcomes))[1] == ((1, "d", "norm"), (2, "d", "norm"))


def test_arrival_order_of_nodes_does_not_matter_either(tmp_path: Path) -> None:
    """Sites are taken by name, whichever node they are."""
    forward = Loop(tmp_path / "1", [NumpySite(n, 5 + i, pull_towards(i)) for i, n in enumerate("abc")])
    backward = Loop(tmp_path / "2", [NumpySite(n, 5 + i, pull_towards(i)) for i, n in reversed(list(enumerate("abc")))])
    assert bits(forward.run()) == bits(backward.run())


@pytest.mark.parametrize("rounds_with_fault", [{1}, {2}])
@pytest.mark.parametrize("strategy", ["fedavg", "median"])
def test_fault_14_an_update_a_thousand_times_too_large(
    tmp_path: Path, rounds_with_fault: set[int], strategy: str
) -> None:
    """Judged by the last round's norms, in the first round by that round's own; the honest rest gives the model."""

    def boast(number: int, params: list[Any]) -> list[Any]:
        scale = 1000 if number in rounds_with_fault else 1
        return [np.asarray(scale * u, u.dtype) for u in pull_towards(1.0)(number, params)]

    loop = Loop(tmp_path, [*sites(3), NumpySite("x", 99, boast)], rounds=2, strategy=strategy)
    state = loop.run()
    assert loop.quarantined() == [(n, "x", "norm") for n in rounds_with_fault]
    assert "expected an L2 norm of at most" in loop.named("quarantined")[0]["detail"]
    assert all(abs(float(p.max())) < 3 for p in state.params)
    for record in state.history:
        admitted = {a["site"] for a in record["admitted"]}
        assert admitted == ({"a", "b", "c"} if record["round"] in rounds_with_fault else {"a", "b", "c", "x"})


def test_the_jobs_own_norm_bound_is_taken_as_it_is(tmp_path: Path) -> None:
    """With participation.max_update_norm nothing waits for the first round's end."""
    loop = Loop(tmp_path, [*sites(2), NumpySite("x", 10, pull_towards(50.0))], rounds=1, max_update_norm=20.0)
    loop.run()
    assert loop.quarantined() == [(1, "x", "norm")]
    assert "at most 20, got" in loop.named("quarantined")[0]["detail"]


def test_fault_18_last_rounds_reply_again_is_stale(tmp_path: Path) -> None:
    """A site that repeats itself contributes once; the round goes on without it."""
    kept: list[RecordDict] = []

    def repeat(reply: RecordDict) -> RecordDict:
        kept.append(reply)
        return kept[0]

    loop = Loop(tmp_path, [*sites(2), NumpySite("x", 10, tamper=only(TRAIN, repeat))])
    loop.run()
    assert loop.quarantined() == [(2, "x", "stale"), (3, "x", "stale")]


def test_fault_27_a_slow_site_is_left_out_and_invited_again(tmp_path: Path) -> None:
    """Late in round 1, in time in round 2."""
    slow = NumpySite("x", 10, tamper=only(TRAIN, silent, rounds={1}))
    loop = Loop(tmp_path, [*sites(2), slow], rounds=2, deadline_s=1.0)
    loop.run()
    assert loop.quarantined() == [(1, "x", "late")]
    assert loop.named("round-started")[1]["sites"] == ["a", "b", "x"]
    assert [a["site"] for a in loop.named("round-finished")[1]["admitted"]] == ["a", "b", "x"]


def test_fault_31_below_the_quorum_a_round_is_abandoned_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    """Round 2 has one update of two: tried twice, then the run fails and says why; later it goes on from round 1."""
    whole = Loop(tmp_path / "whole", sites(2)).run()
    given = sites(2)
    given[1].tamper = only(TRAIN, silent, rounds={2})
    loop = Loop(tmp_path / "broken", given, deadline_s=0.5)
    start = time.monotonic()
    with pytest.raises(RunFailed, match=r"round 2: abandoned 2 times in a row.*got 1 \(b: late\).*can be resumed"):
        loop.run()
    assert time.monotonic() - start < 5
    assert [e["round"] for e in loop.named("round-abandoned")] == [2, 2]
    resumed = Loop(tmp_path / "broken", sites(2), deadline_s=0.5)
    assert bits(resumed.run()) == bits(whole)
    assert resumed.named("run-started")[0]["completed"] == 1


def test_an_abandoned_round_that_works_the_second_time_counts(tmp_path: Path) -> None:
    """What went over the wire in vain is counted too."""
    attempts = iter([False, True])
    given = sites(2)
    given[1].tamper = only(TRAIN, lambda reply: reply if next(attempts) else None)
    loop = Loop(tmp_path, given, rounds=1, deadline_s=0.5)
    (record,) = loop.run().history
    assert len(loop.named("round-abandoned")) == 1
    assert (record["requests"], record["replies"]) == (4, 3)


def test_an_aggregate_that_is_not_finite_is_no_round(tmp_path: Path) -> None:
    """A server step beyond float32 leaves the state as it was."""
    loop = Loop(tmp_path, sites(2), strategy="fedadam", settings={"server_learning_rate": 1e39})
    with pytest.raises(RunFailed, match="round 1: abandoned 2 times in a row"):
        loop.run()
    assert list(loop.folder.state.iterdir()) == []


def test_faults_32_to_35_a_site_whose_data_do_not_fit_costs_itself_alone(tmp_path: Path) -> None:
    """Its code and where are shown, and the run goes on while min_sites holds."""
    refusing = NumpySite("x", declines={PREPARE: ("label-unknown", "y, position 2", "labels 0 to 1")})
    loop = Loop(tmp_path, [*sites(2), refusing], rounds=1)
    loop.run()
    assert loop.named("site-declined") == [
        {"event": "site-declined", "site": "x", "code": "label-unknown", "where": "y, position 2",
         "expected": "labels 0 to 1"}
    ]  # fmt: skip
    assert [e["site"] for e in loop.named("site-prepared")] == ["a", "b"]
    assert refusing.asked == [PREPARE]


def test_too_few_sites_that_can_train_is_said_with_every_reason(tmp_path: Path) -> None:
    """Exit code 4, and one line that names who declined and why."""
    given = [
        NumpySite("a"),
        NumpySite("b", declines={PREPARE: ("data-empty", "", "at least one example")}),
        NumpySite("c", tamper=only(PREPARE, lambda _: RecordDict())),
        NumpySite("d", declines={BASE: ("site-failure", "", "")}),
    ]
    with pytest.raises(RunFailed, match=r"got 1; declined: b: data-empty.*; node 3: malformed.*; d: site-failure") as e:
        Loop(tmp_path, given).run()
    assert e.value.exit_code == 4


def test_what_all_sites_refuse_is_said_once(tmp_path: Path) -> None:
    """However many they are."""
    given = [NumpySite(name, declines={PREPARE: ("data-empty", "x", "")}) for name in "abcdefgh"]
    with pytest.raises(RunFailed, match=r"got 0; declined: all 8 sites: data-empty at x$"):
        Loop(tmp_path, given).run()


def test_a_site_that_declares_without_bound_costs_the_others_nothing(tmp_path: Path) -> None:
    """It declares 10^12 examples and falls silent: its count is cut to 1000 times the median, and rounds go on."""
    boastful = NumpySite("x", 10**12, tamper=only(TRAIN, silent))
    loop = Loop(tmp_path / "1", [*sites(2), boastful], rounds=1, deadline_s=0.5)
    state = loop.run()
    assert "x declares 1000000000000 examples" in loop.named("warning")[0]["text"]
    assert "it counts for 20000" in loop.named("warning")[0]["text"]
    expected = Loop(tmp_path / "2", sites(2), rounds=1).run()
    for a, b in zip(state.params, expected.params, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_network_that_fails_is_the_machines_fault(tmp_path: Path) -> None:
    """Not a traceback of the transport's."""

    class Down(ScriptedGrid):
        def get_node_ids(self) -> list[int]:
            raise ConnectionRefusedError("port 8000")

    with pytest.raises(MachineError, match="cannot ask which sites are connected: port 8000; check the network"):
        Loop(tmp_path, [], Down([])).run()


def test_two_nodes_with_one_name(tmp_path: Path) -> None:
    """The second is declined; the first is asked."""
    loop = Loop(tmp_path, [*sites(2), NumpySite("a", 1000)], rounds=1)
    loop.run()
    assert loop.named("site-declined")[0]["site"] == "node 3"
    assert loop.named("site-declined")[0]["where"] == "a"
    assert [a["examples"] for a in loop.named("round-finished")[0]["admitted"]] == [10, 20]


def test_nodes_that_never_connect_are_waited_for_with_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And then it is said how many there are."""
    monkeypatch.setattr("server.prepare.await_nodes.__defaults__", (0.3,))
    with pytest.raises(RunFailed, match=r"expected at least 2 sites to be connected within 0.3 s, got 1"):
        Loop(tmp_path, sites(1)).run()


def test_a_site_that_lost_its_memory_is_prepared_again(tmp_path: Path) -> None:
    """It answers model-missing once, gets what it needs before the next round, and takes part again."""
    site = NumpySite("x")
    site.declines = {TRAIN: ("model-missing", "run", "a request to prepare this run before")}
    loop = Loop(tmp_path, [*sites(2), site], rounds=2)

    def forget(event: dict[str, Any]) -> None:
        if event["event"] == "quarantined":
            site.declines, site.has_base = {}, False

    loop.events = type("Watch", (list,), {"append": lambda self, e: (list.append(self, e), forget(e))})()
    loop.run()
    assert loop.quarantined() == [(1, "x", "declined")]
    assert site.asked == [PREPARE, BASE, TRAIN, PREPARE, BASE, TRAIN]
    assert [a["site"] for a in loop.named("round-finished")[1]["admitted"]] == ["a", "b", "x"]


def test_claims_are_averaged_by_the_examples_they_are_about(tmp_path: Path) -> None:
    """Validation claims by declared validation examples (1 and 3), others by training examples; seconds are not."""

    def claiming(values: dict[str, float]) -> Callable[[RecordDict], RecordDict]:
        def change(reply: RecordDict) -> RecordDict:
            reply.metric_records["metrics"].update(values)
            return reply

        return change

    a = NumpySite("a", 10, tamper=only(TRAIN, claiming({"val-loss": 1.0, "train-loss": 1.0, "seconds": 9.0})))
    b = NumpySite("b", 30, tamper=only(TRAIN, claiming({"val-loss": 2.0, "only-b": 5.0})))
    (record,) = Loop(tmp_path, [a, b], rounds=1).run().history
    assert record["metrics"] == {"only-b": 5.0, "train-loss": 1.0, "val-loss": 1.75, "val_loss": 0.5}


@pytest.mark.parametrize("name", ["FedAvg", "FedMedian"])
def test_a_strategy_written_for_flower_runs_in_the_same_loop(tmp_path: Path, name: str) -> None:
    """FedAvg of Flower gives what ours gives, to rounding, with the poisoned site held off by the same rules."""
    given = [*sites(3), NumpySite("x", 10, pull_towards(1e5))]
    theirs = Loop(tmp_path / "theirs", given, strategy=f"flwr.serverapp.strategy:{name}")
    state = theirs.run()
    assert theirs.quarantined() == [(n, "x", "norm") for n in (1, 2, 3)]
    ours = Loop(tmp_path / "ours", given, strategy="fedavg" if name == "FedAvg" else "median").run()
    for a, b in zip(state.params, ours.params, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", ["fedadam", "flwr.serverapp.strategy:FedAdam"])
def test_fault_39_from_the_checkpoint_before_a_corrupt_one_the_same_bits_come_out(
    tmp_path: Path, strategy: str
) -> None:
    """The corrupt file is named, the round is done again, and the server optimizer goes on where it was."""
    whole = Loop(tmp_path, sites(3), rounds=3, strategy=strategy)
    expected = bits(whole.run())
    newest = whole.folder.state / "round-0003.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    again = Loop(tmp_path, sites(3), rounds=3, strategy=strategy)
    assert bits(again.run()) == expected
    assert again.named("checkpoint-corrupt") == [{"event": "checkpoint-corrupt", "file": newest.name, "used": 2}]
    assert [e["round"] for e in again.named("round-started")] == [3]


def test_the_next_round_trains_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Round 2's requests are out before round 1's file is in place; until then neither round is announced."""
    loop = Loop(tmp_path, sites(2), rounds=2)
    save, seen = Checkpoints.save, []

    def wait_for_the_next(checkpoints: Checkpoints, given: Checkpoint) -> None:
        end = time.monotonic() + 10
        while (
            given.round == 1 and len(loop.grid.sent) < 8 and time.monotonic() < end
        ):  # 2 x prepare, base, train, train
            time.sleep(0.005)
        seen.append([e["round"] for e in loop.events if e["event"] in {"round-started", "checkpoint"}])
        save(checkpoints, given)

    monkeypatch.setattr(Checkpoints, "save", wait_for_the_next)
    loop.run()
    assert len(loop.grid.sent) == 8
    assert seen[0] == [1]


def test_a_round_whose_checkpoint_cannot_be_written_is_not_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full after round 1: the run ends with that, and goes on from round 1 when there is room."""
    expected = bits(Loop(tmp_path / "whole", sites(2)).run())
    save = Checkpoints.save

    def full(checkpoints: Checkpoints, given: Checkpoint) -> None:
        if given.round == 2:
            raise MachineError("no space left")
        save(checkpoints, given)

    loop = Loop(tmp_path / "full", sites(2))
    monkeypatch.setattr(Checkpoints, "save", full)
    with pytest.raises(MachineError, match="no space left"):
        loop.run()
    monkeypatch.setattr(Checkpoints, "save", save)
    assert [e["round"] for e in loop.named("round-finished")] == [1]
    again = Loop(tmp_path / "full", sites(2))
    assert bits(again.run()) == expected
    assert again.named("run-started")[0]["completed"] == 1


def test_a_finished_loop_asks_no_site(tmp_path: Path) -> None:
    """With every round in a checkpoint there is nothing to send."""
    state = Loop(tmp_path, sites(2)).run()
    again = Loop(tmp_path, [])
    assert bits(again.run()) == bits(state)
    assert again.grid.sent == []


def test_another_model_under_a_run_that_began_is_refused(tmp_path: Path) -> None:
    """A resumed run goes on with what it began with, or not at all."""
    Loop(tmp_path, sites(2), rounds=1).run()
    loop = Loop(tmp_path, sites(2), rounds=1)
    contract = loop.plan.contract.model_copy(update={"base": "0" * 64})
    object.__setattr__(loop.plan, "contract", contract)
    with pytest.raises(ConfigurationError, match="changed since the run began; put them back"):
        loop.run()


KILLED = """
import sys
from pathlib import Path
from tests.server.parts import Loop
from tests.server.test_rounds import sites
Loop(Path(sys.argv[1]), sites(3), rounds=3, strategy="fedadam").run()
"""


@pytest.mark.parametrize("point", ["aggregated", "checkpoint-written", "checkpoint-committed"])
def test_fault_36_killed_in_a_round_it_resumes_to_the_same_bits(tmp_path: Path, point: str) -> None:
    """SIGKILL at each step of the first round, then at each of the next, until it is through."""
    expected = bits(Loop(tmp_path / "whole", sites(3), strategy="fedadam").run())
    environment = {**os.environ, "FAULT_AT": point}
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "run"], env=environment, check=False)
    assert killed.returncode == -9
    again = Loop(tmp_path / "run", sites(3), strategy="fedadam")
    assert bits(again.run()) == expected
    assert again.named("run-started")[0]["completed"] == (1 if point == "checkpoint-committed" else 0)
    assert list(again.folder.spool.iterdir()) == []
    assert not list(again.folder.state.glob(".*"))


def test_a_share_of_the_sites_is_drawn_by_the_seed_alone() -> None:
    """The same seed draws the same sites; another round others; never fewer than the quorum; shares round up."""
    names = [f"s{i:02d}" for i in range(30)]
    assert sample(names, 0.1, 2, (7, 1, 0)) == sample(names[::-1], 0.1, 2, (7, 1, 0))
    assert len(sample(names, 0.1, 2, (7, 1, 0))) == 3
    assert len(sample(names, 0.11, 2, (7, 1, 0))) == 4
    assert len(sample(names, 0.1, 5, (7, 1, 0))) == 5
    assert sample(names[:2], 0.1, 5, (7, 1, 0)) == names[:2]
    assert len({tuple(sample(names, 0.1, 2, (7, n, 0))) for n in range(20)}) > 10


@pytest.mark.parametrize("strategy", ["fedavg", "median"])
def test_memory_does_not_grow_with_the_number_of_sites(tmp_path: Path, strategy: str) -> None:
    """24 sites with 2 MB each, most of them quarantined: never as much in memory as half of their updates."""
    variable = VariableSpec(shape=(500_000,), dtype="float32", rule="train")
    contract = CONTRACT.model_copy(update={"variables": (variable,)})

    def poisonous(_round: int, params: list[Any]) -> list[Any]:
        return [np.full_like(p, np.nan) for p in params]

    given = [NumpySite(f"s{i:02d}", 10, poisonous if i % 3 else None, has_base=True) for i in range(24)]
    loop = Loop(tmp_path, given, rounds=2, strategy=strategy, contract=contract)
    gc.disable()
    tracemalloc.start()
    loop.run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    gc.enable()
    assert peak < 12 * variable.nbytes


def test_a_fraction_is_asked_each_round(tmp_path: Path) -> None:
    """Those not drawn get no message."""
    loop = Loop(tmp_path, sites(6), rounds=3, fraction=0.5)
    loop.run()
    assert [len(e["sites"]) for e in loop.named("round-started")] == [3, 3, 3]
    assert sum(site.asked.count(TRAIN) for site in loop.grid.sites.values()) == 9
