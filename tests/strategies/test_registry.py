"""From the job's [strategy] to the algorithm: every mistake is one line, and a site imports nothing."""

import subprocess
import sys
from typing import Any

import pytest

from fedretrain.errors import ConfigurationError
from fedretrain.job import NamedConfig
from strategies import local_objective, make
from strategies.fedprox import Proximal
from strategies.objective import Plain
from strategies.registry import BUILT_IN

from .rounds import built


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "fedaavg"}, "strategy.name: unknown strategy 'fedaavg'; did you mean 'fedavg'?"),
        ({"name": ""}, "strategy.name: unknown strategy ''; did you mean"),
        ({"name": "fedprox", "muu": 1.0}, "strategy.muu: unknown setting of fedprox; did you mean 'mu'?"),
        ({"name": "median", "trim": 0.1}, "strategy.trim: unknown setting of median; did you mean 'memory_bytes'?"),
        ({"name": "krum", "memory_bytes": 1000}, "strategy.memory_bytes: expected greater than or equal to 1048576"),
        ({"name": "fedprox", "mu": "0.1"}, "strategy.mu: expected a number (μ, weight"),
        ({"name": "fedprox", "mu": -1}, "strategy.mu: expected greater than or equal to 0"),
        ({"name": "fedprox", "mu": True}, "strategy.mu: expected a number"),
        ({"name": "fedadam", "beta_1": 1.0}, "strategy.beta_1: expected less than 1"),
        ({"name": "fedadam", "server_learning_rate": 0}, "strategy.server_learning_rate: expected greater than 0"),
    ],
)
def test_mistakes_are_one_line(config: dict[str, Any], message: str) -> None:
    """The line names the key, what was expected, and the nearest name there is."""
    with pytest.raises(ConfigurationError) as error:
        make(NamedConfig.model_validate(config))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_setting_is_described(name: str) -> None:
    """A setting without description would be unexplained in an error."""
    assert all(f.description for f in BUILT_IN[name].model_fields.values())


def test_whole_numbers_are_numbers() -> None:
    """TOML's `mu = 1` needs no decimal point."""
    assert built("fedprox", mu=1).local == Proximal(1.0)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"name": "fedadam"}, Plain()),
        ({"name": "fedprox", "mu": 0.5}, Proximal(0.5)),
        ({"name": "no.such.module:Strategy"}, Plain()),
        ({"name": "no.such.module:Strategy", "proximal_mu": 0.5}, Proximal(0.5)),
        ({"name": "subprocess:Popen", "args": ["touch", "/tmp/never"]}, Plain()),  # noqa: S108 - never made
    ],
)
def test_a_site_learns_its_objective_without_an_import(config: dict[str, Any], expected: object) -> None:
    """A name that a server sends is never imported at a site; only proximal_mu is looked at."""
    assert local_objective(NamedConfig.model_validate(config)) == expected


@pytest.mark.parametrize("mu", [-1, float("nan"), "1", True])
def test_a_bad_proximal_mu_is_refused(mu: object) -> None:
    """Also for a strategy written for Flower, the weight is a number of at least 0."""
    config = NamedConfig.model_construct(name="a:B")
    object.__setattr__(config, "__pydantic_extra__", {"proximal_mu": mu})
    with pytest.raises(ConfigurationError, match=r"strategy\.proximal_mu: expected a number of at least 0"):
        local_objective(config)


def test_built_in_strategies_load_neither_keras_nor_flower() -> None:
    """Making the default strategy and adding its update needs NumPy alone."""
    code = (
        "import sys, strategies; from fedretrain.job import NamedConfig\n"
        "s = strategies.make(NamedConfig(name='fedavg')); s.server.apply([], [], [])\n"
        "sys.exit(any(m in sys.modules for m in ('keras', 'tensorflow', 'flwr')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
