"""Flower strategies as users write them, right and wrong, and the grid behind them."""

# ruff: noqa: ARG002 - the signatures are Flower's

import random
from collections.abc import Iterable
from typing import Any, NoReturn

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.run import Run

ANSWERS: dict[str, ArrayRecord | None] = {}


class Unreachable(Grid):
    """A grid that is there but answers nothing; strategies only ever see the prepared nodes."""

    def set_run(self, run: Run) -> None:
        self._never()

    @property
    def run(self) -> Run:
        self._never()

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        self._never()

    def get_node_ids(self) -> Iterable[int]:
        self._never()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self._never()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self._never()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        self._never()

    def _never(self) -> NoReturn:
        raise AssertionError("the grid behind was used")


class Waiting(FedAvg):
    """Waits for a hundred nodes by a loop of its own."""

    def configure_train(self, *args: Any) -> Iterable[Message]:
        while len(list(args[3].get_node_ids())) < 100:
            pass
        return []


class Sending(FedAvg):
    """Talks to the sites by itself."""

    def configure_train(self, *args: Any) -> Iterable[Message]:
        args[3].send_and_receive([])
        return []


class Demanding(FedAvg):
    """Wants sites to act on a setting of its own."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Any:
        config["temperature"] = 2.0
        return super().configure_train(server_round, arrays, config, grid)


class Stranger(FedAvg):
    """Asks a node that is not prepared."""

    def configure_train(self, *args: Any) -> Iterable[Message]:
        return [Message(RecordDict(), 999, "train")]


class Answering(FedAvg):
    """Gives back what the test says."""

    def __init__(self, answer: str = "none") -> None:
        super().__init__()
        self.answer = answer

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        if self.answer == "raises":
            raise ZeroDivisionError("division\nby zero")
        return ANSWERS[self.answer], None


class Listening(FedAvg):
    """Keeps what it was given, and noise of the global generators."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        self.seen = list(replies)
        noise = random.random() + np.random.normal()  # noqa: NPY002 - as a user's strategy may
        return ArrayRecord(
            {k: Array(np.asarray(v.numpy() + noise)) for k, v in self.seen[0].content["arrays"].items()}
        ), None


class NotAStrategy:
    """A class, but not one of Flower's."""


def metrics_of(message: Message) -> dict[str, Any]:
    record = next(iter(message.content.metric_records.values()))
    assert isinstance(record, MetricRecord)
    return dict(record)
