"""What a strategy has a site keep for itself, around one update: taken before it, put down after it.

Invariants:

- What is kept is read by the round (``client.memory``), so a round that is asked for again has the same answer.
- It is put down once the update is made, and nothing is where the update fails.
- Of what is kept nothing leaves but what the strategy's file says (``strategies``).

Use::

    keeping = Keeping(memory, request, round, received)
    result = trainer.train(order with keeping.given and keeping.personal, base, keeping.received, data)
    update = keeping.put_down(result)                   # all that travels
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.contract import Contract, VariableSpec
from fedretrain.errors import DeclinedRequest
from fedretrain.messages import PrepareRequest
from fedretrain.travel import apart, travelling
from strategies.ditto import GLOBAL, PERSONAL, own_strategy
from strategies.scaffold import CONTROL, Scaffold, control_changes, learning_rate

from .memory import Memory
from .outgoing import Update

if TYPE_CHECKING:
    from .trainer import Order, Result

Arrays = list[NDArray[Any]]

AFTER_ALL = 1 << 62
"""No round has this number."""

LAYERS = "layers"
"""Name of personal layers' values in a site's memory."""


class Keeping:
    """One update's dealings with the site's memory.

    Args:
        memory: Of the run at this site.
        request: The prepared run.
        round_: The round.
        received: All that travelled.

    Attributes:
        received: The values of ``contract.changing``.
        given: Arrays by group, as objectives ask for them.
        personal: The site's own values of ``contract.personal``; None where it has none yet.
    """

    def __init__(self, memory: Memory, request: PrepareRequest, round_: int, received: Sequence[NDArray[Any]]) -> None:
        self._memory, self._request, self._round = memory, request, round_
        self.received, self._auxiliaries = apart(request.contract, request.strategy, received)
        self.given: dict[str, Sequence[NDArray[Any]]] = {f"auxiliary:{n}": a for n, a in self._auxiliaries.items()}
        if request.strategy.name == Scaffold.name:
            self._control = self._read(CONTROL, auxiliary_specs(request)) or [
                np.zeros_like(array) for array in self._auxiliaries[CONTROL]
            ]
            self.given[f"memory:{CONTROL}"] = self._control
        own = [request.contract.variables[position] for position in request.contract.personal]
        self.personal = self._read(LAYERS, own) if own else None

    def put_down(self, result: "Result") -> Update:
        """Keep what the update leaves; returns all that travels.

        Raises:
            DeclinedRequest: ``request-invalid`` where the trainer does not do what the strategy needs.
            MachineError: The disk does not take it.
        """
        contract, update = self._request.contract, result.update
        if len(result.personal) != len(contract.personal) or (self._auxiliaries and not result.steps):
            raise DeclinedRequest("request-invalid", "strategy", "one that this site's trainer can train with")
        if contract.personal:
            self._memory.write(LAYERS, self._round, result.personal)
        if self._request.strategy.name == Scaffold.name:
            changes = self._control_changes(result)
            control = [before + change for before, change in zip(self._control, changes, strict=True)]
            self._memory.write(CONTROL, self._round, control)
            update = [*update, *changes]
        return update

    def with_own_model(self, order: "Order", result: "Result", train: "Callable[[Order, Arrays], Result]") -> "Result":
        """Ditto: train the site's own model from where it stands, at first what was received, and keep it.

        Args:
            order: What the global model was trained by.
            result: What came of that.
            train: Trains by an order, from values of ``contract.changing``.

        Returns:
            The result with the own model's numbers, as ``val-personal-...`` and ``train-personal-...``.
        """
        specs = self._request.contract.changing_specs
        before = self._read(PERSONAL, specs) or self.received
        anchors = [values for values, spec in zip(self.received, specs, strict=True) if spec.rule == "train"]
        request = self._request.model_copy(update={"strategy": own_strategy(self._request.strategy)})
        found = train(
            replace(order, request=request, given={**order.given, f"memory:{GLOBAL}": anchors}, later=False), before
        )
        after = [np.asarray(a + np.asarray(change)) for a, change in zip(before, found.update, strict=True)]
        self._memory.write(PERSONAL, self._round, after)
        metrics = {name.replace("-", "-personal-", 1): value for name, value in found.metrics.items() if "-" in name}
        seconds = {"seconds": result.metrics["seconds"] + found.metrics["seconds"]}
        return replace(result, metrics=result.metrics | metrics | seconds)

    def _control_changes(self, result: "Result") -> Arrays:
        pairs = zip(result.update, self._request.contract.changing_specs, strict=True)
        trained = [np.asarray(change) for change, spec in pairs if spec.rule == "train"]
        rate = learning_rate(self._request.train)
        return control_changes(trained, self._auxiliaries[CONTROL], result.steps, rate)

    def _read(self, name: str, specs: Sequence[VariableSpec]) -> Arrays | None:
        return self._memory.read(name, self._round, specs)


def last_layers(memory: Memory, contract: Contract) -> Arrays | None:
    """The site's own values of ``contract.personal`` as the last round left them; None where it has none."""
    own = [contract.variables[position] for position in contract.personal]
    return memory.read(LAYERS, AFTER_ALL, own) if own else None


def auxiliary_specs(request: PrepareRequest) -> list[VariableSpec]:
    """Of one array per variable that trains, as an auxiliary has them."""
    return [spec for spec in travelling(request.contract, request.strategy) if spec.rule == "auxiliary"]


def kept_here(request: PrepareRequest) -> str:
    """What the site would keep for itself, in words for a person; empty where that is nothing."""
    words: Mapping[str, str] = {
        "scaffold": "how this site's data pull the model (control variates)",
        "ditto": "a model of this site's own",
    }
    count = len(request.contract.personal)
    layers = f"{count} of its variables, in layers of this site's own" if count else ""
    return words.get(request.strategy.name, layers)
