"""A trainer backend without TensorFlow: linear regression on "x" and "y" by gradient descent, one step a message.

It does what these variables of its process' environment say, so that tests can make it slow, greedy or fatal::

    BACKEND_SECONDS   how long training takes
    BACKEND_MARK      a file that gets a line whenever training starts
    BACKEND_MEGABYTES memory taken while training
    BACKEND_DIES      a file; where it is, training ends the process with SIGKILL and the file is removed
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from client.trainer import Arrays, Order, Result
from fedretrain.dataset import Dataset
from fedretrain.messages import PrepareRequest


class Backend:
    """As ``client.trainer_main.Backend``."""

    def prepare(self, request: PrepareRequest, allow_modules: tuple[str, ...] = ()) -> None:
        """Takes any model."""

    def train(self, order: Order, base: Callable[[], Arrays], received: Arrays, data: Dataset) -> Result:  # noqa: ARG002
        """One step along the negative gradient of the first variable; the others stay."""
        _misbehave()
        weights, x, y = received[0], data.x["x"], data.y["y"].reshape(len(data), -1)
        error = x @ weights[:, : y.shape[1]] - y
        update = [np.zeros_like(array) for array in received]
        update[0][:, : y.shape[1]] = -0.1 * x.T @ error / len(data)
        return Result(update, len(data), {"train-loss": float((error**2).mean()), "seconds": 0.0})


def _misbehave() -> None:
    if mark := os.environ.get("BACKEND_MARK"):
        with Path(mark).open("a", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
    if (deadly := os.environ.get("BACKEND_DIES")) and Path(deadly).exists():
        Path(deadly).unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    taken = np.ones(int(os.environ.get("BACKEND_MEGABYTES", "0")) * 131_072)
    time.sleep(float(os.environ.get("BACKEND_SECONDS", "0")))
    del taken
