"""Every built-in strategy keeps the invariants in strategies.base; a file added to the package is found by itself."""

import importlib
import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import strategies
from fedretrain.errors import ConfigurationError, FedretrainError, RejectedUpdate
from fedretrain.job import NamedConfig
from strategies import make
from strategies.base import Arrays, Settings, Strategy, Streaming, numpy_dtype
from strategies.registry import BUILT_IN

from .rounds import aggregate, bits, built, specs_of

CASES = [(name, {}) for name in BUILT_IN] + [
    ("fedavg", {"server_learning_rate": 0.5}),
    ("fedavgm", {"server_learning_rate": 0.5, "server_momentum": 0.5}),
    ("fedadagrad", {"beta_1": 0.5}),
    ("trimmed_mean", {"trim": 0.4}),
    ("krum", {"keep": 3}),
]
DTYPES = ["float16", "bfloat16", "float32", "float64"]
WEIGHTS = [3, 1, 250, 8, 40]


@pytest.fixture(params=CASES, ids=lambda case: "-".join([case[0], *map(str, case[1].values())]))
def strategy(request: pytest.FixtureRequest) -> Strategy:
    name, settings = request.param
    return built(name, **settings)


def model(dtype: str = "float32", seed: int = 0, scale: float = 1.0) -> Arrays:
    """Variables of several shapes, a scalar and an empty one among them."""
    rng = np.random.default_rng(seed)
    return [
        np.asarray(scale * rng.normal(size=s)).astype(numpy_dtype(dtype)) for s in [(3, 4), (7,), (), (0,), (2, 1, 2)]
    ]


def updates(dtype: str = "float32", scale: float = 0.01) -> list[Arrays]:
    return [model(dtype, seed, scale) for seed in range(1, len(WEIGHTS) + 1)]


def test_every_file_is_registered() -> None:
    """Each Settings class with a name, in any module of the package, can be named in a job."""
    for module in pkgutil.iter_modules(strategies.__path__):
        importlib.import_module(f"strategies.{module.name}")
    found, todo = set(), [Settings]
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        found |= {cls} if "name" in vars(cls) else set()
    assert found == set(BUILT_IN.values())


def test_order_of_arrival_does_not_change_a_bit(strategy: Strategy) -> None:
    """The aggregate of the same updates has the same bits in any order."""
    sent = updates()
    expected = bits(aggregate(strategy, sent, WEIGHTS))
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(sent))
        assert bits(aggregate(strategy, [sent[i] for i in order], [WEIGHTS[i] for i in order])) == expected


def test_scale_of_the_weights_does_not_matter(strategy: Strategy) -> None:
    """Seven times as many examples everywhere is the same aggregate, within the fixed point's resolution."""
    once, seven = aggregate(strategy, updates(), WEIGHTS), aggregate(strategy, updates(), [7 * w for w in WEIGHTS])
    for a, b in zip(once, seven, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-7, atol=1e-11)


