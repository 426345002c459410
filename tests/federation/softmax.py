"""A trainer backend without TensorFlow: softmax regression on input "x", one gradient step per epoch.

Variables of its process' environment: ``BACKEND_SECONDS`` how long training takes at least; ``BACKEND_SCALE`` what the
update is multiplied with, for a site that is broken; ``BACKEND_HANGS`` a file: where it is, training never ends.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from client.sampling import split
from client.trainer import Arrays, Order, Result
from fedretrain.dataset import Dataset
from fedretrain.messages import PrepareRequest

RATE = 0.5


class Backend:
    """As ``client.trainer_main.Backend``."""

    def prepare(self, request: PrepareRequest, allow_modules: tuple[str, ...] = ()) -> None:
        """Takes the one model there is."""

    def train(self, order: Order, base: Callable[[], Arrays], received: Arrays, data: Dataset) -> Result:  # noqa: ARG002
        """One step of gradient descent over all examples."""
        while Path(os.environ.get("BACKEND_HANGS", "/nonexistent")).exists():
            time.sleep(0.1)
        time.sleep(float(os.environ.get("BACKEND_SECONDS", "0")))
        data = data.take(split(len(data), order.request.train, order.site)[0])
        [x], [y] = data.x.values(), data.y.values()
        kernel, bias = received
        logits = x @ kernel + bias
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = odds / odds.sum(axis=1, keepdims=True) - np.eye(kernel.shape[1])[y.astype(int)]
        scale = -RATE * float(os.environ.get("BACKEND_SCALE", "1")) / len(data)
        update = [(scale * x.T @ error).astype(kernel.dtype), (scale * error.sum(axis=0)).astype(bias.dtype)]
        return Result(update, len(data), {"train-loss": float((error**2).mean()), "seconds": 0.0})
