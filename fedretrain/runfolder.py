"""The folder of one run: where the server keeps what a second start needs, and where both sides find the job.

Layout, under ``OUT/runs/<run id>``::

    job.json       the job as JSON, paths absolute; written once, never changed
    state/         checkpoints, one file per round
    spool/         updates of the round in progress; empty between rounds
    events.jsonl   one JSON object per line, appended as things happen
    gate.json      the gate's verdict, once there is one
    uncertainty.safetensors   how certain the candidate is, where the job asked for it (``fedretrain.release``)
    result.json    the run's result, once there is one; its presence means the run is finished
    failure.json   why the last start of this run stopped, for the command that started it
    store/         what simulated sites keep between messages

Every file but the event log is replaced atomically; the log survives a torn last line.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from . import atomic
from .digest import canonical_json
from .errors import ConfigurationError, MachineError
from .job import Job

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run; ``root`` is absolute."""

    root: Path

    @classmethod
    def create(cls, out: Path, run_id: str, job: Job) -> "RunFolder":
        """The folder of run ``run_id`` under ``out``, made if need be; the same run again is the same folder.

        Raises:
            ConfigurationError: ``run_id`` is no file name, or the folder belongs to another job.
            MachineError: The folder cannot be made.
        """
        if not _RUN_ID.fullmatch(run_id):
            raise ConfigurationError(
                f"run id: expected letters, digits, '.', '_', '-', at most 64, beginning with a letter or digit, "
                f"got {run_id!r}"
            )
        folder = cls(out.resolve() / "runs" / run_id)
        for path in (folder.state, folder.spool, folder.store):
            atomic.make_folder(path)
        wanted = job.model_dump(mode="json")
        if not folder.job.exists():
            atomic.write_json(folder.job, wanted)
        elif folder.load_job().model_dump(mode="json") != wanted:
            raise ConfigurationError(f"{folder.job}: run {run_id} belongs to another job; choose another run id")
        return folder

    @classmethod
    def open(cls, root: Path) -> "RunFolder":
        """An existing run's folder.

        Raises:
            ConfigurationError: There is no run; names the runs that are there.
        """
        folder = cls(root.resolve())
        if not folder.job.is_file():
            beside = sorted(p.parent.name for p in folder.root.parent.glob("*/job.json"))
            known = f"runs there: {', '.join(beside)}" if beside else "there are no runs"
            raise ConfigurationError(f"{root}: expected the folder of a run, with job.json in it; {known}")
        for path in (folder.state, folder.spool, folder.store):
            atomic.make_folder(path)
        return folder

    @property
    def run_id(self) -> str:
        """The run's id: the folder's name."""
        return self.root.name

    @property
    def out(self) -> Path:
        """The output folder that holds runs, registry and keys."""
        return self.root.parent.parent

    @property
    def job(self) -> Path:
        """The job as JSON."""
        return self.root / "job.json"

    @property
    def state(self) -> Path:
        """Folder of checkpoints."""
        return self.root / "state"

    @property
    def spool(self) -> Path:
        """Folder of updates waiting to be combined."""
        return self.root / "spool"

    @property
    def store(self) -> Path:
        """Folder for what simulated sites keep."""
        return self.root / "store"

    @property
    def events(self) -> Path:
        """The event log."""
        return self.root / "events.jsonl"

    @property
    def gate(self) -> Path:
        """The gate's report."""
        return self.root / "gate.json"

    @property
    def uncertainty(self) -> Path:
        """How certain the candidate is; present where the job asked for it."""
        return self.root / "uncertainty.safetensors"

    @property
    def result(self) -> Path:
        """The result; present when the run is finished."""
        return self.root / "result.json"

    @property
    def failure(self) -> Path:
        """Why the last start stopped."""
        return self.root / "failure.json"

    def load_job(self) -> Job:
        """The job this run was created for; raises ConfigurationError where the file is damaged."""
        try:
            return Job.model_validate_json(self.job.read_bytes())
        except (OSError, ValidationError) as error:
            raise ConfigurationError(f"{self.job}: not the job of a run: {error}") from None

    def append_event(self, event: dict[str, Any]) -> None:
        """Add one line to the event log; raises MachineError on a full disk, ValueError on NaN."""
        line = canonical_json(event) + b"\n"
        path = self.events
        with atomic.disk_errors(path), path.open("ab+") as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                line = b"\n" + line  # a start that was killed left half a line
            file.write(line)

    def read_events(self) -> Iterator[dict[str, Any]]:
        """The events so far, in order; a torn line is left out."""
        if not self.events.exists():
            return
        with self.events.open("rb") as file:
            for line in file:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if isinstance(event, dict):
                    yield event

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; it is free again when the process ends, however it ends.

        Raises:
            MachineError: Another process is working on this run.
        """
        path = self.root / "lock"
        with atomic.disk_errors(path):
            file = path.open("ab")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise MachineError(f"{self.root}: another process is working on this run; wait for it to end") from None
            yield


def read_kept(path: Path) -> dict[str, Any]:
    """A JSON object in a run's folder, or beside it, that this version wrote.

    Raises:
        ConfigurationError: It is damaged.
        MachineError: It cannot be read.
    """
    with atomic.disk_errors(path, "read"):
        content = path.read_bytes()
    try:
        value: dict[str, Any] = json.loads(content)
    except ValueError:
        raise ConfigurationError(f"{path}: damaged; expected JSON as fedretrain wrote it") from None
    return value
