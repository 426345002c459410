"""What is done about runs, members and releases, against a SuperLink of a few lines."""

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedretrain.errors import MachineError
from fedretrain.runfolder import RunFolder
from server import desired, operations, provision
from server.federation import Federation, Settings
from server.flowerside import Node, key_bytes
from server.reconcile import Reconciler
from tests.server.upkit import make_job

pytestmark = pytest.mark.usefixtures("unflushed")


class SuperLink:
    """Runs and nodes as the real one's Control API tells them (``server.flowerside.Control``)."""

    def __init__(self) -> None:
        self.runs: dict[int, str] = {}
        self.configs: list[dict[str, Any]] = []
        self.known: list[Node] = []
        self.away = False

    def start_run(self, _bundle: bytes, run_config: dict[str, Any]) -> int:
        self._answer()
        self.configs.append(run_config)
        self.runs[len(self.runs) + 1] = "running"
        return len(self.runs)

    def stop_run(self, run_id: int) -> None:
        self._answer()
        if not self.runs[run_id].startswith("finished"):
            self.runs[run_id] = "finished:stopped"

    def run_status(self, run_id: int) -> str:
        self._answer()
        return self.runs.get(run_id, "unknown")

    def register(self, node_key: str, name: str) -> int:
        self.known.append(Node(len(self.known) + 1, key_bytes(node_key), name, "registered", 0.0))
        return len(self.known)

    def unregister(self, node_id: int) -> None:
        node = self.known[node_id - 1]
        self.known[node_id - 1] = Node(node_id, node.public_key, node.name, "unregistered", 0.0)

    def nodes(self) -> list[Node]:
        self._answer()
        return list(self.known)

    def close(self) -> None:
        pass

    def _answer(self) -> None:
        if self.away:
            raise MachineError("away")


class Server:
    """One federation, its reconciler, and a clock for the pauses between starts."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = Settings(name="clinics", address="127.0.0.1:1", listen="127.0.0.1:1")
        self.federation: Federation = provision.init(folder / "fed", settings)
        provision.make_kits(self.federation, ["a", "b"], folder / "kits")
        self.link = SuperLink()
        self.pids: dict[str, int | None] = {"superlink": 1, "executor": 2, "gateway": 3}
        self.said: list[str] = []
        self.job = make_job(folder)
        monkeypatch.setattr(desired, "_pause", lambda _vain: 0.0)
        self.again()

    def again(self) -> None:
        """Another `up`, which remembers nothing."""
        connect: Callable[[], Any] = lambda: self.link  # noqa: E731
        self._reconciler = Reconciler(self.federation, connect, lambda: dict(self.pids), self.said.append)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self._reconciler.step()

    def run(self, name: str = "r1") -> RunFolder:
        return operations.retrain(self.federation, self.job, name)

    def end(self, number: int, error: str | None = None, run: RunFolder | None = None) -> None:
        """The app of a start ends, with a failure if it names one."""
        if error and run:
            run.failure.write_text(json.dumps({"error": error, "exit_code": 4, "message": "why"}))
        self.link.runs[number] = "finished:failed"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(tmp_path, monkeypatch)


def test_nodes_are_the_active_members(server: Server) -> None:
    """Members are registered; one that is revoked is unregistered at the next look, and nothing else is touched."""
    server.step()
    assert [(n.name, n.status) for n in server.link.known] == [("a", "registered"), ("b", "registered")]
    provision.revoke(server.federation, "a")
    server.step(2)
    assert [(n.name, n.status) for n in server.link.known] == [("a", "unregistered"), ("b", "registered")]
    assert server.said[-1] == "a is shut out"


def test_a_run_is_started_with_what_its_app_needs(server: Server) -> None:
    """Once, with the run's folder, the federation and the task."""
    run = server.run()
    server.step(3)
    assert server.link.configs == [{"run": str(run.root), "federation": str(server.federation.folder), "task": "run"}]


def test_a_run_that_gets_nowhere_is_given_up(server: Server) -> None:
    """Five starts without progress are enough; its operator can have five more."""
    run = server.run()
    for number in range(1, 9):
        server.step(2)
        if number in server.link.runs:
            server.end(number)
    assert len(server.link.runs) == desired.FRUITLESS
    assert operations.run_state(run, running=True) == "given up"
    operations.resume(run)
    server.step()
    assert len(server.link.runs) == desired.FRUITLESS + 1


def test_progress_earns_further_starts(server: Server) -> None:
    """A round that counts between two deaths begins the count anew."""
    run = server.run()
    for number in range(1, 9):
        server.step(2)
        run.append_event({"event": "run-started", "rounds": 9, "completed": number, "sites": []})
        server.end(number)
    server.step(2)
    assert len(server.link.runs) == 9


@pytest.mark.parametrize(("error", "starts"), [("RunFailed", 1), ("ConfigurationError", 1), ("MachineError", 2)])
def test_what_a_person_has_to_mend_waits_for_a_person(server: Server, error: str, starts: int) -> None:
    """A failure of the machine is tried again, others are not."""
    run = server.run()
    server.step()
    server.end(1, error, run)
    server.step(3)
    assert len(server.link.runs) == starts


