"""Strategies written for Flower: named, configured, asked and checked; none can wait without end or send by itself."""

import random
import time
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from fedretrain.errors import ConfigurationError, RunFailed
from fedretrain.job import NamedConfig
from strategies import make
from strategies.base import Arrays
from strategies.fedprox import Proximal
from strategies.flower import FlowerReply, FlowerStrategy
from strategies.objective import Plain

from . import foreign
from .rounds import aggregate, bits, built

HERE = "tests.strategies.foreign"
FLWR = "flwr.serverapp.strategy"
NODES = [50, 10, 40, 20, 30]
PARAMS: dict[str, Any] = {"00001": np.float32([[1, 2]]), "00004": np.array(0.5, np.float32)}
pytestmark = pytest.mark.usefixtures("in_a_run")


def named(name: str, seed: int = 0, **settings: Any) -> FlowerStrategy:
    strategy = make(NamedConfig(name=name, **settings), seed)
    assert isinstance(strategy, FlowerStrategy)
    return strategy


def replies(seed: int = 0, sites: int = 5) -> list[FlowerReply]:
    rng = np.random.default_rng(seed)
    return [
        FlowerReply(
            site=f"site-{i}",
            node=NODES[i],
            update={k: np.asarray(rng.normal(size=v.shape), v.dtype) for k, v in PARAMS.items()},
            examples=int(rng.integers(1, 100)),
            metrics={"loss": float(i), "accuracy": 0.5} | ({"extra": 1.0} if i else {"note": "text", "bad": np.nan}),
        )
        for i in range(sites)
    ]


def ask(strategy: FlowerStrategy, server_round: int = 1, nodes: list[int] = NODES) -> list[int]:
    return strategy.sample(server_round, PARAMS, nodes, foreign.Unreachable())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "no.such.module:X"}, "strategy.name: expected a module"),
        ({"name": f"{FLWR}:FedAvgg"}, f"did you mean '{FLWR}:FedAvg'?"),
        ({"name": f"{HERE}:NotAStrategy"}, "expected a subclass of flwr.serverapp.strategy.Strategy"),
        ({"name": "subprocess:Popen"}, "expected a subclass of flwr.serverapp.strategy.Strategy"),
        ({"name": f"{FLWR}:Strategy"}, "expected a complete strategy"),
        ({"name": f"{FLWR}:"}, "strategy.name: expected module:Class"),
        ({"name": f"{FLWR}:FedAvg", "fraction_trian": 0.5}, "strategy.fraction_trian: unknown argument"),
        ({"name": f"{FLWR}:FedAvg", "fraction_trian": 0.5}, "did you mean 'fraction_train'?"),
        ({"name": f"{FLWR}:FedTrimmedAvg", "beta": 0.5}, "`beta` must be in the range [0, 0.5)"),
        ({"name": f"{FLWR}:FedAvg", "weighted_by_key": "loss"}, "strategy.weighted_by_key: expected 'num-examples'"),
        ({"name": f"{FLWR}:DifferentialPrivacyServerSideFixedClipping"}, "refuses its settings"),
        ({"name": f"{FLWR}:FedProx", "proximal_mu": "1"}, "strategy.proximal_mu: expected a number"),
    ],
)
def test_mistakes_in_the_job_are_one_line(config: dict[str, Any], message: str) -> None:
    """Wrong module, class, argument or value: a configuration error in one line, before anything starts."""
    with pytest.raises(ConfigurationError) as error:
        make(NamedConfig.model_validate(config))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_fedprox_trains_sites_with_its_mu() -> None:
    """Flower's FedProx sends proximal-mu; our sites minimise with that term."""
    strategy = named(f"{FLWR}:FedProx", proximal_mu=0.5)
    assert strategy.local == Proximal(0.5)
    assert ask(strategy) == NODES
    assert named(f"{FLWR}:FedAvg").local == Plain()


def test_a_mu_the_sites_do_not_know_is_refused() -> None:
    """A strategy that sends another weight than the job says would train something else than it believes."""
    strategy = named(f"{FLWR}:FedProx", proximal_mu=0.5)
    strategy._mu = 0.0
    with pytest.raises(ConfigurationError, match=r"strategy\.proximal_mu: expected 0\.5"):
        ask(strategy)


