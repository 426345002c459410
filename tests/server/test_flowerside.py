"""What we take for granted of Flower, each thing in a test of its own, so that an upgrade fails here and says where."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.fleet_pb2 import ActivateNodeRequest, RegisterNodeFleetRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.runtime import RuntimeHttpClient

from fedretrain.errors import ConfigurationError, MachineError
from server.flowerside import Control, Runtime, blob_size, head, key_bytes
from server.flowerside.runtime import _NOT_FOR, Beside, direct, lease_tasks

from .fleet import Link, Raw, Site, make_bundle, make_federation, raw_records, running

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    with running(make_federation(tmp_path_factory.mktemp("flower") / "federation")) as started:
        yield started


def test_a_node_is_known_by_its_key_in_pem(link: Link) -> None:
    """What the roster's OpenSSH text becomes is what the SuperLink and the run's grid say of the node."""
    site = Site(link, "a").join(link.control())
    assert key_bytes(site.openssh) == site.pem
    node = next(n for n in link.control().nodes() if n.node_id == site.node_id)
    assert (node.public_key, node.name, node.status) == (site.pem, "a", "online")
    assert node.online_until > 0


def test_registering_twice_is_the_same_node_and_after_a_revocation_never(link: Link) -> None:
    """Flower keeps an unregistered node's key for ever."""
    control = link.control()
    site = Site(link, "b").join(control)
    assert control.register(site.openssh, "b") == site.node_id
    control.unregister(site.node_id)
    control.unregister(site.node_id)
    assert next(n for n in control.nodes() if n.node_id == site.node_id).status == "unregistered"
    with pytest.raises(ConfigurationError, match="make keys anew"):
        control.register(site.openssh, "b")
    with pytest.raises(httpx.HTTPStatusError):
        site.fleet.ActivateNode(ActivateNodeRequest(public_key=site.pem, heartbeat_interval=30))


def test_a_key_that_is_none_is_said_so() -> None:
    """A damaged roster is the operator's to mend."""
    with pytest.raises(ConfigurationError, match="roster is damaged"):
        key_bytes("ssh-nonsense AAAA")


def test_a_site_cannot_register_itself(link: Link) -> None:
    """With --enable-supernode-auth nodes are registered by the operator alone."""
    site = Site(link, "c")
    with pytest.raises(httpx.HTTPStatusError):
        site.fleet.RegisterNode(RegisterNodeFleetRequest(public_key=site.pem))


def test_a_task_is_given_to_nobody_without_the_secret(link: Link, tmp_path: Path) -> None:
    """Neither unsigned nor signed with another secret; with it the task and its token come."""
    run_id = link.control().start_run(make_bundle(tmp_path, "pass"), {"word": "x"})
    stranger = RuntimeHttpClient.from_server_address(link.address, False, link.ca, [])
    with pytest.raises(httpx.HTTPStatusError):
        stranger.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))
    with pytest.raises(MachineError, match="refuses"):
        Runtime(link.address, link.ca, b"another").acquire()
    task = link.runtime().acquire()
    assert task is not None
    assert task.run_id == run_id
    assert len(task.token) > 64
    assert task.token not in repr(task)


def test_a_run_goes_through_its_states(link: Link, tmp_path: Path) -> None:
    """Starting when its task is taken, failed when its process was reported dead; stopping it again changes nothing."""
    control, runtime = link.control(), link.runtime()
    assert control.run_status(7) == "unknown"
    run_id = control.start_run(make_bundle(tmp_path, "pass"), {})
    assert control.run_status(run_id) == "pending"
    task = runtime.acquire()
    assert task is not None
    assert control.run_status(run_id) == "starting"
    assert runtime.heartbeat(task)
    runtime.failed(task, "killed")
    assert control.run_status(run_id) == "finished:failed"
    runtime.failed(task, "killed again")
    assert not runtime.heartbeat(task)
    control.stop_run(run_id)
    control.stop_run(7)
    assert control.run_status(run_id) == "finished:failed"
    assert runtime.acquire() is None


def test_a_run_configuration_with_an_unknown_key_is_refused(link: Link, tmp_path: Path) -> None:
    """Flower compares the keys with the bundle's."""
    with pytest.raises(MachineError, match="cannot start a run"):
        link.control().start_run(make_bundle(tmp_path, "pass"), {"unheard": "of"})


def test_the_app_of_a_stopped_run_is_interrupted(link: Link, tmp_path: Path) -> None:
    """Flower raises SIGINT in the process of a task whose token is no longer good."""
    grid = link.grid(make_bundle(tmp_path, "pass"))
    link.control().stop_run(grid.run.run_id)
    with pytest.raises(KeyboardInterrupt):
        grid.node_keys()


def test_a_site_may_send_what_it_was_not_asked_for_and_it_is_not_taken_for_a_reply(link: Link, tmp_path: Path) -> None:
    """Replies are matched by the message they answer; a reply in another's name is not stored by the SuperLink."""
    grid = link.grid(make_bundle(tmp_path, "pass"))
    one, other = Site(link, "one").join(link.control()), Site(link, "other").join(link.control())
    content = RecordDict({"body": ConfigRecord({"json": "{}"})})
    ids = list(grid.push_messages([Message(content, site.node_id, "train", ttl=60) for site in (one, other)]))
    asked = one.asked()
    asked.metadata.__dict__["_reply_to_message_id"] = ids[1]
    asked.metadata.__dict__["_message_id"] = ids[1]
    one.answer(asked, raw_records({}))
    assert list(grid.pull_messages([ids[1]])) == []
    link.control().stop_run(grid.run.run_id)


