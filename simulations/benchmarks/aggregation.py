"""What it takes to combine the replies of a round: time and memory of every rule against ``a += x`` on the same bytes.

Use::

    python -m simulations.benchmarks.aggregation --sites 10 100

Every row is a process of its own, which runs ``a += x`` for its replies and then the rule, on fresh copies of the same
values. Seconds are CPU seconds of the process, so that other work on the machine counts little; what follows a reply's
use, giving its memory back, counts on both sides. Memory is the high-water mark since the first reply, without the
reply in hand. Rules that need all updates write them to a folder first (``--folder``): sites times the model's bytes.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedretrain.contract import VariableSpec
from fedretrain.errors import FedretrainError, RunFailed
from fedretrain.job import NamedConfig
from server.aggregate import BuiltIn, Contribution
from server.checkpoint import Checkpoint
from server.spool import Spool
from strategies import kernels, make
from strategies.base import Strategy

from .table import Figure, Table, common_arguments, emit

RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "weighted mean": ("fedavg", {}),
    "median": ("median", {}),
    "trimmed mean": ("trimmed_mean", {"trim": 0.2}),
    "Krum": ("krum", {"byzantine": 0.2}),
    "Multi-Krum, m = 10": ("krum", {"byzantine": 0.2, "keep": 10}),
}
_EXAMPLES = 600  # per site
_ROUNDS = 3
_WARM_UP = 1 << 27  # values after which a process sums by numba, see strategies.kernels
_SIZE, _SMOKE_SIZE, _SMOKE_SITES = 25_000_000, 20_000, 5


@dataclass(frozen=True)
class Case:
    """One row: so many replies of so many float32 parameters."""

    rule: str
    sites: int
    size: int
    folder: str


@dataclass(frozen=True)
class Cost:
    """CPU seconds of ``a += x``, of taking the replies and of making the new global values; all seconds of the rule.

    ``memory`` is in bytes, None where the system does not tell.
    """

    plain: float
    taking: float
    finishing: float
    elapsed: float
    memory: int | None


class Replies:
    """Fresh copies of updates that differ from site to site: windows into the same random numbers."""

    def __init__(self, case: Case) -> None:
        self.norm = 1e-3 * (case.size**0.5)
        self._case = case
        self._noise = np.random.default_rng(0).standard_normal(case.size + case.sites, np.float32)
        self._noise *= np.float32(1e-3)

    def cpu_seconds(self, use: Callable[[str, NDArray[Any]], object]) -> float:
        """Of using all replies and letting go of them."""
        total = 0.0
        for site in range(self._case.sites):
            reply: NDArray[Any] | None = self._noise[site : site + self._case.size].copy()
            start = time.process_time()
            use(f"s{site:06d}", cast(NDArray[Any], reply))
            reply = None
            total += time.process_time() - start
        return total


def measure(case: Case) -> Cost:
    """One row, in this process; of the weighted mean the median of three rounds, since it takes so little."""
    if case.size > _SMOKE_SIZE:
        _warm_up(case.rule)
    replies = Replies(case)
    rounds = _ROUNDS if case.rule == "weighted mean" else 1
    costs = [replace(_in_a_folder(case, replies), plain=_plain(case, replies)) for _ in range(rounds)]
    middle = sorted(costs, key=lambda cost: (cost.taking + cost.finishing) / cost.plain)[len(costs) // 2]
    return replace(middle, memory=max((c.memory for c in costs if c.memory is not None), default=None))


def _in_a_folder(case: Case, replies: Replies) -> Cost:
    rule, specs = _rule(case)
    with tempfile.TemporaryDirectory(dir=case.folder) as folder, Spool(Path(folder), specs) as spool:
        return _round(rule, case, replies, spool)


def _round(rule: BuiltIn, case: Case, replies: Replies, spool: Spool) -> Cost:
    """From the first reply to the new global values."""
    admitted = [Contribution(f"s{i:06d}", i, _EXAMPLES, {}) for i in range(case.sites)]
    before = Checkpoint("r", "c", 0, [np.ones(case.size, np.float32)], {}, (), ())
    gc.collect()
    np.ones(3 * case.size)  # pages that a virtual machine has never used are slow once, whoever comes first
    held, begun, start = _resident(reset=True), time.monotonic(), time.process_time()
    collector = rule.collect(spool, case.sites * _EXAMPLES, at_once=True)
    taking = time.process_time() - start
    taking += replies.cpu_seconds(lambda site, reply: collector.add(site, [reply], _EXAMPLES, replies.norm))
    start = time.process_time()
    rule.advance(collector, admitted, before, 1.0)
    finishing, elapsed = time.process_time() - start, time.monotonic() - begun
    peak = _resident(reset=False)
    memory = None if held is None or peak is None else peak - held - 4 * case.size
    return Cost(0.0, taking, finishing, elapsed, memory)


def table(cases: Sequence[Case]) -> Table:
    """Every case in a process of its own."""
    size = cases[0].size
    columns = (
        "",
        "replies",
        "taking them, CPU s",
        "then the result, CPU s",
        "both, ms a reply",
        "all, s",
        "memory, models",
    )
    made = Table(
        "aggregation",
        f"Combining updates of {size:,} float32 parameters",
        columns,
        baseline="`a += x` over the same replies",
        note=f"A model is {4 * size / 1e6:,.0f} MB. Memory is beside the global values and the reply in "
        "hand. Rules that need all updates write them to disk when they take them, and hold 256 MiB of them at a time. "
        "Elapsed time is with making up the replies.",
        command="python -m simulations.benchmarks.aggregation",
    )
    for case in cases:
        cost = _apart(case)
        plain = cost.plain
        made.add(
            case.rule,
            case.sites,
            Figure(cost.taking, plain),
            Figure(cost.finishing, plain),
            Figure(1e3 * (cost.taking + cost.finishing) / case.sites, 1e3 * plain / case.sites),
            cost.elapsed,
            None if cost.memory is None else cost.memory / (4 * size),
        )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.aggregation", description=__doc__)
    common_arguments(parser)
    parser.add_argument("--sites", type=int, nargs="+", default=[10, 100], metavar="N", help="replies, default 10 100")
    parser.add_argument("--parameters", type=int, default=_SIZE, metavar="N", help="of the model, default 25,000,000")
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES), help="default: all")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="for the updates that wait on disk")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        if options.case:
            sys.stdout.write(json.dumps(asdict(measure(Case(**json.loads(options.case))))))
            return 0
        sites, size = ([_SMOKE_SITES], _SMOKE_SIZE) if options.smoke else (options.sites, options.parameters)
        emit([table([Case(rule, n, size, options.folder) for rule in options.rules for n in sites])], options)
    except FedretrainError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _apart(case: Case) -> Cost:
    command = [sys.executable, "-m", "simulations.benchmarks.aggregation", "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunFailed(f"{case.rule}, {case.sites} replies: {done.stderr.strip()[-400:]}")
    return Cost(**json.loads(done.stdout))


def _rule(case: Case) -> tuple[BuiltIn, tuple[VariableSpec, ...]]:
    name, settings = RULES[case.rule]
    spec = (VariableSpec(shape=(case.size,), dtype="float32", rule="train"),)
    strategy = cast(Strategy, make(NamedConfig(name=name, **settings)))
    return BuiltIn(strategy, spec), spec


def _plain(case: Case, replies: Replies) -> float:
    total = np.zeros(case.size, np.float32)
    return replies.cpu_seconds(lambda _, reply: np.add(total, reply, out=total))


def _warm_up(rule: str) -> None:
    """What a process does once: after so many values numba is loaded, and compiles or finds what it compiled before."""
    kernels.choose(np.broadcast_to(np.float32(0), _WARM_UP))
    small = Case(rule, sites=5, size=1000, folder=tempfile.gettempdir())
    _in_a_folder(small, Replies(small))


def _resident(*, reset: bool) -> int | None:
    """Bytes of this process in memory: as they are when the high-water mark is reset, else at that mark."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    key = "VmRSS:" if reset else "VmHWM:"
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), None)


if __name__ == "__main__":
    sys.exit(main())