def test_sampling_is_the_strategys_and_seeded() -> None:
    """Two of five by fraction_train, in the order of nodes; the same by seed and round, others in other rounds."""
    first, again = (
        [ask(named(f"{FLWR}:FedAvg", seed=3, fraction_train=0.4), r) for r in range(1, 9)] for _ in range(2)
    )
    assert first == again
    assert len({tuple(nodes) for nodes in first}) > 1
    assert all(len(nodes) == 2 and nodes == [n for n in NODES if n in nodes] for nodes in first)


@pytest.mark.parametrize("key", ["min_available_nodes", "min_train_nodes"])
def test_too_few_prepared_sites_end_the_run_at_once(key: str) -> None:
    """Flower would wait for ever; the key to change is named."""
    start = time.monotonic()
    with pytest.raises(RunFailed, match=rf"strategy\.{key}: expected at least 6 sites, 5 prepared"):
        ask(named(f"{FLWR}:FedAvg", **{key: 6}))
    assert time.monotonic() - start < 0.5


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("Waiting", RunFailed, "still waits for more than the 5 prepared sites"),
        ("Sending", RunFailed, "calls grid.send_and_receive itself"),
        ("Stranger", RunFailed, r"expected some of the prepared nodes, got \{999\}"),
        ("Demanding", ConfigurationError, "sends sites 'temperature', which they do not act on"),
    ],
)
def test_what_a_strategy_may_not_do_is_said(name: str, error: type[Exception], message: str) -> None:
    """Waiting without end, sending by itself, asking strangers, and settings that no site acts on."""
    with pytest.raises(error, match=message):
        ask(named(f"{HERE}:{name}"))


def test_nobody_chosen_ends_the_run() -> None:
    """fraction_train = 0 asks no site: there is no round to play."""
    with pytest.raises(RunFailed, match="expected some of the prepared nodes, got 0"):
        ask(named(f"{FLWR}:FedAvg", fraction_train=0.0))


def test_replies_look_as_from_a_flower_client() -> None:
    """One arrays record with full parameters, one metrics record with num-examples and the claims all sites made."""
    strategy = named(f"{HERE}:Listening")
    sent = replies()
    strategy.aggregate(1, PARAMS, sent)
    seen: Any = strategy.foreign
    for message, reply in zip(seen.seen, sent, strict=True):
        assert message.metadata.src_node_id == reply.node
        assert foreign.metrics_of(message) == {
            "num-examples": reply.examples,
            "loss": reply.metrics["loss"],
            "accuracy": 0.5,
        }
        (record,) = message.content.array_records.values()
        got = {k: a.numpy() for k, a in record.items()}
        assert bits(list(got.values())) == bits([np.asarray(PARAMS[k] + reply.update[k]) for k in PARAMS])


def test_order_of_replies_and_global_generators_do_not_matter() -> None:
    """The same bits whatever order replies came in and whatever was drawn before; the generators are put back."""
    results = []
    for order in ([0, 1, 2, 3, 4], [3, 1, 4, 0, 2]):
        random.seed(order[0])
        np.random.seed(order[0])  # noqa: NPY002 - the generator such strategies use
        expected = random.Random(order[0]).random(), np.random.RandomState(order[0]).normal()
        sent = replies()
        results.append(bits(list(named(f"{HERE}:Listening").aggregate(2, PARAMS, [sent[i] for i in order]).values())))
        assert (random.random(), np.random.normal()) == expected  # noqa: NPY002
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("answer", "record", "message"),
    [
        ("raises", None, "aggregate_train raised ZeroDivisionError: division by zero"),
        ("none", None, "expected arrays from aggregate_train, got none"),
        ("keys", {"00001": np.zeros((1, 2), np.float32)}, r"expected arrays \['00001', '00004'\]"),
        ("shape", {"00001": np.zeros(2), "00004": np.zeros(())}, r"array 00001: expected shape \(1, 2\), got \(2,\)"),
        ("nan", {"00001": np.full((1, 2), np.nan), "00004": np.zeros(())}, "array 00001: expected finite values"),
    ],
)
def test_what_comes_back_is_checked(answer: str, record: Any, message: str) -> None:
    """Anything but finite arrays of the variables' shapes fails the round in one line."""
    foreign.ANSWERS[answer] = record and ArrayRecord({k: Array(v) for k, v in record.items()})
    with pytest.raises(RunFailed, match=message) as error:
        named(f"{HERE}:Answering", answer=answer).aggregate(1, PARAMS, replies())
    assert "\n" not in str(error.value)


