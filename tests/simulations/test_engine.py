"""The local engine: a grid like Flower's, and processes that die without taking more than their message along."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict

from fedretrain.errors import ConfigurationError, MachineError, RejectedUpdate
from fedretrain.simsites import SiteSource
from simulations import devices
from simulations.devices import default_workers, seen_by
from simulations.engine import LocalGrid
from simulations.frames import encode
from simulations.pool import Answer, Request, WorkerPool
from simulations.worker import Sites

STAND_IN = "tests.simulations.stand_in:StandIn"
NAMES = ("a", "b", "c", "d")


def eventually(condition: Callable[[], Any], seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return value


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def sites(*names: str, **settings: Any) -> Sites:
    return Sites(
        {n: SiteSource(n, Path(f"/nowhere/{n}.npz")) for n in names or NAMES}, Path("/nowhere/store"), **settings
    )


def message(node: int, action: str = "train.tell", content: RecordDict | None = None, **settings: Any) -> Message:
    return Message(content or RecordDict(), node, action, **settings)


def collect(grid: LocalGrid, ids: Iterable[str], seconds: float = 20) -> dict[str, Message]:
    """Replies by id, each pulled on its own as the round loop does."""
    waiting, replies = set(ids), {}

    def pull() -> bool:
        for i in list(waiting):
            for reply in grid.pull_messages([i]):
                replies[reply.metadata.reply_to_message_id] = reply
                waiting.discard(i)
        return not waiting

    eventually(pull, seconds)
    return replies


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerPool]:
    with WorkerPool(2, logs=tmp_path_factory.mktemp("logs"), handler=STAND_IN) as pool:
        yield pool


@pytest.fixture
def events() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def grid(pool: WorkerPool, events: list[dict[str, Any]]) -> Iterator[LocalGrid]:
    with LocalGrid(sites(), pool=pool, on_event=events.append) as grid:
        yield grid


class CannedPool:
    """A pool that answers at once with the bytes a test gives it."""

    def __init__(self, *bodies: bytes) -> None:
        self.bodies = list(bodies)

    def submit(self, request: Request) -> None:
        request.done(Answer(self.bodies.pop(0)))

    def warnings(self) -> list[str]:
        return []


def canned(*bodies: bytes) -> LocalGrid:
    return LocalGrid(sites(), pool=CannedPool(*bodies))  # type: ignore[arg-type]


def test_nodes_are_numbered_in_the_order_of_the_names() -> None:
    """Node 1 is the first site by name, whatever order the files come in."""
    grid = LocalGrid(sites("zoo", "alp", "mid"), pool=CannedPool())  # type: ignore[arg-type]
    assert grid.get_node_ids() == [1, 2, 3]
    assert [n.node_id for n in grid.get_nodes()] == [1, 2, 3]
    assert grid._names == {1: "alp", 2: "mid", 3: "zoo"}


def test_a_reply_carries_what_the_site_said(grid: LocalGrid) -> None:
    """Arrays, body and sender survive both crossings; the file is the named site's."""
    content = RecordDict({"arrays": ArrayRecord({"00001": Array(np.arange(6, dtype=np.float32).reshape(2, 3))})})
    [message_id] = grid.push_messages([message(3, content=content)])
    reply = collect(grid, [message_id])[message_id]
    assert reply.metadata.src_node_id == 3
    assert reply.content.config_records["told"]["file"] == "/nowhere/c.npz"
    np.testing.assert_array_equal(
        reply.content.array_records["arrays"]["00001"].numpy(), np.arange(6, dtype=np.float32).reshape(2, 3)
    )


def test_a_reply_is_handed_out_once(grid: LocalGrid) -> None:
    """A second pull of the same id, and of an id that never was, is empty."""
    [message_id] = grid.push_messages([message(1)])
    collect(grid, [message_id])
    assert grid.pull_messages([message_id, "unknown"]) == []


def test_all_workers_serve_any_site(grid: LocalGrid, pool: WorkerPool) -> None:
    """Two workers share the messages, also those of one site."""
    ids = grid.push_messages([message(1, "train.nap") for _ in range(4)])
    pids = {r.content.config_records["told"]["pid"] for r in collect(grid, ids).values()}
    assert pids == set(pool.pids)
    assert os.getpid() not in pids


