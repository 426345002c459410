"""Every objective keeps the invariants in strategies.objective; a file added to the package is found by itself."""

import importlib
import pkgutil
from typing import Any

import numpy as np
import pytest

import strategies
from client.trainer import Order, Result, Trainer
from fedretrain.dataset import Dataset
from fedretrain.digest import weights_digest
from fedretrain.errors import ConfigurationError, DeclinedRequest
from fedretrain.job import NamedConfig
from strategies import local_objective
from strategies.objective import ObjectiveSettings, Plain
from strategies.registry import OBJECTIVES, objective_settings
from tests.client.parts import Case, case, classifier, examples

from .rounds import NEEDED

ZERO = {"proximal": "mu", "fgsm": "epsilon", "pgd": "epsilon", "distillation": "weight"}
ZERO |= {"perfedavg": "inner_learning_rate"}
"""The setting that makes an objective do nothing at 0, where it is not ``strength``."""
STRONG: dict[str, dict[str, Any]] = {"proximal": {"mu": 1.0}, "l2sp": {"strength": 1.0}}


def config(*names: str, strategy: str = "fedavg", **settings: Any) -> NamedConfig:
    objectives = [{"name": name, **NEEDED.get(name, {}), **STRONG.get(name, {}), **settings} for name in names]
    return NamedConfig.model_validate({"name": strategy, "objectives": objectives})


