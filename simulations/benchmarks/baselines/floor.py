"""What nobody can do without: the same SGD steps in one ``tf.function`` of plain TensorFlow, and no federation.

Each process does client updates one after another: the weights are set, ``epochs * n / batch`` steps are done over the
site's examples, which lie in memory, and the difference is taken. Nothing is sent, checked, combined or written.

Use: ``python -m simulations.benchmarks.baselines.floor '{"data": FOLDER, "model": "2nn", ...}' FILE``, see ``prepare``.
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from fedretrain.processes import clean_environment
from simulations.benchmarks.race import Command, Work

_RESIDENT = 20  # sites whose examples are kept as tensors


def prepare(folder: Path, work: Work, *, compiled: bool = False) -> Command:
    """The command; ``compiled`` by XLA, whose loop is no good for convolutions."""
    settings = {
        "data": str(work.data),
        "model": work.case.model,
        "epochs": work.case.epochs,
        "batch": work.batch,
        "rate": work.rate,
        "processes": work.processes,
        "compiled": compiled,
    }
    module = [sys.executable, "-P", "-m", __name__, json.dumps(settings), str(folder / "marks.jsonl")]
    paths = os.pathsep.join(str(Path(p or ".").absolute()) for p in sys.path)
    return Command(module, clean_environment(TF_CPP_MIN_LOG_LEVEL="3", PYTHONPATH=paths))


def main(settings: dict[str, Any], marks: Path) -> None:
    """Start the processes; they work until they are ended."""
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(settings["processes"])
    workers = [
        context.Process(target=_work, args=(settings, marks, place, together), daemon=True)
        for place in range(settings["processes"])
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def _work(settings: dict[str, Any], marks: Path, place: int, together: Barrier) -> None:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    x, y = (np.load(Path(settings["data"]) / f"{name}.npy", mmap_mode="r") for name in "xy")
    sites = range(place, min(len(x), _RESIDENT * settings["processes"]), settings["processes"])
    resident = [(tf.constant(x[site]), tf.constant(y[site])) for site in sites]
    rng = np.random.default_rng(place)
    weights = [tf.constant(rng.normal(0, 0.05, shape).astype(np.float32)) for shape in _shapes(settings["model"])]
    update = (_compiled if settings["compiled"] else _in_place)(settings["model"], weights, settings["rate"])
    examples = x.shape[1] // settings["batch"] * settings["batch"]
    together.wait()
    _say(marks, 0)
    for number in range(sys.maxsize):
        epochs = [rng.permutation(x.shape[1])[:examples] for _ in range(settings["epochs"])]
        order = tf.constant(np.concatenate(epochs).reshape(-1, settings["batch"]).astype(np.int32))
        trained = update(*resident[number % len(resident)], order)
        for after, before in zip(trained, weights, strict=True):
            (after - before).numpy()
        _say(marks, 1)


def _shapes(model: str) -> list[tuple[int, ...]]:
    if model == "2nn":
        return [(784, 200), (200,), (200, 200), (200,), (200, 10), (10,)]
    return [(5, 5, 1, 32), (32,), (5, 5, 32, 64), (64,), (3136, 512), (512,), (512, 10), (10,)]


def _loss(model: str, w: Any, x: Any, y: Any) -> Any:
    """Mean cross-entropy of a batch."""
    import tensorflow as tf

    if model == "cnn":
        for kernel, bias in ((w[0], w[1]), (w[2], w[3])):
            x = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias))
            x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        x, w = tf.reshape(x, (-1, 3136)), w[4:]
    for i in range(0, len(w) - 2, 2):
        x = tf.nn.relu(x @ w[i] + w[i + 1])
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, x @ w[-2] + w[-1]))


def _in_place(model: str, weights: list[Any], rate: float) -> Callable[..., Any]:
    """All steps of an update, on variables."""
    import tensorflow as tf

    variables = [tf.Variable(w) for w in weights]

    def update(x: Any, y: Any, order: Any) -> Any:
        for variable, weight in zip(variables, weights, strict=True):
            variable.assign(weight)
        for i in tf.range(order.shape[0]):
            with tf.GradientTape() as tape:
                loss = _loss(model, variables, tf.gather(x, order[i]), tf.gather(y, order[i]))
            for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
                tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=gradient)
        return [variable.read_value() for variable in variables]

    made: Callable[..., Any] = tf.function(update)
    return made


def _compiled(model: str, weights: list[Any], rate: float) -> Callable[..., Any]:
    """All steps of an update, as values that XLA keeps in place."""
    import tensorflow as tf

    def update(x: Any, y: Any, order: Any) -> Any:
        values = tuple(weights)
        for i in tf.range(order.shape[0]):
            with tf.GradientTape() as tape:
                tape.watch(values)
                loss = _loss(model, values, tf.gather(x, order[i]), tf.gather(y, order[i]))
            values = tuple(v - rate * g for v, g in zip(values, tape.gradient(loss, values), strict=True))
        return values

    made: Callable[..., Any] = tf.function(update, jit_compile=True)
    return made


def _say(marks: Path, updates: int) -> None:
    with marks.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"updates": updates, "at": time.time()}) + "\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
