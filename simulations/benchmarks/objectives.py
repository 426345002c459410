"""What three kinds of objectives are for, on MNIST: SCAFFOLD, FedBN and adversarial training, beside plain FedAvg.

Use::

    python -m simulations.benchmarks.objectives --mnist mnist.npz --into docs/retraining.md
    python -m simulations.benchmarks.objectives --mnist mnist.npz --only scaffold --seeds 1

Every run is ``fedretrain simulate`` with a job of its own. What is compared differs in ``[strategy]`` alone.

- scaffold: 100 sites with two shards of sorted images each, a fifth of them a round, 5 passes, batches of 50, the 2NN;
  rounds until the test images reach the target.
- feature-shift: 8 sites whose images differ in look (inverted, darker, brighter, shifted, noisy), a net with
  BatchNormalization; accuracy on each site's own validation part, by what that site has.
- attack: FedAvg, FGSM and PGD, ten sites; the released model is attacked by PGD within the bound it was trained with.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.errors import FedretrainError

from .environment import Environment
from .mcmahan_job import Setting, write_job
from .setting import Images, load_mnist, made_up
from .table import Table, common_arguments, emit
from .watched import Watched, simulate

Floats = NDArray[np.float32]
EPSILON = 0.1
"""Most that a pixel, from 0 to 1, is changed by an attack."""
_ATTACK_STEPS = 20
_ATTACKED = 1000
_COMMAND = "python -m simulations.benchmarks.objectives --mnist mnist.npz"
_SHARDS = Setting("2nn", "shards", epochs=5, target=0.93, rate=0.05, rounds=150, fraction=0.2)
_IID = Setting("2nn", "iid", epochs=1, target=1.0, rate=0.1, rounds=5, sites=10, fraction=1.0)
_DRIFT = {"FedAvg": '[strategy]\nname = "fedavg"\n', "SCAFFOLD": '[strategy]\nname = "scaffold"\n'}
_NORMS = {"FedAvg, BatchNormalization averaged": _DRIFT["FedAvg"], "FedBN": '[strategy]\nname = "fedbn"\n'}
_ROBUST = {
    "FedAvg": _DRIFT["FedAvg"],
    "FGSM": f'[strategy]\nname = "fedavg"\nobjectives = [{{ name = "fgsm", epsilon = {EPSILON} }}]\n',
    "PGD": f'[strategy]\nname = "fedavg"\nobjectives = [{{ name = "pgd", epsilon = {EPSILON}, steps = 7 }}]\n',
}
_SHIFTED_JOB = """\
[model]
path = "base.keras"
[train]
rounds = {rounds}
batch_size = 32
optimizer = {{ name = "sgd", learning_rate = 0.05 }}
loss = "sparse_categorical_crossentropy"
metrics = ["accuracy"]
validation_fraction = 0.3
seed = {seed}
[[holdout]]
name = "gate"
path = "gate.npz"
must = "improve"
[simulation]
sites = "sites/*.npz"
"""


def scaffold(train: Images, test: Images, seeds: Sequence[int], work: Path, *, smoke: bool) -> Table:
    """Rounds to the target on two shards for each site."""
    setting = replace(_SHARDS, rounds=2, sites=10) if smoke else _SHARDS
    title = f"Rounds to {100 * setting.target:g} % on MNIST, two shards at each of {setting.sites} sites"
    table = Table("objectives-scaffold", title, ("", "rounds", "best accuracy, %", "MB"))
    for name, strategy in _DRIFT.items():
        runs = [_mcmahan(setting, strategy, train, test, seed, work) for seed in seeds]
        curves = [[moment.event["metrics"]["accuracy"] for moment in run.of("monitored")] for run in runs]
        reached = [
            next((n for n, accuracy in enumerate(curve) if accuracy >= setting.target), None) for curve in curves
        ]
        rounds = ", ".join(f"not in {setting.rounds}" if n is None else str(n) for n in reached)
        best = statistics.fmean(max(curve) for curve in curves)
        megabytes = statistics.fmean(run.result["bytes"]["total"] / 1e6 for run in runs)
        table.add(name, rounds, round(100 * best, 2), megabytes)
    return table


def feature_shift(train: Images, test: Images, seeds: Sequence[int], work: Path, *, smoke: bool) -> Table:
    """Accuracy at sites whose images look different."""
    rounds, each = (2, 60) if smoke else (15, 300)
    title = f"Accuracy at {len(_looks(0))} sites whose images differ in look, {each} images each, {rounds} rounds"
    columns = ("", "at sites, mean, %", "at the worst site, %")
    table = Table("objectives-feature-shift", title, columns)
    for name, strategy in _NORMS.items():
        means, worst = [], []
        for seed in seeds:
            with tempfile.TemporaryDirectory(dir=work) as folder:
                job = _write_shifted(Path(folder) / "job", strategy, train, test, (seed, rounds, each))
                last = simulate(job, Path(folder) / "out").of("round-finished")[-1].event
            found = [site["metrics"]["val-accuracy"] for site in last["admitted"]]
            means.append(statistics.fmean(found))
            worst.append(min(found))
        table.add(name, round(100 * statistics.fmean(means), 1), round(100 * statistics.fmean(worst), 1))
    return table


def attack(train: Images, test: Images, seeds: Sequence[int], work: Path, *, smoke: bool) -> Table:
    """Accuracy on the test images as they are, and under attack."""
    setting = replace(_IID, rounds=2) if smoke else _IID
    title = f"Accuracy under attack by PGD within {EPSILON:g}, {_ATTACK_STEPS} steps, after {setting.rounds} rounds"
    table = Table("objectives-attack", title, ("", "accuracy, %", "under attack, %"))
    shown = test.take(slice(_ATTACKED))
    for name, strategy in _ROBUST.items():
        pairs = []
        for seed in seeds:
            with tempfile.TemporaryDirectory(dir=work) as folder:
                run = Path(folder) / "run"
                job = _with_strategy(write_job(run / "job", setting, train, test, seed), strategy)
                release = simulate(job, run / "out").result["release"]
                pairs.append(_under_attack(run / "out" / "run" / "registry" / "releases" / release, shown))
        table.add(name, *(round(100 * statistics.fmean(column), 1) for column in zip(*pairs, strict=True)))
    return table


PARTS = {"scaffold": scaffold, "feature-shift": feature_shift, "attack": attack}


def pgd(model: Any, x: Floats, y: NDArray[Any], epsilon: float, steps: int) -> Floats:
    """Inputs moved uphill in the loss by signed steps, within ``epsilon`` of ``x`` and within [0, 1]; no random start.

    Args:
        model: Gives probabilities.
        x: float32 [n, ...] from 0 to 1.
        y: Labels [n].
        epsilon: Most that a value moves.
        steps: Steps, each of 2.5 ``epsilon`` / ``steps``.
    """
    import keras
    import tensorflow as tf

    moved = tf.convert_to_tensor(x)
    for _ in range(steps):
        with tf.GradientTape() as tape:
            tape.watch(moved)
            loss = tf.reduce_sum(keras.losses.sparse_categorical_crossentropy(y, model(moved, training=False)))
        uphill = moved + 2.5 * epsilon / steps * tf.sign(tape.gradient(loss, moved))
        moved = tf.clip_by_value(tf.clip_by_value(uphill, x - epsilon, x + epsilon), 0.0, 1.0)
    found: Floats = moved.numpy()
    return found


def _under_attack(release: Path, test: Images) -> tuple[float, float]:
    """Accuracy of the released model as things are, and under attack."""
    import keras

    model = keras.models.load_model(release / "model.keras")
    x = test.inputs("2nn")
    clean, moved = (np.argmax(model(batch, training=False), -1) for batch in (x, _moved(model, x, test.y)))
    return float(np.mean(clean == test.y)), float(np.mean(moved == test.y))


def _moved(model: Any, x: Floats, y: NDArray[Any]) -> Floats:
    return pgd(model, x, y, EPSILON, _ATTACK_STEPS)


def _mcmahan(setting: Setting, strategy: str, train: Images, test: Images, seed: int, work: Path) -> Watched:  # noqa: PLR0913, PLR0917
    with tempfile.TemporaryDirectory(dir=work) as folder:
        job = _with_strategy(write_job(Path(folder) / "job", setting, train, test, seed), strategy)
        job.write_text(job.read_text().replace("batch_size = 10\n", "batch_size = 50\n"))
        return simulate(job, Path(folder) / "out")


def _with_strategy(job: Path, strategy: str) -> Path:
    job.write_text(job.read_text() + "\n" + strategy)
    return job


def _looks(seed: int) -> Mapping[str, Any]:
    """What each site's camera does to images, float32 [n, 28, 28, 1] from 0 to 1."""
    rng = np.random.default_rng([seed, 7])
    return {
        "plain": lambda x: x,
        "inverted": lambda x: 1 - x,
        "dark": lambda x: 0.25 * x,
        "bright": lambda x: 0.5 + 0.5 * x,
        "shifted": lambda x: np.roll(x, 4, axis=2),
        "noisy": lambda x: np.clip(x + rng.normal(0, 0.3, x.shape), 0, 1),
        "inverted-dark": lambda x: 0.3 * (1 - x),
        "faint": lambda x: 0.6 + 0.1 * x,
    }


