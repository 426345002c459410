"""What is taken for granted of Flower's internals at a site: one test per assumption, so that an upgrade fails here."""

import inspect
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flwr.supernode.fleet_http_connection as fleet
import flwr.supernode.start_client_internal as loop
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.constant import SubStatus
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_object_id, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client import flowerside
from client.bulk import Bulk
from client.flowerside import node, runtime
from client.flowerside.state import State
from fedretrain import parcel
from fedretrain.digest import sha256
from fedretrain.errors import MachineError

from .sites import TRAIN, Job, opened_unsigned

SECRET = b"0" * 64
BUNDLE = sha256(b"bundle")
RUN = 7


def test_the_headers_are_those_by_which_flower_knows_a_node() -> None:
    """The same names as its own SuperNode sends, taken by its own check, for this key alone."""
    key = ec.generate_private_key(ec.SECP384R1())
    own = httpx.Request("POST", "https://x")
    NodeAuthHttpInterceptor(key, key.public_key()).intercept(
        SimpleNamespace(request=own), lambda _: httpx.Response(200)
    )  # type: ignore[arg-type]
    headers = flowerside.auth_headers(key)
    assert set(headers) <= set(own.headers)
    known = SimpleNamespace(get_node_id_by_public_key=lambda _: 5)
    asked = SimpleNamespace(node=SimpleNamespace(node_id=5))
    request = SimpleNamespace(headers=headers, state=SimpleNamespace(protobuf_request=asked))
    request.app = SimpleNamespace(state=SimpleNamespace(linkstate_factory=SimpleNamespace(state=lambda: known)))
    authenticate_node(request)  # type: ignore[arg-type]
    with pytest.raises(MachineError):
        flowerside.from_bytes(b"\xff\xff\xff")


def test_the_loop_waits_ends_and_connects_where_it_is_adapted() -> None:
    """Three sleeps of known lengths, and the names that ``_adapted`` replaces, looked up when they are used."""
    source = inspect.getsource(loop)
    assert (source.count("time.sleep(3)"), source.count("time.sleep(0.5)"), source.count("time.sleep(")) == (1, 2, 3)
    of_loop = ("pull_objects(", "push_object_contents_from_iterable(", "http_request_response(", "flwr_exit(")
    for module, names in ((loop, of_loop), (fleet, ("flwr_exit(",))):
        for name in names:
            assert name in inspect.getsource(module)
    assert "NodeAuthHttpInterceptor(private_key, public_key)" in inspect.getsource(fleet)
    assert {"initial_backoff", "backoff_cap"} <= set(inspect.signature(loop.pull_objects).parameters)


class Told:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.port, self.lines = 0, list[str]()

    def listening(self, port: int) -> None:
        self.port = port

    def connected(self, node: int) -> None:
        self.lines.append(f"connected {node}")

    def answered(self) -> None:
        self.lines.append("answered")

    def refused(self, status: int, text: str) -> None:
        self.lines.append(f"{status} {text}")

    def unreachable(self, error: Exception) -> None:
        self.lines.append(type(error).__name__)


def through(path: str, response: httpx.Response, told: Told) -> httpx.Response:
    """A response as the SuperNode's interceptor passes it on."""
    key = ec.generate_private_key(ec.SECP384R1())
    watching = node._Watching(key, key.public_key(), listener=told)
    context = SimpleNamespace(request=httpx.Request("POST", f"https://x/v1/fleet/{path}"))
    return watching.intercept(context, lambda _: response)  # type: ignore[arg-type]


REFUSAL = {"code": 3, "detail": "not on the roster"}


@pytest.mark.parametrize("path", ["activate-node", "pull-messages", "send-node-heartbeat"])
def test_a_refusal_of_the_site_itself_ends_the_loop(path: str) -> None:
    """With the server's words; Flower would go on as if a run had ended, or exit without a line."""
    told = Told()
    with pytest.raises(node.Stopped, match="not on the roster"):
        through(path, httpx.Response(403, json=REFUSAL), told)
    assert told.lines == ["403 not on the roster"]


def test_other_responses_go_on_to_flower() -> None:
    """A run that is over (403), a reply that is too large (413); too many requests are tried again."""
    told = Told()
    assert through("pull-object", httpx.Response(403, json=REFUSAL), told).status_code == 403
    assert through("push-object", httpx.Response(413), told).status_code == 413
    assert through("pull-messages", httpx.Response(429, json=REFUSAL), told).status_code == 503
    assert through("pull-messages", httpx.Response(200), told).status_code == 200
    assert told.lines == ["413 ", "429 not on the roster", "answered"]


