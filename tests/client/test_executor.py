"""The executor: what it never imports, and what it does where the trainer fails."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client import flowerside, wire
from client.bulk import Bulk
from client.executor import Executor
from client.flowerside.runtime import Incoming
from client.home import Home
from fedretrain import parcel
from fedretrain.digest import sha256

from .sites import TRAIN, Job, joined, opened

JOB = Job()
BUNDLE = sha256(b"the kit's")
HEAVY = {"tensorflow", "keras", "client.trainer", "client.site", "client.gatekeeper"}


def test_it_imports_neither_tensorflow_nor_what_reads_data() -> None:
    """Nor Flower's installer of bundles: the process stays small, and has no way to run what came with a task."""
    code = f"import sys, client.executor, client.flowerside.runtime; print({HEAVY} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A joined site that pins ``BUNDLE``."""
    return joined(tmp_path / "h", None, JOB, BUNDLE)


Trainer = Callable[[wire.Question, RecordDict], RecordDict]


@pytest.fixture
def answer(home: Home, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, object]]:
    """What the executor replies to a training request with such a trainer; the questions are added to ``asked``."""

    def run(trainer: Trainer, asked: list[wire.Question], bundle: str = BUNDLE) -> dict[str, object]:
        def ask(_: Path, sent: Iterator[bytes], timeout_s: float, folder: Path) -> wire.Letter:
            assert timeout_s > 0
            header, letter = wire.question(sent, folder)
            asked.append(header)
            answer = trainer(header, flowerside.from_bytes(letter.records))
            return wire.Letter(bytearray(flowerside.to_bytes(answer)), Bulk(folder))

        monkeypatch.setattr(wire, "ask", ask)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 1
        head, arrays = parcel.split(JOB.message(TRAIN, "north"))
        about = Message(head, 5, TRAIN, ttl=60).metadata
        executor = Executor(home, home.load_kit())
        message = Incoming(about, head, sum(map(len, arrays)), lambda: iter(arrays))
        return opened(executor._answer(message, bundle)[0], home)

    return run


def answers(_: wire.Question, __: RecordDict) -> RecordDict:
    return JOB.request(TRAIN)


def dies(_: wire.Question, __: RecordDict) -> RecordDict:
    raise wire.TrainerLost("gone", late=False)


def test_a_bundle_the_site_does_not_accept_is_refused(answer: Callable[..., dict[str, object]]) -> None:
    """The trainer is asked for a signature and for nothing else."""
    asked: list[wire.Question] = []
    answer(answers, asked, sha256(b"another"))
    assert [q.decline and (q.decline.code, q.decline.where) for q in asked] == [("policy", "bundles")]


def test_a_bundle_that_site_toml_names_is_accepted(home: Home, answer: Callable[..., dict[str, object]]) -> None:
    """From the moment it is written there."""
    asked: list[wire.Question] = []
    home.site.write_text(home.site.read_text() + f'[policy]\nbundles = ["{sha256(b"another")}"]\n')
    answer(answers, asked, sha256(b"another"))
    assert [q.decline for q in asked] == [None]


def test_a_trainer_that_dies_is_asked_once_more(answer: Callable[..., dict[str, object]]) -> None:
    """Under the same id; then it signs that it failed."""
    asked: list[wire.Question] = []

    def trainer(header: wire.Question, content: RecordDict) -> RecordDict:
        return answers(header, content) if header.decline else dies(header, content)

    answer(trainer, asked)
    assert [q.decline and q.decline.code for q in asked] == [None, None, "trainer-failure"]
    assert len({q.id for q in asked}) == 1


def test_a_trainer_that_is_too_late_is_not_asked_again(answer: Callable[..., dict[str, object]]) -> None:
    """Nobody waits for the answer any more."""
    asked: list[wire.Question] = []

    def trainer(_: wire.Question, __: RecordDict) -> RecordDict:
        raise wire.TrainerLost("late", late=True)

    found = answer(trainer, asked)
    assert [q.decline and q.decline.code for q in asked] == [None, "trainer-failure"]
    assert (found["code"], found["unsigned"]) == ("trainer-failure", True)