def _write_shifted(folder: Path, strategy: str, train: Images, test: Images, sizes: tuple[int, int, int]) -> Path:
    seed, rounds, each = sizes
    (folder / "sites").mkdir(parents=True)
    order = np.random.default_rng(seed).permutation(len(train))
    for n, (name, look) in enumerate(_looks(seed).items()):
        part = train.take(order[n * each : (n + 1) * each])
        x = look(part.inputs("cnn")).astype(np.float32)
        np.savez(folder / "sites" / f"{name}.npz", allow_pickle=False, x=x, y=part.y.astype(np.int32))
    held = test.take(slice(_ATTACKED))
    np.savez(folder / "gate.npz", allow_pickle=False, x=held.inputs("cnn"), y=held.y.astype(np.int32))
    _normalized(seed).save(folder / "base.keras")
    (folder / "job.toml").write_text(_SHIFTED_JOB.format(rounds=rounds, seed=seed) + strategy)
    return folder / "job.toml"


def _normalized(seed: int) -> Any:
    """A small convolutional net with BatchNormalization, not trained."""
    import keras

    keras.utils.set_random_seed(seed)
    layers: list[Any] = [keras.Input((28, 28, 1), name="image")]
    for n, filters in enumerate((16, 32), start=1):
        layers.append(keras.layers.Conv2D(filters, 5, strides=2, padding="same", use_bias=False, name=f"conv{n}"))
        layers.append(keras.layers.BatchNormalization(momentum=0.9, name=f"norm{n}"))
        layers.append(keras.layers.ReLU(name=f"relu{n}"))
    layers += [keras.layers.Flatten(name="flatten"), keras.layers.Dense(10, activation="softmax", name="digit")]
    return keras.Sequential(layers, name="normalized")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.objectives", description=__doc__)
    common_arguments(parser)
    parser.add_argument("--only", action="append", choices=PARTS, help="one of the tables, may be given again (all)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each line (3)")
    options = parser.parse_args(arguments)
    machine = Environment.now()
    work = Path(tempfile.mkdtemp(prefix="fr-objectives-"))
    try:
        train, test = (made_up(1200), made_up(400, seed=1)) if options.smoke else load_mnist(options.mnist)
        names = options.only or list(PARTS)
        tables = [PARTS[name](train, test, range(options.seeds), work, smoke=options.smoke) for name in names]
        command = f"{_COMMAND} --seeds {options.seeds}"
        emit([replace(table, environment=machine, command=command) for table in tables], options)
    except FedretrainError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