def test_two_runs_have_the_same_bits(strategy: Strategy) -> None:
    """Three rounds played twice end with the same parameters and the same server state."""

    def play() -> Any:
        params, update = model(), aggregate(strategy, updates(), WEIGHTS)
        state = strategy.server.init(params)
        for _ in range(3):
            state, params = strategy.server.apply(state, params, update)
        return bits(params), bits(state)

    assert play() == play()


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_and_shape_are_kept(strategy: Strategy, dtype: str) -> None:
    """Aggregate and parameters have the dtype and shape of their variables, and really move by the update."""
    params = model(dtype)
    update = aggregate(strategy, updates(dtype), WEIGHTS)
    _, stepped = strategy.server.apply(strategy.server.init(params), params, update)
    for old, aggregated, new in zip(params, update, stepped, strict=True):
        assert (aggregated.dtype, aggregated.shape) == (new.dtype, new.shape) == (old.dtype, old.shape)
    assert bits(stepped) != bits(params)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_updates_are_refused(strategy: Strategy, value: float, dtype: str) -> None:
    """One NaN or infinity among many finite numbers is refused by code, and costs the others nothing."""
    good, bad = updates(dtype), model(dtype, seed=9)
    bad[0][-1, -1] = value
    if not isinstance(strategy.aggregation, Streaming):
        with pytest.raises(RejectedUpdate, match="not-finite"):
            aggregate(strategy, [*good, bad], [*WEIGHTS, 5])
        return
    state = strategy.aggregation.init(specs_of(bad), sum(WEIGHTS) + 5)
    for update, weight in zip(good, WEIGHTS, strict=True):
        with pytest.raises(RejectedUpdate, match="not-finite"):
            strategy.aggregation.fold(state, bad, 5)
        state = strategy.aggregation.fold(state, update, weight)
    assert bits(strategy.aggregation.finish(state)) == bits(aggregate(strategy, good, WEIGHTS, sum(WEIGHTS) + 5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_finite_in_is_finite_out_or_refused(strategy: Strategy, dtype: str) -> None:
    """With the greatest numbers a dtype holds, a result is finite or one of our errors is raised."""
    top = 6e4 if dtype == "float16" else 3e38 if dtype != "float64" else 1.7e308
    for size in (min(s, top) for s in (1.0, 1e6, 1e12, top)):
        params = [np.full_like(a, top) for a in model(dtype)]
        try:
            update = aggregate(strategy, [[np.full_like(a, size) for a in u] for u in updates(dtype)], WEIGHTS)
            assert all(np.isfinite(a).all() for a in update)
            _, stepped = strategy.server.apply(strategy.server.init(params), params, update)
        except FedretrainError:
            continue
        assert all(np.isfinite(a).all() for a in stepped)


def test_server_state_survives_a_checkpoint(strategy: Strategy, tmp_path: Path) -> None:
    """State written as safetensors and read back continues with the same bits as an unbroken run."""
    params, update = model(), aggregate(strategy, updates(), WEIGHTS)
    state, params = strategy.server.apply(strategy.server.init(params), params, update)
    file = tmp_path / "state.safetensors"
    save_file({f"{i:03d}": np.asarray(a, order="C") for i, a in enumerate(state)}, file)
    read = [array for _, array in sorted(load_file(file).items())]
    unbroken, resumed = (strategy.server.apply(s, params, update) for s in (state, read))
    assert (bits(unbroken[0]), bits(unbroken[1])) == (bits(resumed[0]), bits(resumed[1]))


def test_a_step_writes_to_none_of_its_arguments(strategy: Strategy) -> None:
    """State, parameters and update are the same bits after ``apply`` as before."""
    params, update = model(), model(seed=1)
    state = strategy.server.init(params)
    before = bits(state), bits(params), bits(update)
    strategy.server.apply(state, params, update)
    assert (bits(state), bits(params), bits(update)) == before


def test_zero_updates_leave_the_parameters_alone(strategy: Strategy) -> None:
    """Sites that learned nothing change nothing in the first round."""
    params = model()
    update = aggregate(strategy, [[np.zeros_like(a) for a in params]] * 3, [1, 2, 3])
    _, stepped = strategy.server.apply(strategy.server.init(params), params, update)
    assert bits(stepped) == bits(params)


def test_equal_settings_are_equal_objectives(strategy: Strategy) -> None:
    """A trainer can keep its compiled step by the local objective: equal and hashable."""
    again = built(strategy.name)
    assert isinstance(hash(strategy.local), int)
    assert strategy.local == again.local


@pytest.mark.parametrize("name", BUILT_IN)
def test_unknown_settings_are_named(name: str) -> None:
    """A setting the strategy does not have is refused in one line that names it."""
    with pytest.raises(ConfigurationError, match=r"^strategy\.bogus: unknown setting of \w+; [^\n]*$"):
        make(NamedConfig(name=name, bogus=1))
