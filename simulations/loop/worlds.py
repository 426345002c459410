"""Worlds one after the other in one process, with the same warm workers: each scenario and seed under each policy.

Invariants:

- Every policy meets the same data, and begins with the same model, for one scenario and seed.
- Each has an output folder of its own, with a registry, runs and a history.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedretrain import atomic
from fedretrain.errors import ConfigurationError

from .conditions import ABOUT
from .outcome import Course, Record
from .planned import Planner, tables
from .policies import EVERY, POLICIES, Never, Policy, Schedule
from .product import Product
from .run import run
from .streams import SITES, Stream
from .world import LABELS, World

if TYPE_CHECKING:
    from simulations.pool import WorkerPool

Say = Callable[[str], None]
Tell = Callable[[Record], None]


@dataclass(frozen=True)
class Kind:
    """A world but for its seed and its policy.

    Attributes:
        scenario: One of ``simulations.loop.conditions.ABOUT``.
        steps: How many.
        sites: How many take part at the end.
        every: Steps from one retraining of a schedule to the next.
    """

    scenario: str
    steps: int
    sites: int = SITES
    every: int = EVERY


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        scenarios: In the order of the table.
        policies: Likewise; of ``simulations.loop.policies.POLICIES``.
        seeds: Each decides the data, the model in use and the training.
        steps: Of each world.
        every: Steps from one retraining of the schedule to the next.
    """

    scenarios: tuple[str, ...]
    policies: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    every: int = EVERY

    def check(self) -> None:
        """Raises ConfigurationError where a name is unknown, or a number impossible."""
        for policy in self.policies:
            if policy not in POLICIES:
                raise ConfigurationError(f"--policies: expected some of {', '.join(POLICIES)}, got {policy!r}")
        for scenario in self.scenarios:
            if scenario not in ABOUT:
                raise ConfigurationError(f"--scenarios: expected some of {', '.join(ABOUT)}, got {scenario!r}")
        Stream("none", 0, self.steps)

    @property
    def worlds(self) -> int:
        """How many there are."""
        return len(self.scenarios) * len(self.policies) * len(self.seeds)


class Worlds:
    """Lets worlds pass; a context manager.

    Args:
        folder: Takes the models that worlds begin with, and the workers' logs.
        workers: Worker processes.
        say: Told what is being done, one short line at a time.
    """

    def __init__(self, folder: Path, workers: int, say: Say) -> None:
        self._folder, self._workers, self._say = folder, workers, say
        self._stack = ExitStack()
        self._pool: WorkerPool | None = None

    def __enter__(self) -> "Worlds":
        from simulations.pool import WorkerPool

        self._pool = self._stack.enter_context(WorkerPool(self._workers, logs=self._folder / "logs"))
        from client.trainer import configure_process

        configure_process()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def course(self, kind: Kind, seed: int, policy: str, out: Path, tell: Tell = lambda _: None) -> Course:
        """One world from its first step to its last.

        Args:
            kind: What it is.
            seed: Decides everything that is drawn.
            policy: Whose name it is; of ``simulations.loop.policies.POLICIES``.
            out: Output folder; holds no run yet.
            tell: Told each step when it is over.

        Raises:
            FedretrainError: What is no outcome: a full disk, no worker left, no scikit-learn.
        """
        if self._pool is None:
            raise ValueError("worlds pass inside a with statement")
        stream = Stream(kind.scenario, seed, kind.steps, kind.sites)
        world = World(stream, out / "world", self._model(stream))
        self._say(f"{kind.scenario}, seed {seed}: {policy}")
        product = Product(world, out, self._pool, tables(LABELS[stream.known :]))
        with ExitStack() as stack:
            records = []
            for record in run(world, product, _policy(policy, kind, product, stack)):
                records.append(record)
                tell(record)
        return Course(kind.scenario, policy, seed, records)

    def _model(self, stream: Stream) -> Path:
        """The model that worlds of this seed begin with, trained once."""
        file = self._folder / "models" / f"{stream.seed}-{stream.known}.keras"
        if not file.exists():
            from simulations.demo import train_base

            self._say("training the first model in use")
            atomic.make_folder(file.parent)
            with atomic.disk_errors(file):
                train_base(stream.base(), stream.seed, stream.known).save(file)
        return file


def compare(what: Comparison, folder: Path, workers: int, say: Say) -> Iterator[Course]:
    """Every scenario with every seed under every policy; raises as ``Worlds.course``."""
    with Worlds(folder, workers, say) as worlds:
        for scenario in what.scenarios:
            kind = Kind(scenario, what.steps, every=what.every)
            for seed in what.seeds:
                for policy in what.policies:
                    yield worlds.course(kind, seed, policy, folder / f"{scenario}-{seed}-{policy}")


def _policy(name: str, kind: Kind, product: Product, stack: ExitStack) -> Policy:
    if name == "never":
        return Never()
    if name == "schedule":
        return Schedule(kind.every)
    return stack.enter_context(Planner(product))
