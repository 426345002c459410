"""A simulation run by its command and watched from outside: when things happened, and what they took.

Times are from the start of the command. CPU time and memory are of the command and of everything below it, from
``/proc``; so this is for Linux. Memory is proportional (PSS): a page that several processes map counts once.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fedretrain.errors import RunFailed
from simulations.supervisor import below

from .trees import Tree

_POLL_S = 0.1
_PSS_EVERY_S = 1.0
_SHOWN = 2000  # characters of a failed command's log


@dataclass(frozen=True)
class Moment:
    """An event of the run (``server.events``).

    Attributes:
        event: As it stands in the log.
        seconds: When it happened.
        cpu: CPU seconds spent until it was seen, up to a tenth of a second later.
    """

    event: dict[str, Any]
    seconds: float
    cpu: float


@dataclass(frozen=True)
class Watched:
    """One run.

    Attributes:
        moments: Its events, in order.
        result: What ``fedretrain simulate --json`` said.
        seconds: How long the command took.
        cpu: CPU seconds of the command.
        memory: The most bytes that all its processes held at once.
    """

    moments: Sequence[Moment]
    result: dict[str, Any]
    seconds: float
    cpu: float
    memory: int

    def of(self, *kinds: str) -> list[Moment]:
        """The events of these kinds."""
        return [moment for moment in self.moments if moment.event["event"] in kinds]


def simulate(job: Path, out: Path, *, workers: int | None = None) -> Watched:
    """Run ``fedretrain simulate JOB`` and watch it.

    Args:
        job: The job file.
        out: Folder that is made for the run.
        workers: As the command's option.

    Raises:
        RunFailed: It ended without a verdict; says what it wrote.
    """
    out.mkdir(parents=True)
    command = [sys.executable, "-m", "fedretrain.cli", "simulate", str(job), "--out", str(out / "run"), "--json"]
    command += ["--workers", str(workers)] if workers else []
    paths = os.pathsep.join(str(Path(p or ".").absolute()) for p in sys.path)
    began = time.time()
    tree = Tree(command, out, "command", {**os.environ, "PYTHONPATH": paths})
    log, moments, memory = _Log(out), list[Moment](), 0
    looked, cpu = 0.0, 0.0
    try:
        while tree.alive:
            cpu = max(cpu, tree.cpu_seconds())  # of processes that have just ended nothing is left to read
            moments += [Moment(event, _at(event) - began, cpu) for event in log.new()]
            if time.time() - looked >= _PSS_EVERY_S:
                memory, looked = max(memory, _pss([tree.pid, *below(tree.pid)])), time.time()
            time.sleep(_POLL_S)
        seconds = time.time() - began
    finally:
        tree.end()
    moments += [Moment(event, _at(event) - began, cpu) for event in log.new()]
    return Watched(moments, _result(tree.log), seconds, cpu, memory)


class _Log:
    """The event log of the one run below a folder, read as it grows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read = 0

    def new(self) -> Iterable[dict[str, Any]]:
        """The whole lines since the last call."""
        for file in self._folder.glob("run/runs/*/events.jsonl"):
            with file.open("rb") as lines:
                lines.seek(self._read)
                whole = lines.read().rpartition(b"\n")[0]
            self._read += len(whole) + 1 if whole else 0
            yield from map(json.loads, whole.splitlines())


def _at(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["at"]).timestamp()


def _pss(pids: Iterable[int]) -> int:
    """Bytes that processes hold, pages they share counted once."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # it ended meanwhile
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                total += int(line.split()[1]) * 1024 if line.startswith("Pss:") else 0
    return total


def _result(log: Path) -> dict[str, Any]:
    """What the command said in its last line; raises RunFailed."""
    text = log.read_text(errors="replace")
    try:
        result: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    except (IndexError, ValueError):
        result = {}
    if result.get("outcome") not in {"released", "rejected"}:
        raise RunFailed(f"the simulation ended without a verdict; it wrote: {text[-_SHOWN:]}")
    return result