def test_shared_content_is_encoded_once(grid: LocalGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round's request to every site costs the memory of one."""
    counted = []
    monkeypatch.setattr("simulations.engine.encode", lambda c: counted.append(c) or encode(c))
    content = RecordDict()
    collect(grid, grid.push_messages(Message(content, n, "train.tell") for n in (1, 2, 3, 4)))
    assert len(counted) == 1


def test_what_a_site_prints_stays_out_of_the_frames(grid: LocalGrid) -> None:
    """Standard output of a worker does not disturb its answers."""
    [message_id] = grid.push_messages([message(1, "train.print")])
    assert collect(grid, [message_id])[message_id].has_content()


def test_what_workers_note_is_told_once_in_a_run(pool: WorkerPool) -> None:
    """However many workers and messages say it; the next run's operator is told again."""
    for _ in range(2):
        told: list[dict[str, Any]] = []
        with LocalGrid(sites(), pool=pool, on_event=told.append) as grid:
            collect(grid, grid.push_messages([message(node, "train.note") for node in (1, 2, 3, 1, 2, 3)]))
        assert told == [{"event": "warning", "text": "a slow model"}]


def test_an_exception_in_a_worker_is_an_error_reply(grid: LocalGrid) -> None:
    """The class of the exception travels, its text does not; the worker goes on."""
    [message_id] = grid.push_messages([message(1, "train.fail")])
    reply = collect(grid, [message_id])[message_id]
    assert reply.has_error()
    assert reply.error.reason == "worker: ValueError"


def test_a_dead_worker_costs_its_own_message(grid: LocalGrid, pool: WorkerPool, events: list[dict[str, Any]]) -> None:
    """SIGKILL while serving: an error reply for that site, replies from the others, a warning, a new worker."""
    ids = grid.push_messages([message(1, "train.die"), *(message(n, "train.nap") for n in (2, 3, 4))])
    replies = collect(grid, ids)
    assert [replies[i].has_error() for i in ids] == [True, False, False, False]
    assert replies[ids[0]].metadata.src_node_id == 1
    eventually(lambda: len(pool.pids) == 2)
    grid.pull_messages([])
    assert [e["event"] for e in events] == ["warning"]
    assert "SIGKILL" in events[0]["text"]
    assert "site a" in events[0]["text"]


def test_a_worker_killed_from_outside_costs_its_own_message(grid: LocalGrid, pool: WorkerPool) -> None:
    """SIGKILL of one of two busy workers: the other's reply arrives."""
    eventually(lambda: len(pool.pids) == 2)
    ids = grid.push_messages([message(1, "train.sleep", ttl=30), message(2, "train.nap")])
    collect(grid, ids[1:])
    [busy] = collect(grid, grid.push_messages([message(3)])).values()
    [victim] = set(pool.pids) - {busy.content.config_records["told"]["pid"]}
    os.kill(victim, signal.SIGKILL)
    assert collect(grid, ids[:1])[ids[0]].error.reason == "its worker process ended"


def test_an_idle_worker_that_dies_costs_nothing(grid: LocalGrid, pool: WorkerPool) -> None:
    """A message that finds its worker dead is served by another."""
    for pid in eventually(lambda: pool.pids if len(pool.pids) == 2 else None):
        os.kill(pid, signal.SIGKILL)
        eventually(lambda pid=pid: pid not in pool.pids)  # its last thread is gone, and with it its pipes
    ids = grid.push_messages([message(n) for n in (1, 2, 3)])
    assert [r.error.reason for r in collect(grid, ids).values() if r.has_error()] == []


def test_a_site_that_hangs_is_ended_when_its_time_is_over(grid: LocalGrid, events: list[dict[str, Any]]) -> None:
    """A message lives as long as its ttl; the worker is replaced, so that the next round finds it free."""
    [message_id] = grid.push_messages([message(2, "train.sleep", ttl=0.5)])
    reply = collect(grid, [message_id])[message_id]
    assert reply.error.reason == "no answer in time"
    eventually(lambda: grid.pull_messages([]) or events)
    assert "site b in time" in events[0]["text"]


def test_late_replies_are_forgotten() -> None:
    """A reply whose message has expired takes no memory once the next round begins."""
    grid = canned(b"", b"")
    [late] = grid.push_messages([message(1, ttl=0.01)])
    time.sleep(0.02)
    [fresh] = grid.push_messages([message(2)])
    assert grid.pull_messages([late]) == []
    assert len(grid.pull_messages([fresh])) == 1


def test_a_malformed_reply_costs_itself_alone() -> None:
    """Bytes that are no records raise when they are pulled; the replies beside them are handed out."""
    grid = canned(encode(RecordDict()), b"\xff\xff\xff", encode(RecordDict()))
    ids = list(grid.push_messages([message(1), message(2), message(3)]))
    assert len(grid.pull_messages(ids)) == 1
    with pytest.raises(RejectedUpdate, match="site b") as refused:
        grid.pull_messages(ids)
    assert refused.value.code == "malformed"
    assert len(grid.pull_messages(ids)) == 1


@pytest.mark.slow
def test_send_and_receive_returns_what_came(grid: LocalGrid) -> None:
    """Flower's blocking call: all replies, or those that are in when the time is over."""
    assert len(grid.send_and_receive([message(n) for n in (1, 2, 3, 4)])) == 4
    replies = grid.send_and_receive([message(1), message(2, "train.sleep", ttl=3)], timeout=1)
    assert [r.metadata.src_node_id for r in replies] == [1]


def test_send_and_receive_leaves_a_malformed_reply_out() -> None:
    """The blocking call ends although one of the replies cannot be decoded."""
    grid = canned(b"\xff\xff\xff", encode(RecordDict()))
    assert [r.metadata.src_node_id for r in grid.send_and_receive([message(1), message(2)])] == [2]


def test_a_node_that_does_not_exist_is_refused() -> None:
    """A message to nobody names the nodes there are."""
    with pytest.raises(ConfigurationError, match="node 9: expected one of 1 to 4"):
        canned().push_messages([message(9)])


def test_poison_for_an_unknown_site_or_kind_is_refused() -> None:
    """A misspelt site or kind is the operator's mistake, said before anything starts."""
    with pytest.raises(ConfigurationError, match="expected one of a, b, c, d, got 'x'"):
        sites(poison={"x": "nan"})
    with pytest.raises(ConfigurationError, match="expected one of nan, scale, got 'foo'"):
        sites(poison={"a": "foo"})


@pytest.mark.slow
def test_workers_that_cannot_start_are_given_up(tmp_path: Path) -> None:
    """After three tries the place is retired: messages that wait and later ones are the machine's failure."""
    events: list[dict[str, Any]] = []
    with WorkerPool(1, logs=tmp_path, handler="tests.simulations.stand_in:NeverStarts") as pool:
        grid = LocalGrid(sites(), pool=pool, on_event=events.append)
        ids = grid.push_messages([message(1)])
        with pytest.raises(MachineError, match="no worker process is left"):
            collect(grid, ids)
        with pytest.raises(MachineError, match="no worker process is left"):
            grid.push_messages([message(1)])
    assert [e["text"].partition(";")[0] for e in events] == ["worker 1 ended (exit code 7) while it started"] * 3


@pytest.mark.slow
def test_close_leaves_no_process(tmp_path: Path) -> None:
    """Also while workers are busy, and within seconds."""
    with WorkerPool(2, logs=tmp_path, handler=STAND_IN) as pool:
        grid = LocalGrid(sites(), pool=pool)
        collect(grid, grid.push_messages([message(1)]))
        grid.push_messages([message(n, "train.sleep") for n in (1, 2, 3)])
        pids = eventually(lambda: pool.pids if len(pool.pids) == 2 else None)
        begun = time.monotonic()
    assert time.monotonic() - begun < 3
    assert all(gone(p) for p in pids)
    assert pool.pids == []


PARENT = textwrap.dedent("""
    import time
    from pathlib import Path
    from flwr.app import Message, RecordDict
    from fedretrain.simsites import SiteSource
    from simulations.engine import LocalGrid
    from simulations.pool import WorkerPool
    from simulations.worker import Sites

    with WorkerPool(2, handler="tests.simulations.stand_in:StandIn") as pool:
        with LocalGrid(Sites({n: SiteSource(n, Path(n)) for n in "ab"}, Path("store")), pool=pool) as grid:
            grid.send_and_receive([Message(RecordDict(), n, "train.nap") for n in (1, 2)])
            grid.push_messages([Message(RecordDict(), n, "train.sleep") for n in (1, 2)])
            print(*pool.pids, flush=True)
            time.sleep(60)
""")


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, -2)])
def test_workers_end_with_their_parent(sent: signal.Signals, code: int) -> None:
    """SIGKILL or Ctrl-C of the parent, while its workers train: no worker is left within seconds."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        pids = [int(p) for p in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.send_signal(sent)
        assert parent.wait(10) == code
    eventually(lambda: all(gone(p) for p in pids), 5)


def test_there_are_no_more_workers_than_sites() -> None:
    """A worker costs seconds and memory, so idle ones are not started."""
    assert default_workers(1) == 1
    assert 1 <= default_workers(1000) <= (os.cpu_count() or 1)


def test_each_worker_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are GPUs and TensorFlow can use them; a person's CUDA_VISIBLE_DEVICES stays the frame."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "_DEVICES", tmp_path)
    monkeypatch.setattr(devices, "_libraries", lambda: True)
    assert seen_by(0) == {}
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    assert default_workers(100) == 2
    assert [seen_by(place)["CUDA_VISIBLE_DEVICES"] for place in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [seen_by(place)["CUDA_VISIBLE_DEVICES"] for place in range(2)] == ["1", "1"]
    monkeypatch.setattr(devices, "_libraries", lambda: False)
    assert seen_by(0) == {}