def test_a_full_disk_is_said_once_and_the_run_goes_on_when_there_is_room(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That a start has ended cannot be written down: it is not told again and again, and there is another start."""
    run = server.run()
    server.step()
    server.end(1)
    write = desired.write_starts

    def full(*_: object) -> None:
        raise MachineError("starts.json: cannot write: no space left")

    monkeypatch.setattr(desired, "write_starts", full)
    server.step(5)
    assert server.said[-2:] == [f"run {run.run_id}: started", f"{run.run_id}: starts.json: cannot write: no space left"]
    monkeypatch.setattr(desired, "write_starts", write)
    server.step()
    assert server.said[-2:] == [f"run {run.run_id}: its process is gone", f"run {run.run_id}: started again"]


def test_too_few_sites_while_our_own_process_was_down_is_tried_again(server: Server) -> None:
    """Where the gateway was started anew during the run, its quorum is given another chance."""
    run = server.run()
    server.step()
    server.pids["gateway"] = 33
    server.step()
    server.end(1, "RunFailed", run)
    server.step(2)
    assert len(server.link.runs) == 2
    server.end(2, "RunFailed", run)
    server.step(3)
    assert len(server.link.runs) == 2


def test_the_apps_of_a_dead_executor_are_not_waited_for(server: Server) -> None:
    """SuperLink would take a minute to notice; the executor's process id tells at once."""
    run = server.run()
    server.step()
    server.pids["executor"] = 22
    server.step(2)
    assert server.link.runs == {1: "finished:stopped", 2: "running"}
    assert [bool(start.ended) for start in desired.read_starts(run)] == [True, False]


def test_a_start_that_was_not_taken_yet_is_left_to_the_next_executor(server: Server) -> None:
    """Pending on SuperLink: whichever executor comes takes it, also one of another `up`."""
    server.run()
    server.step()
    server.link.runs[1] = "pending"
    server.pids["executor"] = 22
    server.again()
    server.step(2)
    assert server.link.runs == {1: "pending"}


def test_nothing_is_started_while_a_process_works_on_the_run(server: Server) -> None:
    """Whatever SuperLink says: the run's lock decides."""
    run = server.run()
    server.step()
    handle = os.open(run.root / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    server.end(1)
    server.step(3)
    assert len(server.link.runs) == 1
    os.close(handle)
    server.step(2)
    assert len(server.link.runs) == 2


def test_a_superlink_that_is_away_costs_no_start(server: Server) -> None:
    """What it does not hear is asked again when it is back."""
    server.run()
    server.link.away = True
    server.step(20)
    server.link.away = False
    server.step()
    assert len(server.link.runs) == 1


def test_one_runs_damaged_file_is_its_own(server: Server) -> None:
    """It is said, once, and the other run is started."""
    damaged, whole = server.run("damaged"), server.run("whole")
    (damaged.root / "desired.json").write_text("{")
    server.step(5)
    assert [config["run"] for config in server.link.configs] == [str(whole.root)]
    assert len([line for line in server.said if "desired.json" in line]) == 1


def test_a_stopped_run_stays_stopped(server: Server) -> None:
    """It is stopped on SuperLink and started again on demand only."""
    run = server.run()
    server.step()
    operations.stop(run)
    assert operations.run_state(run, running=True) == "stopping"
    server.step(4)
    assert server.link.runs == {1: "finished:stopped"}
    assert operations.run_state(run, running=True) == "stopped"
    operations.resume(run)
    server.step()
    assert len(server.link.runs) == 2


def test_a_site_that_is_behind_is_served_when_it_is_there(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """One delivery at a time, for connected sites, and with longer pauses where it changes nothing."""
    monkeypatch.setattr("server.deliver.behind", lambda _federation: ["a", "b"])
    monkeypatch.setattr("server.deliveries.EVERY_S", 0.0)
    server.step(2)
    assert server.link.configs == []
    monkeypatch.setattr("server.sites.online", lambda _federation: {"b"})
    server.step(3)
    assert [config["task"] for config in server.link.configs] == ["deliver"]
    assert server.said[-1].endswith("to b")


def test_nothing_is_delivered_while_a_run_is_under_way(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its start to its end, gate or not; a run whose files are damaged is not under way."""
    monkeypatch.setattr("server.deliver.behind", lambda _federation: ["a"])
    monkeypatch.setattr("server.sites.online", lambda _federation: {"a"})
    monkeypatch.setattr("server.deliveries.EVERY_S", 0.0)
    damaged = server.run("damaged")
    (damaged.root / "starts.json").write_text("{")
    run = server.run()
    server.step(3)
    assert [config["task"] for config in server.link.configs] == ["run"]
    server.end(1, "RunFailed", run)
    server.step(2)
    assert [config["task"] for config in server.link.configs] == ["run", "deliver"]
