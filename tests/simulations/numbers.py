"""A handler for workers whose sites know numbers only (``tests.server.grid``); their names say how they misbehave."""

import os
import signal
import time
from typing import Any

import numpy as np
from flwr.app import RecordDict

from client.trainer import Result
from fedretrain.job import NamedConfig, TrainSection
from fedretrain.messages import TRAIN, Declined, PrepareRequest
from simulations.group import Group, changing_shapes
from simulations.memory import Memory
from simulations.ready import Ready
from simulations.worker import Sites, Tell
from tests.server.grid import CONTRACT, Arrays, NumpySite, pull_towards


def update(name: str, number: int, params: Arrays) -> Arrays:
    """Each goes its own way; ``die`` and ``hang`` do so in round 2."""
    if name.startswith("die") and number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("hang") and number == 2:
        time.sleep(60)
    values = pull_towards(sum(name.encode()) % 17 / 10, 0.3)(number, params)
    if name == f"boast-{number}":
        values = [np.asarray(1000 * u, u.dtype) for u in values]
    if name == f"burst-{number}":  # more than can be folded
        values = [np.asarray(1e9 + 0 * u, u.dtype) for u in values]
    if name == f"nan-{number}":
        values = [np.full_like(u, np.nan) for u in values]
    return values


class NumberSite:
    """A site as a worker sees it, in both ways of being asked."""

    data_bytes = 0

    def __init__(self, name: str) -> None:
        refusal = ("training-diverged", "train", "finite loss")
        self.numbers = NumpySite(
            name,
            10 + len(name),
            lambda number, params: update(name, number, params),
            declines={TRAIN: refusal} if name == "refuses" else None,
            has_base=True,
        )

    def update(
        self,
        request: PrepareRequest,
        number: int,
        received: Arrays,
        companions: dict[str, str],  # noqa: ARG002 - the signature of a site
    ) -> Result | Declined:
        site = self.numbers
        if TRAIN in site.declines:
            code, where, expected = site.declines[TRAIN]
            return Declined(run=request.run, site=site.name, code=code, where=where, expected=expected)
        return Result(update(site.name, number, received), site.examples, {"val_loss": 0.5})


class Numbers:
    """The handler."""

    def configure(self, sites: Sites) -> None:  # noqa: ARG002 - the signature of a handler
        self.ready = Ready(NumberSite)  # type: ignore[arg-type]

    def handle(self, site: str, message_type: str, content: RecordDict) -> RecordDict:
        with self.ready.site(site) as ready:
            answer = ready.numbers.answer(message_type, content)  # type: ignore[attr-defined]
        assert isinstance(answer, RecordDict)
        return answer

    def notes(self) -> list[str]:
        return []

    def combine(self, header: dict[str, Any], memory: Memory, tell: Tell) -> None:
        request = PrepareRequest(
            run=header["run"],
            contract=CONTRACT,
            architecture="{}",
            train=TrainSection(),
            strategy=NamedConfig(name="fedavg"),
        )
        received = [a.copy() for a in memory.arrays(header["params_at"], changing_shapes(request))]
        Group(header, memory, request, received, self.ready, tell).run()
