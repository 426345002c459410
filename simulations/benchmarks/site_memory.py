"""What a large model takes of a site: the most memory that trainer, executor and SuperNode held, in a real federation.

Use::

    python -m simulations.benchmarks.site_memory --mb 400

A server and one site run on this machine as operators start them, first with a small model, then with the large one:
what is more is because of the model, and the table gives it in copies of the model. Two tables: until the first round
starts (the base model comes and is built) and during the rounds. ``resident`` is the system's high-water mark of a
process; ``private`` leaves out pages of files, which the system can drop at any time, and is sampled.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedretrain.errors import FedretrainError, MachineError
from simulations.supervisor import below

from .federated import Work
from .table import Figure, Table, common_arguments, emit

PROCESSES = {"client.trainer_main": "trainer", "client.executor": "executor", "client.supernode": "SuperNode"}
PREPARING, ROUNDS = "until the first round", "rounds"
_SMALL_MB = 1.0
_POLL_S = 0.02
_PATIENCE_S = 900.0
_RESET_PEAK = "5"  # see proc(5), /proc/PID/clear_refs


@dataclass
class Peak:
    """The most a process held, in bytes."""

    resident: int = 0
    private: int = 0


@dataclass
class Watch:
    """Follows a site's processes; ``peaks`` are by name, since ``begin``."""

    root: int
    peaks: dict[str, Peak] = field(default_factory=dict)

    def begin(self) -> None:
        """Forget what was, as far as the system allows."""
        for pid, _ in self._processes():
            try:
                Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
            except OSError:
                continue
        self.peaks = {}

    def look(self) -> None:
        """Read every process once."""
        for pid, name in self._processes():
            try:
                found = _status(pid)
            except (OSError, KeyError):  # it ended meanwhile
                continue
            peak = self.peaks.setdefault(name, Peak())
            peak.resident = max(peak.resident, found["VmHWM"])
            peak.private = max(peak.private, found["RssAnon"])

    def _processes(self) -> list[tuple[int, str]]:
        found = []
        for pid in below(self.root):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            found += [(pid, name) for module, name in PROCESSES.items() if module.encode() in words]
        return found


def _status(pid: int) -> dict[str, int]:
    """The sizes in /proc/PID/status, in bytes."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


def measure(folder: Path, megabytes: float, rounds: int) -> dict[str, dict[str, Peak]]:
    """Peaks by phase and process.

    Raises:
        MachineError: The federation does not start, or the run fails.
    """
    work, found = Work(folder), {}
    work.write_files(["site-0"], megabytes, rounds, make="simulations.benchmarks.site_memory")
    with work.processes(["site-0"]) as (_, (site,)):
        watch = Watch(site.pid)
        work.call("server", "retrain", "job.toml", "--run-id", work.run)
        for phase, event, count in ((PREPARING, "round-started", 1), (ROUNDS, "round-finished", rounds)):
            watch.begin()
            _until(work, event, count, watch)
            found[phase] = watch.peaks
    return found


def _until(work: Work, event: str, count: int, watch: Watch) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        watch.look()
        text = work.events.read_text(encoding="utf-8") if work.events.is_file() else ""
        if text.count(f'"event":"{event}"') >= count:
            return
        if any(f'"event":"{bad}"' in text for bad in ("failed", "round-abandoned", "quarantined", "declined")):
            raise MachineError(f"the run failed; see {work.events}")
        if time.monotonic() > deadline:
            raise MachineError(f"the run does not get to {event}; see {work.events}")
        time.sleep(_POLL_S)


def _table(phase: str, megabytes: float, small: dict[str, Peak], large: dict[str, Peak]) -> Table:
    size = megabytes * 2**20
    table = Table(
        "site-memory-" + phase.partition(" ")[0],
        f"A site with a model of {megabytes:g} MiB, {phase}: the most each process held, MiB",
        ("", "resident", "of it private", "copies of the model, resident", "private"),
        baseline=f"the same process with a model of {_SMALL_MB:g} MiB",
        command=f"python -m simulations.benchmarks.site_memory --mb {megabytes:g}",
    )
    for name in PROCESSES.values():
        mine, base = large.get(name, Peak()), small.get(name, Peak())
        table.add(
            name,
            Figure(mine.resident / 2**20, base.resident / 2**20),
            Figure(mine.private / 2**20, base.private / 2**20),
            (mine.resident - base.resident) / size,
            (mine.private - base.private) / size,
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.site_memory", description=__doc__)
    common_arguments(parser)
    parser.add_argument("--mb", type=float, default=400.0, help="MiB of the large model (400)")
    parser.add_argument("--rounds", type=int, default=2, help="how many rounds (2)")
    parser.add_argument("--work", type=Path, help="folder in which what is made stays; default: nothing stays")
    options = parser.parse_args(arguments)
    large = 4.0 if options.smoke else options.mb
    try:
        sizes = {megabytes: _measure(megabytes, options) for megabytes in (_SMALL_MB, large)}
        tables = [_table(phase, large, sizes[_SMALL_MB][phase], sizes[large][phase]) for phase in (PREPARING, ROUNDS)]
        emit(tables, options)
    except FedretrainError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _measure(megabytes: float, options: argparse.Namespace) -> dict[str, dict[str, Peak]]:
    folder = Path(tempfile.mkdtemp(prefix="fr-", dir=options.work))
    try:
        return measure(folder, megabytes, options.rounds)
    except subprocess.CalledProcessError as error:
        raise MachineError(f"the files for {megabytes:g} MiB cannot be made: {error}") from None
    finally:
        if options.work is None:
            shutil.rmtree(folder, ignore_errors=True)


def _make(folder: Path, megabytes: float, names: Sequence[str]) -> None:
    """The base model (ten equal layers), the holdout and the site's data; in a process of its own."""
    import keras
    import numpy as np

    from .quickstart.task import CLASSES, EXAMPLES, FEATURES, load_data

    width = max(CLASSES, round((megabytes * 2**20 / 4 / 10) ** 0.5))
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(width, activation="relu") for _ in range(10)]
    model = keras.Sequential([keras.Input((FEATURES,)), *layers, keras.layers.Dense(CLASSES, activation="softmax")])
    model.save(folder / "base.keras")
    for seed, place in enumerate([folder / "holdout.npz", *(folder / name / "data.npz" for name in names)]):
        place.parent.mkdir(mode=0o700, exist_ok=True)
        x, y = load_data(seed, 2 * EXAMPLES)
        np.savez(place, allow_pickle=False, x=x, y=y)


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        _make(Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])
    else:
        sys.exit(main())
