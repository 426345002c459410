"""What a site minimises beside its loss: local objectives, each one file, one value, and nothing but arithmetic.

Invariants:

- An objective is a frozen dataclass: equal settings, equal value, hashable. It keeps nothing between batches.
- It is given arrays by group, and nothing else of the run; what a group is made of is the site's business.
- One that adds nothing is ``Plain``, so that a job without objectives computes exactly what it would without this file.

Groups, each one tensor per variable that trains, in position order:

    received          the global values this round began with
    incumbent         the values of the model that the run was given, the one in use where the mode does not change it
    companion:NAME    arrays sent once per run
    memory:NAME       the site's own arrays, which never leave it
    auxiliary:NAME    arrays that travel with the global values in each round

Use, in one step of a site (``client.graph``)::

    x = objective.inputs(x, loss_at, noise)
    gradients = objective.gradients(variables, given, gradient_of)     # which calls objective.penalty
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from fedretrain.contract import Contract
from fedretrain.job import TrainSection

Given = Mapping[str, Sequence[Any]]
"""Tensors by group, one for each variable that trains."""


@dataclass(frozen=True)
class Batch:
    """Tensors of one batch, for ``LocalObjective.penalty``.

    Attributes:
        x: Inputs in the contract's order, as they were used: changed where an objective changes inputs.
        y: Labels by output.
        predictions: The model's, by output, in training mode.
        taught: The incumbent's predictions for the same inputs, in inference mode; empty unless ``teacher``.
    """

    x: Sequence[Any]
    y: Sequence[Any]
    predictions: Sequence[Any]
    taught: Sequence[Any] = ()


class LocalObjective:
    """What a site adds to its training; every hook of this base does nothing.

    Attributes:
        groups: Names of the groups of arrays it is given.
        teacher: Whether ``penalty`` is given the incumbent's predictions.
        draws: Whether ``inputs`` asks for noise.
    """

    groups: ClassVar[tuple[str, ...]] = ()
    teacher: ClassVar[bool] = False
    draws: ClassVar[bool] = False

    def fitted(self, contract: Contract, train: TrainSection) -> "LocalObjective":  # noqa: ARG002 - a hook's signature
        """The same objective, with what it has to know of the model; called before anything else.

        Raises:
            ConfigurationError: It has no meaning for such a model.
        """
        return self

    def penalty(self, variables: Sequence[Any], given: Given, batch: Batch) -> Any | None:  # noqa: ARG002
        """A scalar tensor to add to the loss of one batch, or None to add nothing.

        Args:
            variables: The Keras variables that train, as they are.
            given: The groups it asks for.
            batch: The batch.
        """
        return None

    def inputs(
        self,
        x: Sequence[Any],
        loss_at: Callable[[Sequence[Any]], Any],  # noqa: ARG002
        noise: Callable[[Any], Any],  # noqa: ARG002
    ) -> Sequence[Any]:
        """The inputs to train on in place of ``x``, of the same shapes and dtypes.

        Args:
            x: A batch's inputs, in the contract's order.
            loss_at: The loss of this batch with other inputs, in inference mode; differentiable.
            noise: Uniform numbers in [-1, 1), others in every call, of the shape and dtype of a tensor.
        """
        return x

    def gradients(
        self,
        variables: Sequence[Any],  # noqa: ARG002
        given: Given,  # noqa: ARG002
        gradient_of: Callable[[float, float], list[Any]],
    ) -> list[Any]:
        """What the optimizer steps along, one tensor per variable.

        Args:
            variables: The Keras variables that train. They may be assigned to, if they have their values again
                at the end.
            given: The groups it asks for.
            gradient_of: The gradient of loss and penalties at the variables as they are, over a share of the batch:
                (0, 1) is all of it. None for a variable they do not depend on. Every call passes through the model.
        """
        return gradient_of(0.0, 1.0)


@dataclass(frozen=True)
class Plain(LocalObjective):
    """The site minimises its loss as it is."""


@dataclass(frozen=True)
class Composed(LocalObjective):
    """Several objectives at once: penalties are added up, inputs and gradients go from one to the next."""

    parts: tuple[LocalObjective, ...]

    @property
    def groups(self) -> tuple[str, ...]:  # type: ignore[override]
        """All groups of the parts, each once."""
        return tuple(dict.fromkeys(group for part in self.parts for group in part.groups))

    @property
    def teacher(self) -> bool:  # type: ignore[override]
        """Whether any part has one."""
        return any(part.teacher for part in self.parts)

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """Whether any part does."""
        return any(part.draws for part in self.parts)

    def fitted(self, contract: Contract, train: TrainSection) -> LocalObjective:
        """Each part fitted."""
        return composed(part.fitted(contract, train) for part in self.parts)

    def penalty(self, variables: Sequence[Any], given: Given, batch: Batch) -> Any | None:
        """The sum, in the order of the parts; None where none adds anything."""
        found = [part.penalty(variables, given, batch) for part in self.parts]
        added = [penalty for penalty in found if penalty is not None]
        return sum(added[1:], start=added[0]) if added else None

    def inputs(
        self, x: Sequence[Any], loss_at: Callable[[Sequence[Any]], Any], noise: Callable[[Any], Any]
    ) -> Sequence[Any]:
        """Changed by one part after the other."""
        for part in self.parts:
            x = part.inputs(x, loss_at, noise)
        return x

    def gradients(
        self, variables: Sequence[Any], given: Given, gradient_of: Callable[[float, float], list[Any]]
    ) -> list[Any]:
        """The last part asks the one before it, and so on; the first asks the model."""
        for part in self.parts:
            gradient_of = _through(part, variables, given, gradient_of)
        return gradient_of(0.0, 1.0)


def composed(objectives: Iterable[LocalObjective]) -> LocalObjective:
    """One objective that is all of these: without the plain ones, and the only one itself where one is left."""
    parts = tuple(objective for objective in objectives if objective != Plain())
    if len(parts) < 2:
        return parts[0] if parts else Plain()
    return Composed(parts)


def _through(
    part: LocalObjective, variables: Sequence[Any], given: Given, inner: Callable[[float, float], list[Any]]
) -> Callable[[float, float], list[Any]]:
    """``gradient_of`` as the next part sees it: what this part makes of a share of the batch."""

    def gradient_of(start: float, stop: float) -> list[Any]:
        def within(low: float, high: float) -> list[Any]:
            return inner(start + low * (stop - start), start + high * (stop - start))

        return part.gradients(variables, given, within)

    return gradient_of


class ObjectiveSettings(BaseModel, ABC):
    """Base of the settings of one objective, as in ``objectives = [{ name = "...", ... }]``.

    Attributes:
        name: In the job.
        companions: Names of the arrays that the server sends once per run for it.
        auxiliary: Names of the arrays that travel with the global values in each round for it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    name: ClassVar[str]
    companions: ClassVar[tuple[str, ...]] = ()
    auxiliary: ClassVar[tuple[str, ...]] = ()

    def check_mode(self, mode: str) -> None:
        """Raises ConfigurationError where these settings have no meaning in a mode; the table of modes comes first."""

    @abstractmethod
    def build(self) -> LocalObjective:
        """The objective with these settings; ``Plain`` where they make it do nothing in a step."""