def test_a_tree_is_announced_with_all_objects_by_their_hash(link: Link, tmp_path: Path) -> None:
    """An object with other bytes than its name says is refused by the SuperLink when it is sent."""
    grid = link.grid(make_bundle(tmp_path, "pass"))
    site = Site(link, "d").join(link.control())
    content = RecordDict({"body": ConfigRecord({"json": "{}"})})
    list(grid.push_messages([Message(content, site.node_id, "train", ttl=60)]))
    asked = site.asked()
    root = site.answer(asked, raw_records({}), withhold=lambda o: o.kind == "Message")
    assert not site.send_object(asked.metadata.run_id, root.id, Raw("Message", b"other").content)
    link.control().stop_run(grid.run.run_id)


def test_a_superlink_that_is_not_there_is_a_machine_error(link: Link) -> None:
    """In words, with what happens next; and nothing of Flower's escapes."""
    away = Control("127.0.0.1:9", link.ca)
    assert not away.answers()
    with pytest.raises(MachineError, match="does not answer"):
        away.nodes()


def test_nothing_is_imported_of_flowers_internals_before_it_is_needed() -> None:
    """Importing the module loads neither the SuperLink nor uvicorn."""
    code = "import sys, server.flowerside; sys.exit(any(m in sys.modules for m in ('uvicorn', 'flwr.superlink.main')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kind", ["memory", "sql"])
def test_a_task_that_was_taken_is_left_alone_for_the_lease(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's 30 s become the lease, after which it may be taken again; a task that runs may be silent for 60 s."""
    from flwr.server.superlink.linkstate import LinkStateFactory
    from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, TaskType
    from flwr.supercore.corestate import in_memory_corestate, sql_corestate
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.superlink.federation import NoOpFederationManager

    def passes(seconds: float) -> None:
        later = datetime.now(UTC) + timedelta(seconds=seconds)
        for module in (in_memory_corestate, sql_corestate):
            monkeypatch.setattr(module, "now", lambda: later)

    def kept(seconds: float) -> bool:
        """Whether a task that is taken, and one that runs, are still theirs who took them after this time."""
        passes(0)
        task = state.create_task(TaskType.SIMULATION, run)
        token = state.claim_task(task)
        if running:
            state.activate_task(task)
        passes(seconds)
        return state.get_task_by_token(token) is not None

    for module in (in_memory_corestate, sql_corestate):
        for name, value in (("HEARTBEAT_DEFAULT_INTERVAL", 30), ("HEARTBEAT_PATIENCE", 2)):
            assert getattr(module, name) == value
            monkeypatch.setattr(module, name, value)
    database = FLWR_IN_MEMORY_DB_NAME if kind == "memory" else str(tmp_path / "db")
    state = LinkStateFactory(database, NoOpFederationManager(), ObjectStoreFactory()).state()
    run = state.create_run(None, None, None, {}, "@none/default", None, None, TaskType.SIMULATION)
    running = False
    assert [kept(s) for s in (25, 35)] == [True, False]
    lease_tasks(600)
    assert [kept(s) for s in (590, 610)] == [True, False]
    running = True
    assert [kept(s) for s in (55, 65)] == [True, False]


@pytest.mark.parametrize("size", [1, 105, 127, 128, 20_000, 4 * 2**20])
def test_a_record_of_bytes_is_known_by_its_first_bytes(size: int) -> None:
    """As Flower writes it; anything beside the bytes, or another kind of value, makes it another record."""
    assert blob_size(head(ConfigRecord({"bytes": bytes(size)}).deflate())[2]) == size
    for other in (
        {"bytes": bytes(size), "more": 1},
        {"bytes": "x" * size},
        {"bytes": [bytes(size)]},
        {"x": bytes(size)},
    ):
        assert blob_size(head(ConfigRecord(other).deflate())[2]) is None
    body = head(ConfigRecord({"bytes": bytes(size)}).deflate())[2]
    assert blob_size(body + body) is None
    with pytest.raises(ValueError, match="five bytes"):
        blob_size(b"\x0a" + b"\xff" * 9)


def test_each_middleware_that_requests_pass_by_is_one_of_flowers() -> None:
    """A middleware that Flower adds or renames is passed through, and this test fails."""
    from flwr.superlink import main

    names = [m.cls.__name__ for m in main._get_middleware()]
    assert sorted(names) == sorted([*_NOT_FOR, "BaseHTTPMiddleware", "ProtobufTranslationMiddleware"])
    assert [m.cls is Beside for m in direct(main._get_middleware)] == [name in _NOT_FOR for name in names]


def test_only_requests_under_the_named_paths_pass_a_middleware_by() -> None:
    """Nodes are authenticated under Fleet's path, people under the Control API's, and under any other."""
    assert passes("NodeAuthMiddleware") == ["/v1/runtime/pull-object"]
    assert passes("ControlAuthenticationMiddleware") == ["/v1/fleet/pull-object", "/v1/runtime/pull-object"]


def passes(name: str) -> list[str]:
    """The paths that a middleware is passed by on."""
    from starlette.middleware import Middleware

    through: list[str] = []

    class Noted:
        def __init__(self, app: Any) -> None:
            pass

        async def __call__(self, scope: Any, *_: Any) -> None:
            through.append(scope["path"])

    async def app(*_: Any) -> None:
        pass

    paths = ["/v1/control/start-run", "/v1/fleet/pull-object", "/v1/runtime/pull-object", "/v1/fleetx", "/health", "//"]
    beside = Beside(app, Middleware(Noted), _NOT_FOR[name])
    for path in paths:
        asyncio.run(beside({"type": "http", "path": path}, None, None))
    return [path for path in paths if path not in through]