def test_pauses_grow_with_how_long_nothing_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 0.1 s in the middle of a round to 2 s for a site that is not asked."""
    state, paused = State(), list[float]()
    monkeypatch.setattr(node.time, "sleep", paused.append)
    for idle in (0.0, 5.0, 3600.0):
        state.active_at = time.monotonic() - idle
        node._sleep(state, [], 3)
    assert paused == [0.1, pytest.approx(0.5, abs=0.1), 2.0]
    with pytest.raises(node.Stopped, match="gone"):
        node._sleep(state, ["gone"], 3)


class Served:
    """A Runtime API with a message in it, as the loop puts it there."""

    def __init__(self, folder: Path) -> None:
        self.state, told = State(folder), Told()
        self.state.set_node_id(5)
        self.stop = node._serve_runtime(self.state, SECRET, told)
        self.port = told.port

    def client(self) -> runtime.Runtime:
        return runtime.Runtime(self.port, SECRET)

    def put(self, content: RecordDict | None = None) -> str:
        """The message's id."""
        fab = Fab(hash_str=BUNDLE, content=b"bundle", verifications={})
        run = Run.create_empty(RUN)
        run.fab_hash, run.series_id = fab.hash_str, 1
        self.state.store_run(run)
        self.state.store_fab(fab)
        self.state.set_run_series_context(1, Context(RUN, 5, {}, RecordDict(), {}, 1))
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, 1, 1
        message = Message(content or Job().request(TRAIN), 5, TRAIN)
        loop._insert_message(message, self.state, self.state.object_store)
        self.state.create_task("flwr-clientapp", RUN, fab.hash_str)
        return message.metadata.message_id

    def replies(self) -> list[Message]:
        return list(self.state.get_messages_legacy(is_reply=True))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path / "objects")
    yield made
    made.stop()


@contextmanager
def asking(served: Served) -> Iterator[runtime.Runtime]:
    client = served.client()
    yield client
    client.close()


def take(client: runtime.Runtime) -> tuple[runtime.Task, runtime.Incoming]:
    task = client.acquire()
    assert task is not None
    return task, task.pull()


def test_a_task_is_given_as_soon_as_there_is_one(served: Served) -> None:
    """Nobody polls: the request for it is held. The bundle's hash is over its bytes, whatever is said of it."""
    with asking(served) as client:
        threading.Timer(0.3, served.put).start()
        start = time.monotonic()
        task, message = take(client)
        assert 0.2 < time.monotonic() - start < 2.0
        assert task.bundle == BUNDLE
        assert opened_unsigned(message.records)["kind"] == "train"
        assert task.beat()
        task.reply(message.records)
        [reply] = served.replies()
        assert reply.metadata.reply_to_message_id == message.metadata.message_id
        assert [t.status.sub_status for t in served.state.get_tasks()] == [SubStatus.COMPLETED]


