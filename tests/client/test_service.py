"""The trainer's service: who may come in, and what becomes of a question that is asked twice, or takes too long."""

import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from flwr.app import RecordDict
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client import wire
from client.door import Door
from client.service import Desk, Service
from fedretrain import parcel

from .sites import TRAIN, Job, message_in, pieces

CONTENT = Job().request(TRAIN)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for a socket."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


class Serving:
    """A service whose answers are the question's records, counted."""

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        self.asked: list[str] = []
        self.overran = threading.Event()
        self.seconds = seconds
        self.path = folder / "trainer.sock"
        self.service = Service(self.path, (), Desk(self.answer, self.overran.set), folder)

    def answer(self, question: wire.Question, letter: wire.Letter) -> RecordDict:
        self.asked.append(question.id)
        time.sleep(self.seconds)
        return message_in(letter)

    def ask(self, id_: str = "1", content: RecordDict = CONTENT, timeout_s: float = 10.0) -> RecordDict:
        sent = pieces(content, id=id_, message_type=TRAIN)
        return message_in(wire.ask(self.path, sent, timeout_s, self.path.parent))


@pytest.fixture
def serving(folder: Path) -> Iterator[Serving]:
    made = Serving(folder)
    yield made
    made.service.close()


def test_the_socket_is_this_users_alone(serving: Serving) -> None:
    """Mode 0600, and gone afterwards."""
    assert stat.S_IMODE(serving.path.stat().st_mode) == 0o600
    serving.service.close()
    assert not serving.path.exists()


def test_an_answer_of_many_pieces_arrives(serving: Serving) -> None:
    """20 MB there and back, through files of which nothing is left."""
    content = Job(width=1_250_000).request(TRAIN)
    before = set(serving.path.parent.iterdir())
    assert parcel.array_parts(serving.ask(content=content)) == parcel.array_parts(content)
    assert set(serving.path.parent.iterdir()) == before


def test_asking_again_gives_the_same_answer_and_does_nothing_twice(serving: Serving) -> None:
    """Also while it is still worked on: an executor that was killed asks again under the message's id."""
    serving.seconds = 0.5
    with pytest.raises(wire.TrainerLost) as lost:
        serving.ask(timeout_s=0.2)
    assert lost.value.late
    assert serving.ask() == serving.ask() == CONTENT
    assert serving.asked == ["1"]


def test_one_question_at_a_time(serving: Serving) -> None:
    """In the order they came."""
    serving.seconds = 0.2
    start = time.monotonic()
    threads = [threading.Thread(target=serving.ask, args=(str(i),)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - start > 0.6
    assert sorted(serving.asked) == ["0", "1", "2"]


def test_a_question_past_its_deadline_ends_the_trainer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that is answered in time."""
    monkeypatch.setattr("client.service.GRACE_S", 0.1)
    slow = Serving(folder, seconds=0.6)
    slow.ask(timeout_s=5.0)
    assert not slow.overran.is_set()
    with pytest.raises(wire.TrainerLost):
        slow.ask("2", timeout_s=0.2)
    assert slow.overran.wait(2.0)
    slow.service.close()


def test_a_trainer_that_fails_over_a_question_answers_the_next(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error's text does not leave the process."""
    monkeypatch.setattr(serving.service._desk, "_answer", lambda *_: 1 / 0)
    with pytest.raises(wire.TrainerLost) as lost:
        serving.ask()
    assert "zero" not in str(lost.value)
    monkeypatch.setattr(serving.service._desk, "_answer", lambda _, letter: message_in(letter))
    assert serving.ask("2") == CONTENT


def test_health_says_that_it_serves(serving: Serving) -> None:
    """Over gRPC's own health protocol."""
    with grpc.insecure_channel(f"unix:{serving.path}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        found = stub.Check(health_pb2.HealthCheckRequest(service=wire.SERVICE), timeout=10)
    assert found.status == health_pb2.HealthCheckResponse.SERVING


KNOCK = """
import os, socket, sys
os.setuid(int(sys.argv[2]))
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b"hello")
print(s.recv(5).decode())
"""


@pytest.fixture
def echo(folder: Path) -> Iterator[Callable[[tuple[int, ...]], Path]]:
    """Makes a door for these users, to a server that echoes, open to everybody as far as its file goes."""
    doors: list[Door] = []

    def make(users: tuple[int, ...]) -> Path:
        inside = socket.socket(socket.AF_UNIX)
        inside.bind(str(folder / "inside"))
        inside.listen()

        def serve() -> None:
            connection, _ = inside.accept()
            connection.sendall(connection.recv(5))

        threading.Thread(target=serve, daemon=True).start()
        doors.append(Door(folder / "door", folder / "inside", users))
        folder.chmod(0o755)
        (folder / "door").chmod(0o666)
        return folder / "door"

    yield make
    for door in doors:
        door.close()


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="the system does not say who is at the other end")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize(("users", "answer"), [((), ""), ((65534,), "hello")])
def test_the_kernel_says_who_comes_in(users: tuple[int, ...], answer: str, echo: Callable[..., Path]) -> None:
    """Whatever the socket's mode: another user is let in only where [trainer] allowed_uids names him."""
    command = [sys.executable, "-c", KNOCK, str(echo(users)), "65534"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.strip() == answer
