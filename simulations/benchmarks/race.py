"""One contender in one case: started as its users start it, timed from outside, and ended when enough was seen.

Invariants:

- All contenders do the same work: the same examples at the same sites, the same model, batches and learning rate, as
  many sites a round, as many processes as the machine has cores, one thread in each.
- Time begins before the contender's process does. CPU time is that of the process and of all that came of it.
- The rate leaves the first rounds out, in which things are started and traced.

A contender says how far it is in a file, one line each time: how many client updates were finished since the line
before, and when. The line that says 0 tells when the first round began.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedretrain.errors import MachineError

from .trees import Tree

_POLL_S = 0.02
_SILENCE_S = 900.0
_WARM_ROUNDS = 3  # from the second on norms are bounded; the third is the first that is like all others
_LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Case:
    """What each client update is: a model of ``simulations.benchmarks.setting`` and passes over the examples."""

    model: str
    epochs: int

    @property
    def title(self) -> str:
        """As it stands in tables."""
        return f"{self.model.upper()}, E={self.epochs}"


@dataclass(frozen=True)
class Work:
    """What every contender does.

    Attributes:
        case: The client update.
        data: Folder with ``x.npy`` float32 [sites, n, ...], ``y.npy`` int64 [sites, n], and ``x_test.npy``,
            ``y_test.npy``.
        per_round: Sites a round.
        processes: Worker processes.
        batch: Examples per step.
        rate: Learning rate of the sites' SGD.
    """

    case: Case
    data: Path
    per_round: int
    processes: int
    batch: int = 10
    rate: float = 0.1


@dataclass(frozen=True)
class Mark:
    """So many client updates were finished since the mark before; ``at`` in seconds since 1970."""

    updates: int
    at: float


def plain_mark(line: dict[str, Any]) -> Mark | None:
    """A line ``{"updates": n, "at": seconds}``."""
    return Mark(int(line["updates"]), float(line["at"]))


@dataclass(frozen=True)
class Command:
    """How a contender is started.

    Attributes:
        argv: The command.
        environment: Its whole environment.
        marks: Pattern of the one file in its folder that takes its lines, JSON.
        read: The mark of a line, None where it says something else.
    """

    argv: list[str]
    environment: Mapping[str, str]
    marks: str = "marks.jsonl"
    read: Callable[[dict[str, Any]], Mark | None] = plain_mark


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Attributes:
        name: As it stands in tables.
        prepare: Puts what it needs into an empty folder, and says how it is started there.
        models: Those it can run.
    """

    name: str
    prepare: Callable[[Path, Work], Command]
    models: tuple[str, ...] = ("2nn", "cnn")


@dataclass(frozen=True)
class Timing:
    """What was seen of a contender.

    Attributes:
        begun: Seconds from its start until the first round began.
        first: Seconds from its start until the first round was over.
        first_cpu: CPU seconds it had used by then.
        updates: Client updates after the first rounds.
        seconds: How long these took.
        cpu: CPU seconds they took, everything included.
    """

    begun: float
    first: float
    first_cpu: float
    updates: int
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        """Client updates per second."""
        return self.updates / self.seconds

    @property
    def cpu_per_update(self) -> float:
        """CPU seconds per client update."""
        return self.cpu / self.updates

    def text(self) -> str:
        """One line."""
        return (
            f"first round after {self.first:.1f} s; {self.updates} updates in {self.seconds:.1f} s, "
            f"{self.rate:.2f}/s, {self.cpu_per_update:.4f} CPU s each"
        )


def race(contender: Contender, work: Work, folder: Path, seconds: float) -> Timing:
    """Run a contender until it has worked for so many seconds after its first rounds.

    Args:
        contender: Who.
        work: What.
        folder: An empty folder.
        seconds: How long at least; three rounds in any case.

    Raises:
        MachineError: It ended or fell silent before.
    """
    command = contender.prepare(folder, work)
    start = time.time()
    tree = Tree(command.argv, folder, "log", command.environment)
    try:
        return _watch(tree, _Lines(folder, command), work, start, seconds)
    finally:
        tree.end()


@dataclass(frozen=True)
class _Point:
    """When so many updates were done, and the CPU seconds by then."""

    at: float
    done: int
    cpu: float


def _watch(tree: Tree, lines: "_Lines", work: Work, start: float, seconds: float) -> Timing:
    begun, first, warm = None, None, None
    done, heard = 0, time.monotonic()
    while True:
        for mark in lines.fresh():
            heard, done = time.monotonic(), done + mark.updates
            begun = begun or mark.at
            if first is None and done >= work.per_round:
                first = _Point(mark.at, done, tree.cpu_seconds())
            if warm is None and done >= _WARM_ROUNDS * work.per_round:
                warm = _Point(mark.at, done, tree.cpu_seconds())
            enough = warm and mark.at - warm.at >= seconds and done - warm.done >= _LEAST_ROUNDS * work.per_round
            if begun and first and warm and enough:
                took, cpu = mark.at - warm.at, tree.cpu_seconds() - warm.cpu
                return Timing(begun - start, first.at - start, first.cpu, done - warm.done, took, cpu)
        if not tree.alive or time.monotonic() > heard + _SILENCE_S:
            raise MachineError(f"it ended or fell silent after {done} updates; {_tail(tree.log)}")
        time.sleep(_POLL_S)


class _Lines:
    """The file with a contender's lines, of which each is read once."""

    def __init__(self, folder: Path, command: Command) -> None:
        self._folder, self._command = folder, command
        self._offset = 0

    def fresh(self) -> list[Mark]:
        """The marks that are there and were not yet."""
        whole = b""
        for file in self._folder.glob(self._command.marks):
            with file.open("rb") as stream:
                stream.seek(self._offset)
                whole = stream.read().rpartition(b"\n")[0]
        self._offset += len(whole) + 1 if whole else 0
        marks = [self._command.read(json.loads(line)) for line in whole.splitlines()]
        return [mark for mark in marks if mark is not None]


def _tail(log: Path) -> str:
    last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:] if log.exists() else []
    return "\n".join([f"{log} ends:", *last])