ADAPTIVE = {"eta": 0.1, "tau": 0.01}
STATEFUL = [
    ("FedAdam", ADAPTIVE),
    ("FedYogi", ADAPTIVE),
    ("FedAdagrad", ADAPTIVE),
    ("FedAvgM", {"server_momentum": 0.9}),
]


def play(strategy: FlowerStrategy, params: dict[str, Any], rounds: range) -> dict[str, Any]:
    for server_round in rounds:
        strategy.sample(server_round, params, NODES, foreign.Unreachable())
        params = strategy.aggregate(server_round, params, replies(server_round))
    return params


@pytest.mark.parametrize(("name", "settings"), STATEFUL)
def test_state_saved_and_put_back_continues_with_the_same_bits(name: str, settings: dict[str, Any]) -> None:
    """A run broken after round 2 ends as an unbroken one; without the state it would not."""
    unbroken = play(named(f"{FLWR}:{name}", **settings), PARAMS, range(1, 5))
    broken = named(f"{FLWR}:{name}", **settings)
    params = play(broken, PARAMS, range(1, 3))
    resumed, forgetful = (named(f"{FLWR}:{name}", **settings) for _ in range(2))
    resumed.restore(broken.state())
    end = bits(list(unbroken.values()))
    assert bits(list(play(resumed, params, range(3, 5)).values())) == end
    assert bits(list(play(forgetful, params, range(3, 5)).values())) != end


def test_state_of_another_strategy_is_refused() -> None:
    """FedAvg has no m_t to put back."""
    with pytest.raises(RunFailed, match="FedAvg has no attribute 'm_t'"):
        named(f"{FLWR}:FedAvg").restore({"d:m_t/00001": np.zeros(1)})


def test_state_that_cannot_be_saved_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """An attribute of no kind that a checkpoint holds, changed since the start, is a warning and no silence."""
    strategy = named(f"{HERE}:Listening")
    strategy.aggregate(1, PARAMS, replies())
    strategy.state()
    assert "strategy attribute seen (list) is not in the checkpoint" in caplog.text


OURS = [
    ("FedAvg", {}, "fedavg", {}),
    ("FedAvgM", {"server_momentum": 0.9, "server_learning_rate": 0.5}, "fedavgm", None),
    ("FedAdagrad", ADAPTIVE, "fedadagrad", {"server_learning_rate": 0.1, "tau": 0.01}),
    ("FedAdam", ADAPTIVE, "fedadam", {"server_learning_rate": 0.1, "tau": 0.01}),
    ("FedYogi", ADAPTIVE, "fedyogi", {"server_learning_rate": 0.1, "tau": 0.01}),
    ("FedMedian", {}, "median", {}),
    ("FedTrimmedAvg", {"beta": 0.2}, "trimmed_mean", {"trim": 0.2}),
]


@pytest.mark.parametrize(("theirs", "their_settings", "name", "settings"), OURS, ids=[case[0] for case in OURS])
def test_agrees_with_flowers_own(theirs: str, their_settings: Any, name: str, settings: Any) -> None:
    """Three rounds of Flower's class against ours, to float32 rounding, once two differences are taken out.

    Flower starts v at 0 where the paper says at least τ²; and its FedAdam corrects the bias with the power
    t + 1 in round t (from 1), where the paper has no correction: η √(1 - β2^(t+1)) / (1 - β1^(t+1)).
    """
    flower = named(f"{FLWR}:{theirs}", **their_settings)
    strategy = built(name, **(their_settings if settings is None else settings))
    params: Arrays = list(PARAMS.values())
    state = (
        [np.zeros_like(a) for a in strategy.server.init(params)]
        if "Ada" in theirs or "Yogi" in theirs
        else (strategy.server.init(params))
    )
    flower_params = PARAMS
    for t in range(1, 4):
        sent = replies(t)
        delta = aggregate(strategy, [list(r.update.values()) for r in sent], [r.examples for r in sent])
        if theirs == "FedAdam":
            eta = 0.1 * np.sqrt(1 - 0.99 ** (t + 1)) / (1 - 0.9 ** (t + 1))
            strategy = built(name, **(settings | {"server_learning_rate": float(eta)}))
        state, params = strategy.server.apply(state, params, delta)
        flower_params = play(flower, flower_params, range(t, t + 1))
        for ours, other in zip(params, flower_params.values(), strict=True):
            np.testing.assert_allclose(ours, other, rtol=2e-5, atol=1e-6)
