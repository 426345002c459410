"""Makes the SuperLink what the files say: its nodes those of the roster, its runs those that are wanted.

Invariants:

- Files decide, and every step may be repeated: a crash between any two loses nothing and does nothing twice. Before a
  run is started its last start has ended on the SuperLink, and its folder is free.
- A run whose process died goes on by itself; ``FRUITLESS`` starts without progress end that, and failures that only a
  person can mend end it at once.
- A SuperLink that does not answer costs only the step; the next one tries again.
- One run's damaged files concern that run alone.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from fedretrain.atomic import disk_errors
from fedretrain.errors import FedretrainError, MachineError
from fedretrain.runfolder import RunFolder

from . import desired
from .deliveries import Deliveries, stamp
from .desired import Start, Step, utc
from .federation import Federation, Member

if TYPE_CHECKING:
    from .flowerside import Control

UNSETTLED: Final = ("pending", "starting", "running")
ROSTER_EVERY_S: Final = 30.0  # looked at anyway, in case somebody else changed the SuperLink's nodes

Processes = Mapping[str, int | None]
Say = Callable[[str], None]


class Reconciler:
    """One federation's wishes, brought to one SuperLink.

    Args:
        federation: Whose files.
        connect: Makes a connection to the SuperLink; asked again after it was lost.
        processes: Process ids of what runs depend on, by name; one is "executor".
        say: Takes lines for the operator.
    """

    def __init__(
        self, federation: Federation, connect: "Callable[[], Control]", processes: Callable[[], Processes], say: Say
    ) -> None:
        self._federation = federation
        self._connect = connect
        self._processes = processes
        self._say = say
        self._control: Control | None = None
        self._begun: dict[str, Processes] = {}  # as they were when a run's start was last seen waiting, by run
        self._parked: dict[str, Any] = {}  # runs that nothing is to be done about, with the wish that was looked at
        self._said: dict[str, str] = {}
        self._roster: tuple[Any, ...] = ()
        self._roster_due = 0.0
        self._deliveries = Deliveries(federation)

    def step(self) -> None:
        """Compare, and do what is to be done; returns soon, raises nothing but what is a fault of ours."""
        try:
            if self._control is None:
                self._control = self._connect()
            self._nodes(self._control)
            for folder in self._folders():
                with self._explained(folder.run_id):
                    self._run(self._control, folder)
            with self._explained("releases"):
                self._deliver(self._control)
        except _SuperLinkGone:
            self.lost()
        except FedretrainError as error:
            self._once("server", str(error))

    def lost(self) -> None:
        """Forget the connection; the next step makes one."""
        if self._control is not None:
            self._control.close()
        self._control, self._roster_due = None, 0.0

    def _folders(self) -> Iterator[RunFolder]:
        """Runs that something may have to be done about."""
        for file in sorted(self._federation.runs.glob("*/desired.json")):
            parked = self._parked.get(file.parent.name, ())
            if parked == () or (parked is not None and parked != stamp(file)):
                yield RunFolder(file.parent)

    # --- nodes ---

    def _nodes(self, control: "Control") -> None:
        """Register active members, unregister everybody else."""
        seen = stamp(self._federation.roster)
        if seen == self._roster and time.monotonic() < self._roster_due:
            return
        from .flowerside import key_bytes

        with _calls():
            known = {node.public_key: node for node in control.nodes() if node.status != "unregistered"}
        wanted = {key_bytes(member.node_key): member for member in self._federation.active().values()}
        for key, node in known.items():
            if key not in wanted:
                with _calls():
                    control.unregister(node.node_id)
                self._say(f"{node.name or node.node_id} is shut out")
        for key, member in wanted.items():
            if key not in known:
                self._register(control, member)
        self._roster, self._roster_due = seen, time.monotonic() + ROSTER_EVERY_S

    def _register(self, control: "Control", member: Member) -> None:
        with self._explained(member.name), _calls():
            control.register(member.node_key, member.name)
            self._say(f"{member.name} may connect")

    # --- runs ---

    def _run(self, control: "Control", folder: RunFolder) -> None:
        """Bring one run a step further."""
        starts = self._observed(control, folder)
        if folder.result.exists() and not desired.going_on(starts):
            self._parked[folder.run_id] = None
            return
        going_on = desired.going_on(starts)
        if _busy(folder) and not going_on:  # the process of an earlier start is still at work
            return
        wish, step = _wish(folder), desired.next_step(folder, time.time())
        if step is Step.START:
            self._start(control, folder, starts)
        elif step is Step.STOP:
            self._stop(control, folder, starts)
        elif step is not Step.WAIT and not going_on:
            self._parked[folder.run_id] = wish
            if step is Step.GIVEN_UP:
                self._say(f"run {folder.run_id}: given up after {desired.FRUITLESS} starts without progress")

    def _observed(self, control: "Control", folder: RunFolder) -> tuple[Start, ...]:
        """The starts, with the last one closed where it has ended or its process is lost."""
        starts, run = desired.read_starts(folder), folder.run_id
        if not desired.going_on(starts):
            return starts
        with _calls():
            status = control.run_status(starts[-1].flower_run)
        now = self._processes()
        if status == "pending":
            self._begun[run] = now
        then = self._begun.get(run, {})
        last = starts[-1].model_copy(update={"excused": starts[-1].excused or now != then})
        under_way = status == "pending" or (status in UNSETTLED and _same_executor(now, then))
        if not _busy(folder) and (_has_spoken(folder) or not under_way):
            if status in UNSETTLED:
                with _calls():
                    control.stop_run(last.flower_run)
            last = last.model_copy(update={"ended": utc()})
        if last != starts[-1]:
            starts = (*starts[:-1], last)
            desired.write_starts(folder, starts)
            if last.ended is not None:
                self._tell_end(folder)
        return starts

    def _start(self, control: "Control", folder: RunFolder, starts: tuple[Start, ...]) -> None:
        with disk_errors(folder.failure, "remove"):
            folder.failure.unlink(missing_ok=True)
        run, number = folder.run_id, self._submit(control, str(folder.root), "run")
        self._begun[run] = self._processes()
        start = Start(flower_run=number, at=utc(), progress=desired.progress(folder))
        desired.write_starts(folder, (*starts, start))
        self._say(f"run {run}: {'started again' if starts else 'started'}")

    def _stop(self, control: "Control", folder: RunFolder, starts: tuple[Start, ...]) -> None:
        with _calls():
            control.stop_run(starts[-1].flower_run)
        self._once(folder.run_id, f"run {folder.run_id}: told to stop")

    def _submit(self, control: "Control", run: str, task: str) -> int:
        bundle = self._federation.bundle_file().read_bytes()
        config = {"run": run, "federation": str(self._federation.folder), "task": task}
        with _calls():
            return control.start_run(bundle, config)

    def _tell_end(self, folder: RunFolder) -> None:
        run, failed, wish = folder.run_id, desired.failure(folder), desired.desired(folder)
        if folder.result.exists():
            self._say(f"run {run}: finished")
        elif wish is not None and wish.state == "stop":
            self._say(f"run {run}: stopped")
        elif failed is not None:
            self._say(f"run {run}: {failed.get('message')}")
        else:
            self._say(f"run {run}: its process is gone")

    # --- releases ---

    def _deliver(self, control: "Control") -> None:
        """Have the release in use brought to connected sites that lack it."""
        if not self._deliveries.due(lambda number: _unsettled(control, number)):
            return
        lacking = self._deliveries.lacking()
        if lacking and not self._at_work():
            self._deliveries.begun(lacking, self._submit(control, "", "deliver"))
            self._say(f"bringing the release in use to {', '.join(lacking)}")

    def _at_work(self) -> bool:
        """Whether a run is under way: its sites have enough to do, and it brings its own release to them."""
        for folder in self._folders():
            with suppress(FedretrainError):  # of a damaged run the others need know nothing
                if _busy(folder) or desired.going_on(desired.read_starts(folder)):
                    return True
        return False

    # --- talk ---

    @contextmanager
    def _explained(self, about: str) -> Iterator[None]:
        """An error that concerns one thing is said, once, and stops nothing else."""
        try:
            yield
        except _SuperLinkGone:
            raise
        except FedretrainError as error:
            self._once(about, f"{about}: {error}")

    def _once(self, about: str, text: str) -> None:
        if self._said.get(about) != text:
            self._said[about] = text
            self._say(text)


class _SuperLinkGone(MachineError):
    """A call to the SuperLink failed on the way."""


@contextmanager
def _calls() -> Iterator[None]:
    try:
        yield
    except MachineError as error:
        raise _SuperLinkGone(str(error)) from error


def _has_spoken(folder: RunFolder) -> bool:
    """Whether the process of the last start has ended with a word: its report to the SuperLink may be lost."""
    return folder.result.exists() or folder.failure.exists()


def _same_executor(now: Processes, then: Processes) -> bool:
    """Whether whoever took a start is still there to see it end."""
    return "executor" in then and now["executor"] == then["executor"]


def _unsettled(control: "Control", number: int) -> bool:
    """Whether a run on the SuperLink has not ended."""
    with _calls():
        return control.run_status(number) in UNSETTLED


def _wish(folder: RunFolder) -> Any:
    return stamp(folder.root / "desired.json")


def _busy(folder: RunFolder) -> bool:
    """Whether a process works on the run."""
    try:
        handle = os.open(folder.root / "lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
