"""SCAFFOLD: FedAvg whose sites correct the direction of their steps, so that different data pull them less far apart.

With local rate η and K local steps, from the global parameters x and the server's control variate c, site i with its
own control variate c_i steps, for each batch with gradient g_i (Algorithm 1, option II)::

    y_i ← y_i - η (g_i(y_i) - c_i + c)              K times, from y_i = x
    c_i⁺ = c_i - c + (x - y_i) / (K η)
    sends Δy_i = y_i - x and Δc_i = c_i⁺ - c_i = -Δy_i / (K η) - c

and the server, which asked the sites S of all N::

    x ← x + η_g Σ_{i∈S} n_i Δy_i / Σ_{i∈S} n_i
    c ← c + (Σ_{i∈S} n_i / Σ_{i∈N} n_i) · Σ_{i∈S} n_i Δc_i / Σ_{i∈S} n_i

c and every c_i start at 0; c_i stays at its site, c travels with x (``fedretrain.travel``). η_g is
``server_learning_rate``.

Deviations: sites weigh by their example counts n_i, as everywhere here; the paper's sums are those with equal counts.
The correction enters as the penalty Σ (c - c_i) · y, whose gradient it is. (x - y_i) / (K η) is the mean of what the
site stepped along only where steps are plain gradient descent of one rate, so any other optimizer is refused. An update
that the server does not take leaves c_i ahead of c by what it changed.

S. P. Karimireddy, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh: SCAFFOLD: Stochastic Controlled Averaging
for Federated Learning. ICML 2020, https://arxiv.org/abs/1910.06378
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedretrain.contract import Contract
from fedretrain.errors import ConfigurationError
from fedretrain.job import TrainSection

from .base import Arrays, Settings, Strategy
from .objective import Batch, Given, LocalObjective
from .server_optimizer import gradient_descent
from .weighted_mean import WeightedMean

CONTROL = "control"
"""Name of the control variates, the server's among the auxiliaries and the site's own in its memory."""


@dataclass(frozen=True)
class Controlled(LocalObjective):
    """The correction as a local objective."""

    groups: ClassVar[tuple[str, ...]] = (f"auxiliary:{CONTROL}", f"memory:{CONTROL}")

    def fitted(self, contract: Contract, train: TrainSection) -> LocalObjective:  # noqa: ARG002
        """The same; raises ConfigurationError where steps are not plain gradient descent over the same variables."""
        learning_rate(train)
        if train.stages:
            raise ConfigurationError(
                "train.stages: expected none with strategy 'scaffold', whose control variates would be taken for mean "
                "gradients of layers that a stage holds still; take fedavg"
            )
        return self

    def penalty(self, variables: Sequence[Any], given: Given, batch: Batch) -> Any | None:  # noqa: ARG002
        """Σ (c - c_i) · variable, a float32 scalar; None where there are no variables."""
        if not variables:
            return None
        from keras import ops

        pairs = zip(given[f"auxiliary:{CONTROL}"], given[f"memory:{CONTROL}"], strict=True)
        terms = [
            ops.sum(ops.multiply(ops.cast(ops.subtract(c, c_i), "float32"), ops.cast(y, "float32")))
            for y, (c, c_i) in zip(variables, pairs, strict=True)
        ]
        return sum(terms[1:], start=terms[0])


class Scaffold(Settings):
    """Settings of SCAFFOLD."""

    name: ClassVar[str] = "scaffold"
    server_learning_rate: float = Field(1.0, gt=0, description="η_g, factor on the averaged update; the paper uses 1")

    def build(self) -> Strategy:
        """Corrected local training, weighted mean, gradient descent on the server."""
        return Strategy(self.name, Controlled(), WeightedMean(), gradient_descent(self.server_learning_rate))


def learning_rate(train: TrainSection) -> float:
    """η of a job whose optimizer is plain gradient descent, as the optimizer has it, in float32.

    Raises:
        ConfigurationError: It is another optimizer, or one with momentum, a schedule or anything else that makes a step
            more than the gradient times one rate.
    """
    optimizer = train.optimizer
    settings = dict(optimizer.settings) if optimizer else {}
    rate = settings.pop("learning_rate", None)
    more = sorted(name for name, value in settings.items() if value)
    if optimizer is None or optimizer.name.lower() != "sgd" or more or not isinstance(rate, int | float):
        got = f"'{optimizer.name}'" + (f" with {', '.join(more)}" if more else "") if optimizer else "none"
        got += "" if rate is None or isinstance(rate, int | float) else " with a schedule"
        raise ConfigurationError(
            f'train.optimizer: expected {{ name = "sgd", learning_rate = ... }} and nothing more with strategy '
            f"'scaffold', got {got}: its control variates are mean gradients only where steps are plain"
        )
    return float(np.float32(rate))


def control_changes(update: Arrays, control: Sequence[NDArray[Any]], steps: int, rate: float) -> Arrays:
    """Δc_i by variable, in the dtypes of ``control``.

    Args:
        update: Δy_i of the variables that train.
        control: c, as received.
        steps: K, at least 1.
        rate: η.
    """
    scale = steps * rate
    return [
        np.asarray(-(change.astype(c.dtype, copy=False) / c.dtype.type(scale)) - c)
        for change, c in zip(update, control, strict=True)
    ]
