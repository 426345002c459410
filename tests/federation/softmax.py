"""A trainer backend without TensorFlow: softmax regression on input "x", one gradient step per epoch.

Variables of its process' environment: ``BACKEND_SECONDS`` how long training takes at least; ``BACKEND_SCALE`` what the
update is multiplied with, for a site that is broken; ``BACKEND_HANGS`` a file: where it is, training never ends.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from client.checking.predictions import Answers
from client.sampling import split
from client.sums import Total
from client.trainer import Arrays, Order, Result
from fedretrain.dataset import Dataset
from fedretrain.job import NamedConfig
from fedretrain.messages import PrepareRequest
from fedretrain.sums import packed

RATE = 0.5


class Backend:
    """As ``client.trainer_main.Backend``."""

    def prepare(self, request: PrepareRequest, allow_modules: tuple[str, ...] = ()) -> None:
        """Takes the one model there is."""

    def train(self, order: Order, base: Callable[[], Arrays], received: Arrays, data: Dataset) -> Result:
        """One step of gradient descent over all examples."""
        while Path(os.environ.get("BACKEND_HANGS", "/nonexistent")).exists():
            time.sleep(0.1)
        time.sleep(float(os.environ.get("BACKEND_SECONDS", "0")))
        x, chances, y = _answers(order, received, data)
        error = chances - y
        scale = -RATE * float(os.environ.get("BACKEND_SCALE", "1"))
        gradients = [x.T @ error / len(x), error.mean(axis=0)]
        held = order.given.get("companion:fisher", [np.zeros_like(g) for g in gradients])
        for i, (weight, now, incumbent) in enumerate(zip(held, received, base(), strict=True)):
            gradients[i] = gradients[i] + weight * (now - incumbent)
        update = [(scale * g).astype(r.dtype) for g, r in zip(gradients, received, strict=True)]
        return Result(update, len(x), {"train-loss": float((error**2).mean()), "seconds": 0.0})

    def sum(
        self,
        order: Order,
        what: NamedConfig,
        base: Callable[[], Arrays],  # noqa: ARG002
        received: Arrays,
        data: Dataset,
    ) -> Total:
        """The empirical Fisher information, the Gauss-Newton matrix, or an evaluation of what is held back."""
        if what.name == "evaluation":
            x, chances, y = _answers(order, received, data, held=True)
            loss = -np.log((chances * y).sum(axis=1)).mean()
            right = (chances.argmax(axis=1) == y.argmax(axis=1)).mean()
            return Total([np.asarray(loss), np.array([[loss, right]]), np.ones(1)], len(x))
        x, chances, y = _answers(order, received, data)
        if what.name == "fisher":
            error = np.square(chances - y)
            arrays = [np.square(x).T @ error / len(x), error.mean(axis=0)]
            return Total([a.astype(np.float32) for a in arrays], len(x))
        phi = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        blocks = [np.kron(np.outer(f, f), np.diag(p) - np.outer(p, p)) for f, p in zip(phi, chances, strict=True)]
        return Total([packed(np.mean(blocks, axis=0)), np.zeros((), np.float32)], len(x))

    def answers(self, order: Order, base: Callable[[], Arrays], received: Arrays, data: Dataset) -> Answers:  # noqa: ARG002
        """The chances of each label, for a check; there is no layer to project."""
        [output], [x] = order.request.contract.outputs, data.x.values()
        return Answers({output.name: _chances(received, x).astype(np.float64)}, {})


def revenue(arrays: dict[str, Any]) -> float:
    """A business metric: two for each example."""
    return 2.0 * len(arrays["x"])


def _answers(order: Order, values: Arrays, data: Dataset, *, held: bool = False) -> tuple[Any, Any, Any]:
    """Inputs, chances and labels of what is trained on, or ``held`` back."""
    data = data.take(split(len(data), order.request.train, order.site)[int(held)])
    [x], [y] = data.x.values(), data.y.values()
    return x, _chances(values, x), np.eye(values[0].shape[1])[y.astype(int)]


def _chances(values: Arrays, x: Any) -> Any:
    kernel, bias = values
    logits = x @ kernel + bias
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)
