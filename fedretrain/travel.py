"""What travels in every round: the contract's changing variables, and behind them what a strategy keeps beside them.

A strategy may have *auxiliaries*: arrays of the server that go to the sites with the global values and change by what
the sites send, as the global values do. Each is one array per variable with rule ``train``, of its shape, in float32
(float64 for a float64 variable), and 0 before the first round.

Their specs have the rule ``auxiliary``, which no variable of a contract has: they are combined by the strategy's
aggregation and added, without the server optimizer; the norm of an update does not count them; no codec changes them.
Their keys go on after the contract's last position, so that with n variables the first has ``key(n)``.

Use::

    specs = travelling(contract, strategy)
    params, auxiliaries = apart(contract, strategy, arrays)      # auxiliaries["control"], one array per train variable
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from .contract import Contract, VariableSpec, keys
from .job import NamedConfig

AUXILIARIES: Mapping[str, tuple[str, ...]] = {"scaffold": ("control",)}
"""Names of the auxiliaries by strategy. It stands here because both sides pack and check what travels by it."""

Value = TypeVar("Value")


def travelling(contract: Contract, strategy: NamedConfig) -> tuple[VariableSpec, ...]:
    """Specs of all arrays that travel in a round, in order."""
    return contract.changing_specs + tuple(_auxiliary_specs(contract)) * len(_names(strategy))


def travelling_variables(contract: Contract, strategy: NamedConfig) -> dict[str, VariableSpec]:
    """The same by the keys under which they travel."""
    specs, first = travelling(contract, strategy), len(contract.variables)
    added = len(specs) - len(contract.changing)
    return dict(zip(keys([*contract.changing, *range(first, first + added)]), specs, strict=True))


def travelling_bytes(contract: Contract, strategy: NamedConfig) -> int:
    """Bytes of the arrays that travel."""
    return sum(spec.nbytes for spec in travelling(contract, strategy))


def apart(
    contract: Contract, strategy: NamedConfig, arrays: Sequence[Value]
) -> tuple[list[Value], dict[str, list[Value]]]:
    """What belongs to the contract's changing variables, and to each auxiliary by its name; of all that travels."""
    own, names = len(contract.changing), _names(strategy)
    each = (len(arrays) - own) // len(names) if names else 0
    starts = {name: own + i * each for i, name in enumerate(names)}
    return list(arrays[:own]), {name: list(arrays[start : start + each]) for name, start in starts.items()}


def _names(strategy: NamedConfig) -> tuple[str, ...]:
    return AUXILIARIES.get(strategy.name, ())


def _auxiliary_specs(contract: Contract) -> Iterator[VariableSpec]:
    for spec in contract.changing_specs:
        if spec.rule == "train":
            dtype = "float64" if spec.dtype == "float64" else "float32"
            yield VariableSpec(shape=spec.shape, dtype=dtype, rule="auxiliary")
