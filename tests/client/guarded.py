"""A site behind its gatekeeper, with a trainer that needs no TensorFlow, and a coordinator that asks it."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import RecordDict

from client import record
from client.gatekeeper import Gatekeeper
from client.home import Home
from client.identity import request
from client.sitefile import load_site
from client.sums import Total
from client.trainer import Order, Result
from fedretrain.architecture import fingerprint
from fedretrain.contract import Contract, InputSpec, OutputSpec, VariableSpec, keys
from fedretrain.dataset import Dataset
from fedretrain.digest import weights_digest
from fedretrain.job import NamedConfig, TrainSection
from fedretrain.membership import Kit, public_key, public_text
from fedretrain.messages import (
    BASE,
    PREPARE,
    TRAIN,
    BaseRequest,
    PrepareRequest,
    TrainRequest,
    pack,
)
from fedretrain.seal import About, Claims, request_claims, sealed, unsealed

BASE_VALUES = [np.arange(6, dtype="float32").reshape(3, 2), np.zeros(2, "float32")]
RECEIVED = [np.ones((3, 2), "float32")]
RUN = "digits-1"


class Backend:
    """Adds one to everything and counts how often it was asked; ``fails`` is raised instead."""

    def __init__(self) -> None:
        self.prepared: list[PrepareRequest] = []
        self.trained: list[Order] = []
        self.summed: list[str] = []
        self.fails: BaseException | None = None
        self.metrics = {"train-loss": 0.5, "val-loss": 0.25, "val-accuracy": 1.0, "seconds": 0.1}
        self.takes_s = 0.0

    def prepare(self, request: PrepareRequest, _modules: tuple[str, ...] = ()) -> None:
        self.prepared.append(request)

    def train(self, order: Order, base: Any, received: Any, data: Dataset) -> Result:
        self.trained.append(order)
        time.sleep(self.takes_s)
        if self.fails is not None:
            raise self.fails
        base()
        examples = len(data) - int(len(data) * order.request.train.validation_fraction)
        return Result([np.ones_like(array) for array in received], examples, dict(self.metrics))

    def sum(self, order: Order, what: NamedConfig, base: Any, received: Any, data: Dataset) -> Total:
        assert order.round == 0
        self.summed.append(what.name)
        base()
        return Total([np.ones(array.shape, "float32") for array in received], len(data) // 2)


@dataclass
class Guarded:
    """One site and the keys of both sides; ``answer`` asks and opens the reply."""

    home: Home
    kit: Kit
    coordinator: Ed25519PrivateKey
    backend: Backend = field(default_factory=Backend)
    clock: float = field(default_factory=time.time)

    def start(self) -> Gatekeeper:
        """A gatekeeper as a start of the trainer makes it; a second one is the trainer started again."""
        return Gatekeeper(self.home, self.kit, load_site(self.home.site), self.backend, lambda: self.clock)

    def policy(self, text: str) -> None:
        """Write ``site.toml`` with these lines in its policy."""
        self.home.site.write_text(f'[data]\nformat = "npz"\npath = "data.npz"\n\n[policy]\n{text}\n')

    def data(self, count: int = 100, **changes: Any) -> None:
        """Write the site's file."""
        rng = np.random.default_rng(0)
        arrays = {"x": rng.normal(size=(count, 3)), "y": rng.integers(0, 2, count)} | changes
        np.savez(self.home.root / "data.npz", **arrays)

    def about(self, message_type: str, **changes: Any) -> About:
        """What a request to this site is about."""
        fields = {"run": RUN, "round": 1 if message_type == TRAIN else 0, "site": self.kit.site}
        fields |= {"federation": self.kit.federation, "message_type": message_type}
        return About.model_validate(fields | changes)

    def seal(self, message_type: str, content: RecordDict, **changes: Any) -> RecordDict:
        """The request as the coordinator sends it."""
        return sealed(content, request_claims(self.about(message_type, **changes), 60), self.coordinator)

    def opened(self, reply: RecordDict) -> tuple[Claims, dict[str, Any], RecordDict]:
        """Claims, body and content of an answer; its seal must hold."""
        claims, content = unsealed(reply, public_key(self.kit.signing_key))
        return claims, json.loads(str(content.config_records["body"]["json"])), content

    def ask(self, gate: Gatekeeper, message_type: str, content: RecordDict, **changes: Any) -> dict[str, Any]:
        """The body of the answer to a request."""
        return self.opened(gate.handle(message_type, self.seal(message_type, content, **changes)))[1]

    def prepared(self, gate: Gatekeeper) -> None:
        """Go as far as to the first round."""
        assert self.ask(gate, PREPARE, pack(job()))["kind"] == "prepare"
        assert self.ask(gate, BASE, base())["kind"] == "base"

    def entries(self, kind: str) -> list[dict[str, Any]]:
        """The record's entries of a kind."""
        return [entry for entry in record.read(self.home.record) if entry["kind"] == kind]


def guarded(folder: Path) -> Guarded:
    """The site "north" of the federation "clinics", with a hundred examples and an empty policy."""
    home = Home(folder / "north")
    asked = request(home, "north")
    coordinator = Ed25519PrivateKey.generate()
    kit = Kit(
        federation="clinics",
        site="north",
        address="localhost:1",
        ca="-",
        coordinator=public_text(coordinator),
        root="-",
        node_key=asked.node_key,
        signing_key=asked.signing_key,
        bundle="0" * 64,
    )
    site = Guarded(home, kit, coordinator)
    site.policy("")
    site.data()
    return site


def job(run: str = RUN, **changes: Any) -> PrepareRequest:
    """What a run of a job with three columns and two classes asks for."""
    architecture = '{"class_name":"Tiny"}'
    contract = Contract(
        inputs=(InputSpec(name="x", shape=(3,), dtype="float32", columns=("age", "height", "weight")),),
        outputs=(OutputSpec(name="y", shape=(2,), kind="multiclass", loss="-", labels=("no", "yes")),),
        preprocessing=None,
        architecture=fingerprint(architecture),
        base=weights_digest(BASE_VALUES),
        variables=(
            VariableSpec(shape=(3, 2), dtype="float32", rule="train"),
            VariableSpec(shape=(2,), dtype="float32", rule="keep"),
        ),
    )
    train = TrainSection(optimizer=NamedConfig(name="sgd"), loss="-", metrics=("accuracy",))
    fields = {"contract": contract, "architecture": architecture, "train": train}
    whole = PrepareRequest(run=run, strategy=NamedConfig(name="fedavg"), freeze=("base",), **fields)  # type: ignore[arg-type]
    return whole.model_copy(update=changes)


def base(run: str = RUN) -> RecordDict:
    """The base model."""
    arrays = dict(zip(keys(range(2)), BASE_VALUES, strict=True))
    return pack(BaseRequest(run=run, base=weights_digest(BASE_VALUES)), arrays)


def order(round_: int = 1, run: str = RUN) -> RecordDict:
    """One round's order."""
    body = TrainRequest(run=run, round=round_, contract=job().contract.digest, globals_digest=weights_digest(RECEIVED))
    return pack(body, dict(zip(keys([0]), RECEIVED, strict=True)))