def test_a_large_message_passes_part_by_part(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parts lie in files while the SuperNode has them, and the executor sends a reply of them one at a time."""
    monkeypatch.setattr(parcel, "PART_BYTES", 2**20)
    monkeypatch.setattr(runtime, "PART_BYTES", 2**20)
    head, arrays = parcel.split(Job(width=300_000).request(TRAIN))
    data = b"".join(arrays)
    with asking(served) as client:
        served.put(parcel.parcelled(Job(width=300_000).request(TRAIN)))
        assert len(list((tmp_path / "objects").iterdir())) > 2  # of six parts, some of which are equal
        assert max(len(entry.content) for entry in served.state.object_store.store.values()) < 2**20
        task, message = take(client)
        assert (message.records, message.size) == (head, len(data))
        assert b"".join(message.parts()) == b"".join(message.parts()) == data
        bulk = Bulk(tmp_path)
        bulk.write(data)
        task.reply(message.records, bulk)
        [reply] = served.replies()
        found = served.state.object_store
        tree = found.get_object_tree(reply.metadata.message_id)
        contents = {t.object_id: found.get(t.object_id) for t in iterate_object_tree(tree)}
        whole = inflate_object_from_contents(tree.object_id, contents)
        assert parcel.split(parcel.opened(whole.content)) == (head, arrays)
        found.delete(reply.metadata.message_id)
        assert not list((tmp_path / "objects").iterdir())


def test_a_message_is_neither_pulled_nor_pushed_in_one() -> None:
    """What the loop would keep in a dictionary, or put into its threads' queue, it does not have."""
    state, read = State(), list[str]()
    contents = {get_object_id(c): c for c in (ConfigRecord({"n": i}).deflate() for i in range(9))}
    state.object_store.preregister(
        RUN, ObjectTree(object_id="0" * 64, children=[ObjectTree(object_id=i) for i in contents])
    )
    assert node._pull_into(state, list(contents), contents.__getitem__) == {}
    assert {i: state.object_store.get(i) for i in contents} == contents

    def reading() -> Iterator[tuple[str, bytes]]:
        for object_id, content in contents.items():
            read.append(object_id)
            yield object_id, content

    ahead, pushed = list[int](), dict[str, bytes]()

    def push(object_id: str, content: bytes) -> None:
        ahead.append(len(read) - len(pushed))
        pushed[object_id] = content

    node._push_few_at_a_time(loop.push_object_contents_from_iterable, reading(), push)
    assert pushed == contents
    assert max(ahead) <= node.AT_A_TIME


def test_a_task_whose_executor_died_goes_to_the_next(served: Served) -> None:
    """At once, whole, and the dead one's token counts for nothing."""
    with asking(served) as dead, asking(served) as alive:
        served.put()
        lost, message = take(dead)
        start = time.monotonic()
        task, again = take(alive)
        assert time.monotonic() - start < 2.0
        assert again.metadata.message_id == message.metadata.message_id
        assert not lost.beat()
        with pytest.raises(MachineError):
            lost.reply(message.records)
        task.reply(again.records)
        assert len(served.replies()) == 1


def test_a_task_that_ends_every_executor_is_given_up(served: Served) -> None:
    """After the third; the site is free for the next message."""
    with asking(served) as client:
        served.put()
        assert [client.acquire() is not None for _ in range(3)] == [True] * 3
        threading.Timer(0.2, served.state.release).start()
        assert client.acquire() is None


def test_a_damaged_message_is_a_machine_error(served: Served) -> None:
    """Whatever its objects make Flower raise."""
    with asking(served) as client:
        message_id = served.put()
        tree = served.state.object_store.get_object_tree(message_id)
        served.state.object_store.verify = False
        for child in tree.children:
            served.state.object_store.put(child.object_id, b"RecordDict  9\x00damaged")
            served.state.object_store.store[child.object_id].content = b"damaged"
        task = client.acquire()
        assert task is not None
        with pytest.raises(MachineError, match="cannot take the task over"):
            task.pull()


def test_an_executor_that_died_while_it_waited_gets_nothing(served: Served) -> None:
    """A task that comes later is for the one that asked last."""
    results: dict[str, Any] = {}
    with asking(served) as dead, asking(served) as alive:
        threads = []
        for name, client in (("dead", dead), ("alive", alive)):
            threads.append(threading.Thread(target=lambda n=name, c=client: results.update({n: c.acquire()})))
            threads[-1].start()
            time.sleep(0.3)
        served.put()
        for thread in threads:
            thread.join(10)
    assert results["dead"] is None
    assert results["alive"] is not None


def test_a_task_whose_message_never_arrives_is_forgotten(served: Served) -> None:
    """Its run ended while the SuperNode took the message: who waits for the rest is told, and the site is free."""
    with asking(served) as client:
        tree = served.state.object_store.get_object_tree(served.put())
        missing = served.state.object_store.store[tree.children[0].object_id]
        missing.content, missing.is_available = b"", False
        waiting = client.acquire()
        assert waiting is not None
        threading.Timer(0.5, lambda: node._take_whole(served.state, lambda: None)).start()
        start = time.monotonic()
        with pytest.raises(MachineError, match="cannot take the task over"):
            waiting.pull()
        assert time.monotonic() - start < 10
    with asking(served) as client:
        served.put()
        take(client)


def test_a_reply_nobody_completes_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """An executor that died between announcing and sending a reply: the next one finds no message, and the loop ends
    its wait instead of waiting for ever."""
    monkeypatch.setattr(node, "ORPHAN_S", 0.2)
    served.put()
    with asking(served) as dead, asking(served) as alive:
        task, message = take(dead)
        reply = Message(message.records, reply_to=task._message)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        served.state.store_message_and_object_tree(reply, get_object_tree(reply), served.state.start_session(RUN))
        assert len(served.replies()) == 1
        served.state.get_messages_legacy(is_reply=False)  # as the dead one left it
        task = alive.acquire()
        assert task is not None
        task.give_up("no message")
        time.sleep(0.3)
        with pytest.raises(RuntimeError, match="gave its task up"):
            node._sleep(served.state, [], 0.5)


def test_only_who_has_the_secret_gets_a_task(served: Served) -> None:
    """Another user of the machine can reach the port, and that is all."""
    stranger = runtime.Runtime(served.port, b"1" * 64)
    with pytest.raises(MachineError):
        stranger.acquire()
    stranger.close()


def test_a_supernode_that_is_away_is_a_machine_error(served: Served) -> None:
    """So that the executor waits for the next one."""
    served.stop()
    with asking(served) as client, pytest.raises(MachineError, match="SuperNode"):
        client.acquire()
