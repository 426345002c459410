"""A Flower grid inside the test's process, and sites that know numbers only: they answer correctly, or as told.

``ScriptedGrid`` implements Flower's ``Grid``. What a ``NumpySite`` would answer goes through its ``tamper`` function
first, which may change the records, return None (silence), return several replies, raise at the moment of pulling by
returning an exception, or return a whole ``Message``.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from fedretrain.contract import Contract, InputSpec, OutputSpec, VariableSpec, keys
from fedretrain.digest import weights_digest
from fedretrain.job import NamedConfig
from fedretrain.messages import (
    BASE,
    COMPANION,
    PREPARE,
    SUM,
    BaseReply,
    BaseRequest,
    CompanionReply,
    CompanionRequest,
    Declined,
    PrepareReply,
    PrepareRequest,
    SumReply,
    SumRequest,
    TrainReply,
    TrainRequest,
    pack,
    request_arrays,
    unpack_request,
)
from fedretrain.sums import sum_specs

Arrays = list[NDArray[Any]]
Answer = RecordDict | Message | Exception | None | Sequence[RecordDict | Message]
Tamper = Callable[[str, Any, RecordDict], Answer]

CONTRACT = Contract(
    inputs=(InputSpec(name="x", shape=(4,), dtype="float32"),),
    outputs=(OutputSpec(name="y", shape=(2,), kind="multiclass", loss="sparse", labels=("0", "1")),),
    preprocessing=None,
    architecture="a" * 64,
    base="b" * 64,
    variables=(
        VariableSpec(shape=(4, 3), dtype="float32", rule="keep"),
        VariableSpec(shape=(3, 2), dtype="float32", rule="train"),
        VariableSpec(shape=(2,), dtype="float32", rule="average"),
        VariableSpec(shape=(2,), dtype="uint32", rule="local"),
        VariableSpec(shape=(), dtype="float32", rule="train"),
    ),
)


def pull_towards(target: float, rate: float = 0.5) -> Callable[[int, Arrays], Arrays]:
    """An update that goes a part of the way from the global values to ``target``."""
    return lambda _round, params: [(rate * (target - p)).astype(p.dtype) for p in params]


class NumpySite:
    """A site without Keras: its update is a function of round and global values.

    Args:
        name: The site's name.
        examples: Training examples; a tenth of them are for validation.
        update: (round, globals) -> update.
        tamper: (message type, request body, correct reply) -> what is sent; default: the correct reply.
        declines: Code, where and expected by message type.
        delay_s: Seconds until a reply is there.
        has_base: Whether the base model lies in its store already.
    """

    def __init__(
        self,
        name: str,
        examples: int = 10,
        update: Callable[[int, Arrays], Arrays] | None = None,
        *,
        tamper: Tamper | None = None,
        declines: Mapping[str, tuple[str, str, str]] | None = None,
        delay_s: float = 0.0,
        has_base: bool = False,
    ) -> None:
        self.name = name
        self.examples = examples
        self.update = update or pull_towards(1.0)
        self.tamper = tamper or (lambda _type, _request, reply: reply)
        self.declines = declines or {}
        self.delay_s = delay_s
        self.has_base = has_base
        self.asked: list[str] = []
        self.companions: dict[str, dict[str, NDArray[Any]]] = {}
        self.contract = CONTRACT
        self.summed: list[NamedConfig] = []
        self.mean = 1.0  # of every value of its sums

    def answer(self, message_type: str, content: RecordDict) -> Answer:
        self.asked.append(message_type)
        if message_type in self.declines:
            code, where, expected = self.declines[message_type]
            run = json.loads(str(content.config_records["body"]["json"]))["run"]
            return pack(Declined(run=run, site=self.name, code=code, where=where, expected=expected))
        if message_type == PREPARE:
            prepare = unpack_request(content, PrepareRequest)
            self.contract = prepare.contract
            return self.tamper(message_type, prepare, pack(self._prepared(prepare)))
        if message_type == BASE:
            base = unpack_request(content, BaseRequest)
            digest = weights_digest(request_arrays(content).values())
            self.has_base = digest == base.base
            return self.tamper(message_type, base, pack(BaseReply(run=base.run, site=self.name, base=digest)))
        if message_type == SUM:
            return self.tamper(message_type, None, self._summed(unpack_request(content, SumRequest)))
        if message_type == COMPANION:
            return self.tamper(message_type, None, self._kept(content))
        train = unpack_request(content, TrainRequest)
        lost = [digest for digest in train.companions.values() if digest not in self.companions]
        missing = pack(Declined(run=train.run, site=self.name, code="model-missing", where="companion"))
        return self.tamper(message_type, train, missing if lost else self._trained(train, request_arrays(content)))

    def _kept(self, content: RecordDict) -> RecordDict:
        request = unpack_request(content, CompanionRequest)
        self.companions[request.companion] = request_arrays(content)
        return pack(CompanionReply(run=request.run, site=self.name, companion=request.companion))

    def _summed(self, request: SumRequest) -> RecordDict:
        self.summed.append(request.sum)
        specs = sum_specs(request.sum, self.contract)
        arrays = {name: np.full(spec.shape, self.mean, spec.dtype) for name, spec in specs.items()}
        body = SumReply(
            run=request.run,
            site=self.name,
            sum=request.sum.name,
            contract=request.contract,
            globals_digest=request.globals_digest,
            sum_digest=weights_digest(arrays.values()),
        )
        return pack(body, arrays, {"num-examples": self.examples})

    def _prepared(self, request: PrepareRequest) -> PrepareReply:
        return PrepareReply(
            run=request.run,
            site=self.name,
            contract=request.contract.digest,
            train_examples=self.examples,
            validation_examples=self.examples // 10,
            needs_base=not self.has_base,
        )

    def _trained(self, request: TrainRequest, arrays: dict[str, NDArray[Any]]) -> RecordDict:
        update = self.update(request.round, list(arrays.values()))
        body = TrainReply(
            run=request.run,
            round=request.round,
            site=self.name,
            contract=request.contract,
            globals_digest=request.globals_digest,
            update_digest=weights_digest(update),
        )
        return pack(body, dict(zip(arrays, update, strict=True)), {"num-examples": self.examples, "val_loss": 0.5})


class ScriptedGrid(Grid):
    """Sites as nodes 1, 2, ... in the order given; a reply is made when it is pulled, after its site's delay."""

    def __init__(self, sites: Sequence[NumpySite]) -> None:
        self.sites = dict(enumerate(sites, start=1))
        self.sent: list[Message] = []
        self._open: dict[str, tuple[float, Message]] = {}
        self._run = Run.create_empty(run_id=1)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        return list(self.sites)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            ids.append(f"m{len(self.sent)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.sent.append(message)
            self._open[ids[-1]] = (time.monotonic() + self.sites[message.metadata.dst_node_id].delay_s, message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        (message_id,) = message_ids
        at, request = self._open.get(message_id, (float("inf"), None))
        if time.monotonic() < at or request is None:
            return []
        del self._open[message_id]
        answer = self.sites[request.metadata.dst_node_id].answer(request.metadata.message_type, request.content)
        if isinstance(answer, Exception):
            raise answer
        answers = [answer] if isinstance(answer, RecordDict | Message) else list(answer or ())
        return [a if isinstance(a, Message) else Message(a, reply_to=request) for a in answers]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError("the product pulls replies itself")


def changing_keys(contract: Contract = CONTRACT) -> list[str]:
    return keys(contract.changing)
