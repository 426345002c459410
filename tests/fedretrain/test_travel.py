"""What travels in a round beside the contract's changing variables."""

import numpy as np

from fedretrain.contract import Contract, VariableSpec
from fedretrain.job import NamedConfig
from fedretrain.travel import AUXILIARIES, apart, travelling, travelling_bytes, travelling_variables
from strategies.registry import BUILT_IN
from strategies.scaffold import CONTROL, Scaffold

PLAIN, SCAFFOLD = NamedConfig(name="fedavg"), NamedConfig(name="scaffold")
RULES = ("train", "keep", "average", "personal", "train", "local")
CONTRACT = Contract(
    inputs=(),
    outputs=(),
    preprocessing=None,
    architecture="a",
    base="b",
    variables=tuple(
        VariableSpec(shape=(i + 1,), dtype="float64" if i == 4 else "float16", rule=rule)
        for i, rule in enumerate(RULES)
    ),
)


def test_auxiliaries_go_on_behind_the_contract() -> None:
    """One array per variable that trains, in float32 or float64, under keys after the last position."""
    assert travelling(CONTRACT, PLAIN) == CONTRACT.changing_specs
    assert list(travelling_variables(CONTRACT, PLAIN)) == ["00000", "00002", "00004"]
    variables = travelling_variables(CONTRACT, SCAFFOLD)
    assert list(variables) == ["00000", "00002", "00004", "00006", "00007"]
    assert [(s.shape, s.dtype, s.rule) for s in list(variables.values())[3:]] == [
        ((1,), "float32", "auxiliary"),
        ((5,), "float64", "auxiliary"),
    ]
    assert travelling_bytes(CONTRACT, SCAFFOLD) - travelling_bytes(CONTRACT, PLAIN) == 4 + 40


def test_what_travelled_is_told_apart() -> None:
    """The variables' values, and those of each auxiliary by its name."""
    arrays = [np.array([i]) for i in range(5)]
    own, auxiliaries = apart(CONTRACT, SCAFFOLD, arrays)
    assert ([int(a[0]) for a in own], [int(a[0]) for a in auxiliaries[CONTROL]]) == ([0, 1, 2], [3, 4])
    assert apart(CONTRACT, PLAIN, arrays[:3]) == (arrays[:3], {})


def test_the_table_names_strategies_there_are() -> None:
    """And what SCAFFOLD calls its own."""
    assert set(AUXILIARIES) <= set(BUILT_IN)
    assert AUXILIARIES[Scaffold.name] == (CONTROL,)
