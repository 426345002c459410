"""The exchange: one bad, slow or silent node costs its own reply and nothing else."""

import json
import threading
import time
from collections.abc import Iterable

import pytest
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from fedretrain.errors import MachineError, RejectedUpdate
from server import exchange as module
from server.exchange import Arrival, Question, exchange

from .grid import Answer, NumpySite, ScriptedGrid


class Echo(NumpySite):
    """A site that answers anything with ``reply``; default: the records it received."""

    def __init__(self, reply: Answer | None = None, *, silent: bool = False, delay_s: float = 0.0) -> None:
        super().__init__("echo", delay_s=delay_s)
        self._reply, self._silent = reply, silent

    def answer(self, message_type: str, content: RecordDict) -> Answer:  # noqa: ARG002 - the same for any question
        return None if self._silent else self._reply if self._reply is not None else content


def ask(grid: ScriptedGrid, deadline_s: float = 5.0) -> list[Arrival]:
    question = Question(RecordDict(), "train", "1", deadline_s)
    return list(exchange(grid, grid.get_node_ids(), question))


def codes(arrivals: Iterable[Arrival]) -> dict[int, str]:
    return {a.node: a.outcome.code if isinstance(a.outcome, RejectedUpdate) else "ok" for a in arrivals}


def test_replies_come_as_they_arrive() -> None:
    """A fast reply is handed over while a slow one is still awaited."""
    grid = ScriptedGrid([Echo(delay_s=0.4), Echo(), Echo(delay_s=0.2)])
    arrivals = ask(grid)
    assert [a.node for a in arrivals] == [2, 3, 1]
    assert arrivals[0].seconds < 0.2 < arrivals[1].seconds


def test_messages_are_valid_until_the_deadline_and_grouped_by_round() -> None:
    """The transport may drop what nobody waits for any more."""
    grid = ScriptedGrid([Echo()])
    ask(grid, deadline_s=7.0)
    assert (grid.sent[0].metadata.ttl, grid.sent[0].metadata.group_id) == (7.0, "1")


def malformed_object() -> Exception:
    """What Flower raises when it inflates an array whose metadata is no JSON."""
    good = Array("float32", (1,), "numpy.ndarray", b"1234")
    try:
        Array.inflate(good.deflate().replace(b"{", b"["), good.children)
    except json.JSONDecodeError as error:
        return error
    raise AssertionError("Flower read the malformed array")


@pytest.mark.parametrize(
    "error", [malformed_object(), MemoryError(), RecursionError(), UnicodeDecodeError("a", b"", 0, 1, "")]
)
def test_fault_01_a_reply_that_cannot_be_decoded(error: Exception) -> None:
    """Whatever pulling one reply raises, the others arrive; the text of the error is not repeated."""
    arrivals = ask(ScriptedGrid([Echo(), Echo(error), Echo()]))
    assert codes(arrivals) == {1: "ok", 2: "malformed", 3: "ok"}
    assert f"({type(error).__name__})" in str(next(a.outcome for a in arrivals if a.node == 2))


def test_fault_21_another_nodes_id_outside_is_attributed_to_the_sender() -> None:
    """A reply labelled as node 3 that came for node 2's request is node 2's offence."""
    grid = ScriptedGrid([Echo(), Echo(), Echo()])
    question = Message(RecordDict(), 3, "train")
    grid.sites[2] = Echo(Message(RecordDict(), reply_to=question))
    assert codes(ask(grid)) == {1: "ok", 2: "site", 3: "ok"}


def test_fault_22_an_announced_reply_that_never_comes() -> None:
    """A pull that hangs is dropped at the deadline; honest replies are there long before it."""

    class Hanging(ScriptedGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            ids = list(message_ids)
            if ids == ["m0"]:
                threading.Event().wait(20)
            return super().pull_messages(ids)

    start = time.monotonic()
    arrivals = ask(Hanging([Echo(), Echo(), Echo(delay_s=0.3)]), deadline_s=3.0)
    assert codes(arrivals) == {1: "late", 2: "ok", 3: "ok"}
    assert all(a.seconds < 2.5 for a in arrivals if a.node != 1)
    assert 2.9 < time.monotonic() - start < 4.0


def test_fault_27_a_site_slower_than_the_deadline_is_late() -> None:
    """At the deadline what is missing is late, and the exchange ends."""
    start = time.monotonic()
    assert codes(ask(ScriptedGrid([Echo(), Echo(silent=True)]), deadline_s=0.5)) == {1: "ok", 2: "late"}
    assert time.monotonic() - start < 1.0


@pytest.mark.parametrize(
    ("code", "kind"), [(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "declined"), (ErrorCode.MESSAGE_UNAVAILABLE, "late")]
)
def test_an_error_reply_shows_its_code_only(code: int, kind: str) -> None:
    """The text of a site's exception may hold its data and is never shown."""
    question = Message(RecordDict(), 1, "train")
    (arrival,) = ask(ScriptedGrid([Echo(Message(Error(code, "value 4711"), reply_to=question))]))
    assert codes([arrival]) == {1: kind}
    assert "4711" not in str(arrival.outcome)


def test_a_second_reply_to_one_request_is_stale() -> None:
    """The first counts, the rest is recorded."""
    record = RecordDict({"a": ArrayRecord()})
    outcomes = [a.outcome for a in ask(ScriptedGrid([Echo([RecordDict(), record])]))]
    assert outcomes[0] == RecordDict()
    assert isinstance(outcomes[1], RejectedUpdate)
    assert outcomes[1].code == "stale"


def test_a_transport_that_fails_for_a_while_is_asked_again() -> None:
    """A refused connection is nobody's reply."""

    class Flaky(ScriptedGrid):
        failures = 2

        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            self.failures -= 1
            if self.failures >= 0:
                raise ConnectionRefusedError
            return super().pull_messages(message_ids)

    assert codes(ask(Flaky([Echo()]))) == {1: "ok"}


def test_a_broken_grid_is_the_machines_fault() -> None:
    """An error of ours from the grid ends the exchange as it is."""
    with pytest.raises(MachineError, match="no worker left"):
        ask(ScriptedGrid([Echo(MachineError("no worker left")), Echo()]))


def test_a_node_the_transport_does_not_take_is_late_at_once() -> None:
    """A node that has gone costs no waiting."""

    class Without(ScriptedGrid):
        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            return [i if i != "m0" else None for i in super().push_messages(messages)]  # type: ignore[misc]

    start = time.monotonic()
    assert codes(ask(Without([Echo(), Echo()]))) == {1: "late", 2: "ok"}
    assert time.monotonic() - start < 1.0


def test_a_transport_with_a_size_limit_gets_one_message_at_a_time() -> None:
    """Flower's grid answers an empty list where all messages together exceed its limit."""

    class Small(ScriptedGrid):
        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            given = list(messages)
            return super().push_messages(given) if len(given) == 1 else []

    assert codes(ask(Small([Echo(), Echo()]))) == {1: "ok", 2: "ok"}


def test_many_nodes_take_no_longer_than_they_need() -> None:
    """Two hundred replies that are there are pulled in well under a poll each."""
    start = time.monotonic()
    assert len(ask(ScriptedGrid([Echo() for _ in range(200)]))) == 200
    assert time.monotonic() - start < module.POLL_S * 50