@pytest.fixture(params=OBJECTIVES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_file_is_registered() -> None:
    """Each settings class with a name, in any module of the package, can be named in a job."""
    for module in pkgutil.iter_modules(strategies.__path__):
        importlib.import_module(f"strategies.{module.name}")
    found, todo = set(), [ObjectiveSettings]
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        found |= {cls} if "name" in vars(cls) and cls.__module__.startswith("strategies.") else set()
    assert found == set(OBJECTIVES.values())


def test_every_setting_is_described(name: str) -> None:
    """A setting without description would be unexplained in an error."""
    assert all(f.description for f in OBJECTIVES[name].model_fields.values())


def test_unknown_settings_are_named(name: str) -> None:
    """A setting the objective does not have is refused in one line that names it."""
    with pytest.raises(ConfigurationError, match=r"^strategy\.objectives\[0\]\.bogus: unknown setting of \w+; [^\n]*$"):
        local_objective(config(name, bogus=1))


def test_it_survives_the_way_to_a_site(name: str) -> None:
    """As JSON in a request it is the same objective: equal, and with the same hash."""
    sent = config(name)
    arrived = NamedConfig.model_validate_json(sent.model_dump_json())
    assert objective_settings(sent) == objective_settings(arrived)
    one, other = local_objective(sent), local_objective(arrived)
    assert (one, hash(one)) == (other, hash(other))


def test_zero_strength_is_plain(name: str) -> None:
    """Then a job trains as it would without the objective, to the bit and in the same time."""
    key = ZERO.get(name, "strength")
    if key in OBJECTIVES[name].model_fields:
        assert local_objective(config(name, **{key: 0})) == Plain()
    else:
        assert local_objective(config(name)) == Plain()  # it chooses among the examples, and leaves the step alone


# --- through a real trainer


def bounded(**train: Any) -> Case:
    """The classifier with its first layer frozen and a range for its inputs, as every job's contract has one."""
    made = case(classifier(), freeze=("base",), metrics=("accuracy",), **train)
    inputs = tuple(spec.model_copy(update={"low": -9.0, "high": 9.0}) for spec in made.contract.inputs)
    contract = made.contract.model_copy(update={"inputs": inputs})
    return Case(made.request.model_copy(update={"contract": contract}), made.base)


def trained(trainer: Trainer, strategy: NamedConfig, count: int = 60, seed: int = 1) -> Result:
    """An update from values near the base model's, so that an anchor there is felt."""
    of = bounded(batch_size=8, local_epochs=2, validation_fraction=0.3, seed=seed)
    request = of.request.model_copy(update={"strategy": strategy})
    received = [array + np.float32(0.1) for array in of.received]
    groups = [g for g in local_objective(strategy).groups if g not in {"received", "incumbent"}]
    given = {group: [np.full_like(array, 2) for array in received] for group in groups}
    order = Order(request, "a", 1, given=given)
    return trainer.train(order, lambda: of.base, received, examples(of, count))


@pytest.fixture(scope="module")
def plain(tensorflow: None) -> Result:
    return trained(Trainer(compile=True), NamedConfig(name="fedavg"))


@pytest.fixture(scope="module")
def tensorflow() -> None:
    from client.trainer import configure_process

    configure_process()


def test_it_trains(name: str, plain: Result) -> None:
    """Finite, the same bits twice, in other bits than plainly, and nothing frozen changes.

    Whole batches by XLA and, the last of each epoch being smaller, without it: either way is taken.
    """
    strategy = config(name)
    if local_objective(strategy) == Plain():
        return  # what it does is done to the examples
    trainer = Trainer(compile=True)
    first, again = (trained(trainer, strategy) for _ in range(2))
    assert weights_digest(first.update) == weights_digest(again.update)
    assert all(np.isfinite(array).all() for array in first.update)
    assert {"train-loss", "val-loss", "val-accuracy"} < set(first.metrics)
    assert weights_digest(first.update) != weights_digest(plain.update)


def test_several_train_together(tensorflow: None) -> None:
    """A moving anchor, a fixed one, the incumbent's word, changed inputs and changed gradients; XLA finds the same."""
    names = ["l2sp", "distillation", "fgsm", "perfedavg"]
    results = [trained(Trainer(compile=c), config(*names, strategy="fedprox")) for c in (False, True)]
    for one, other in zip(*(result.update for result in results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


BY_HAND: list[tuple[list[Any], float]] = [
    ([], 0.4),  # plainly: -0.1 · 2 (1 - 3)
    ([{"name": "l2sp", "strength": 2.0}], 0.2),  # the slope has + 2 (1 - 0)
    ([{"name": "ewc", "strength": 1.0}], 0.2),  # + F (1 - 0) with F = 2
    ([{"name": "distillation", "weight": 1.0}], 0.2),  # + 2 (1 - 0): the incumbent says 0 · x
    ([{"name": "fgsm", "epsilon": 0.5, "share": 1.0}], 0.25),  # x goes from 1 to 0.5: 2 (0.5 - 3) · 0.5
    ([{"name": "perfedavg", "inner_learning_rate": 0.1}], 0.32),  # at 1.4: 2 (1.4 - 3)
    ([{"name": "l2sp", "strength": 1.0}, {"name": "fgsm", "epsilon": 0.5, "share": 1.0}], 0.15),  # -2.5 + 1
]


@pytest.mark.parametrize(("objectives", "change"), BY_HAND)
def test_one_step_of_a_real_trainer_by_hand(objectives: list[Any], change: float, tensorflow: None) -> None:
    """Loss (w x - y)² with x = 1, y = 3 and w = 1 as received, w = 0 of the incumbent; one step of 0.1."""
    import keras

    layers = [keras.Input((1,), name="x"), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")]
    of = case(keras.Sequential(layers), {"y": ("regression", "mse")}, local_steps=1, validation_fraction=0.0)
    inputs = (of.contract.inputs[0].model_copy(update={"low": -9.0, "high": 9.0}),)
    contract = of.contract.model_copy(update={"inputs": inputs})
    strategy = NamedConfig.model_validate({"name": "fedavg", "objectives": objectives})
    request = of.request.model_copy(update={"contract": contract, "strategy": strategy})
    one = np.ones((8, 1), np.float32)
    order = Order(request, "a", 1, given={"companion:fisher": [2 * one[:1]]})
    result = Trainer().train(order, lambda: of.base, [one[:1]], Dataset({"x": one}, {"y": 3 * one}))
    assert result.update[0] == pytest.approx(change, rel=1e-5)
    assert result.metrics["train-loss"] == pytest.approx((0.5 - 3) ** 2 if "fgsm" in str(objectives) else 4, rel=1e-6)


def test_random_starts_differ_by_site_and_round(tensorflow: None) -> None:
    """PGD draws from the seed of site and round, and from nothing else."""
    trainer, of = Trainer(compile=False), bounded(batch_size=8, local_steps=1, validation_fraction=0.0)
    request = of.request.model_copy(update={"strategy": config("pgd", epsilon=3.0, steps=1)})
    data = examples(of, 8)

    def update(site: str, round_: int) -> Any:
        return trainer.train(Order(request, site, round_), lambda: of.base, of.received, data).update

    first, *others = update("a", 1), update("a", 2), update("b", 1)
    assert weights_digest(first) == weights_digest(update("a", 1))
    for other in others:  # the one batch is the same but for the order of its examples
        assert not np.allclose(first[0], other[0], rtol=1e-3)


@pytest.mark.parametrize("given", [{}, {"companion:fisher": []}, {"companion:fisher": [np.zeros(3, np.float32)]}])
def test_a_request_without_what_the_objective_needs_is_declined(given: Any, tensorflow: None) -> None:
    """The site names the group, and trains nothing."""
    of = bounded(batch_size=8)
    request = of.request.model_copy(update={"strategy": config("ewc")})
    with pytest.raises(DeclinedRequest, match="companion:fisher"):
        Trainer().train(Order(request, "a", 1, given=given), lambda: of.base, of.received, examples(of, 20))


def test_an_objective_that_does_not_fit_the_model_is_declined(tensorflow: None) -> None:
    """A site finds out for itself, whatever the server let through."""
    of = case(classifier())  # no range of values
    request = of.request.model_copy(update={"strategy": config("fgsm")})
    with pytest.raises(DeclinedRequest, match="strategy"):
        Trainer().prepare(request)
