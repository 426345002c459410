"""What several objectives are together, and which may not be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from fedretrain.errors import ConfigurationError
from fedretrain.job import NamedConfig
from strategies import local_objective
from strategies.composition import MODES, PAIRS
from strategies.fedprox import Proximal
from strategies.l2sp import StartingPoint
from strategies.objective import Batch, Composed, Given, LocalObjective, Plain, composed
from strategies.registry import BUILT_IN, OBJECTIVES, check_objectives

from .rounds import NEEDED

BATCH = Batch([], [], [])


@dataclass(frozen=True)
class Adds(LocalObjective):
    groups: ClassVar[tuple[str, ...]] = ("received",)
    number: float

    def penalty(self, variables: Any, given: Given, batch: Batch) -> Any:  # noqa: ARG002
        return self.number

    def inputs(self, x: Sequence[Any], loss_at: Any, noise: Any) -> Sequence[Any]:  # noqa: ARG002
        return [one * 10 + self.number for one in x]


@dataclass(frozen=True)
class Second(LocalObjective):
    """The gradient of the batch's last half, and a little more."""

    groups: ClassVar[tuple[str, ...]] = ("incumbent",)
    teacher: ClassVar[bool] = True
    more: float = 0.0

    def gradients(self, variables: Any, given: Given, gradient_of: Callable[..., list[Any]]) -> list[Any]:  # noqa: ARG002
        return [one + self.more for one in gradient_of(0.5, 1.0)]


def config(*objectives: Any, name: str = "fedavg", **settings: Any) -> NamedConfig:
    return NamedConfig.model_validate({"name": name, "objectives": list(objectives), **settings})


def named(name: str) -> dict[str, Any]:
    return {"name": name, **NEEDED.get(name, {})}


def test_penalties_are_added_and_inputs_go_from_one_to_the_next() -> None:
    """1 + 2 = 3; x = 4 becomes 4 · 10 + 1 = 41, then 41 · 10 + 2 = 412; groups are each there once."""
    both = composed([Adds(1.0), Plain(), Adds(2.0), Second()])
    assert both == Composed((Adds(1.0), Adds(2.0), Second()))
    assert both.penalty([], {}, BATCH) == 3
    assert both.inputs([4.0], None, None) == [412.0]  # type: ignore[arg-type]
    assert both.groups == ("received", "incumbent")
    assert both.teacher


def test_gradients_go_through_all() -> None:
    """Two that take the last half of what they are given take the last quarter: (0.75, 1), then +1 and +2."""
    asked = []

    def gradient_of(start: float, stop: float) -> list[Any]:
        asked.append((start, stop))
        return [100.0]

    assert composed([Second(more=1.0), Second(more=2.0)]).gradients([], {}, gradient_of) == [103.0]
    assert asked == [(0.75, 1.0)]


def test_nothing_together_is_plain_and_one_is_itself() -> None:
    """So a job whose objectives do nothing computes what it would without them."""
    assert composed([Plain(), Plain()]) == Plain()
    assert composed([Plain(), Adds(1.0)]) == Adds(1.0)
    assert Plain().penalty([], {}, BATCH) is None


def test_a_strategys_own_term_is_one_of_them() -> None:
    """FedProx with L2-SP; also a strategy written for Flower."""
    expected = Composed((Proximal(0.5), StartingPoint(0.1)))
    assert local_objective(config({"name": "l2sp", "strength": 0.1}, name="fedprox", mu=0.5)) == expected
    assert local_objective(config({"name": "l2sp", "strength": 0.1}, name="no.such:One", proximal_mu=0.5)) == expected
    assert local_objective(config("l2sp", named("recency"))) == StartingPoint(0.01)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (config("elastic"), "strategy.objectives[0]: unknown objective 'elastic'; did you mean '"),
        (config({"name": "l2sp", "strenght": 1}), "strategy.objectives[0].strenght: unknown setting of l2sp; did you"),
        (config("l2sp", {"name": "pgd"}), "strategy.objectives[1].epsilon: expected a value (ε, most"),
        (config({"name": "pgd", "epsilon": -1}), "strategy.objectives[0].epsilon: expected greater than or equal to 0"),
        (config("l2sp", "l2sp"), "strategy.objectives[1]: 'l2sp' is named twice"),
        (config({"strength": 1}), "strategy.objectives[0]: expected a table with the objective's name"),
        (config(3), "strategy.objectives[0]: expected a table with the objective's name"),
        (NamedConfig.model_validate({"name": "fedavg", "objectives": "l2sp"}), "strategy.objectives: expected a list"),
    ],
)
def test_mistakes_are_one_line(job: NamedConfig, message: str) -> None:
    """The line names the objective by its place, the key, what was expected, and the nearest name there is."""
    with pytest.raises(ConfigurationError) as error:
        local_objective(job)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("pair", "reason"), PAIRS.items(), ids="-".join)
def test_what_cannot_stand_together_is_refused_by_name(pair: tuple[str, str], reason: str) -> None:
    """Both names and the reason, at the server and at a site."""
    assert all(name in BUILT_IN or name in OBJECTIVES for name in pair)
    strategy = pair[0] if pair[0] in BUILT_IN else "fedavg"
    objectives = [named(name) for name in pair if name != strategy]
    with pytest.raises(ConfigurationError) as error:
        local_objective(config(*objectives, name=strategy))
    assert str(error.value) == f"strategy.objectives: '{pair[0]}' and '{pair[1]}' cannot stand together: {reason}"


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_what_has_no_meaning_in_a_mode_is_refused_by_name(name: str, mode: str) -> None:
    """With the reason; in continue the same objective is welcome."""
    assert name in OBJECTIVES or name in BUILT_IN
    job = config(named(name)) if name in OBJECTIVES else config(name=name)
    check_objectives(job, "continue")
    key = "objectives" if name in OBJECTIVES else "name"
    with pytest.raises(ConfigurationError, match=f"^strategy.{key}: '{name}' has no meaning with .* = '{mode}': "):
        check_objectives(job, mode)


def test_replay_distillation_and_recency_compose() -> None:
    """What is asked for most: old examples, the incumbent's word, and less weight for what is old."""
    check_objectives(config("distillation", {"name": "recency", "half_life_days": 30}), "replay")
