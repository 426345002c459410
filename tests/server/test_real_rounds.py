"""Sealed rounds over a real SuperLink, with all processes of two real sites; no TensorFlow."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest

from client import identity
from client.home import Home
from fedretrain.contract import VariableSpec
from fedretrain.digest import sha256
from fedretrain.membership import Kit, public_text
from server.deliver import deliver
from server.federation import Federation, Member
from server.guarded import GuardedGrid
from server.installed import installed
from server.keyfile import write_key
from server.messenger import SealedMessenger
from server.registry import Registry
from tests import drafts
from tests.client import sites as clinic

from .fleet import Link, eventually, make_bundle, make_federation, running
from .grid import CONTRACT
from .parts import Loop
from .sealed import ADMITTED

MODULES = ("client.supernode", "client.executor", "client.trainer_main")
SPECS = (VariableSpec(shape=(4, 65_536), dtype="float32", rule="train"),)  # 1 MB
SITES = ("north", "south")


class Clinics:
    """Two members of a federation, their processes, and a grid that reaches them."""

    def __init__(self, folder: Path, link: Link) -> None:
        self.federation: Federation = link.federation
        self.folder = folder
        coordinator = Ed25519PrivateKey.generate()
        write_key(self.federation.coordinator_key, coordinator)
        self.registry = Registry.open(self.federation.folder)
        self.registry.prepare()
        bundle = make_bundle(folder, "pass")
        self.homes = {name: self._join(name, link, coordinator, sha256(bundle)) for name in SITES}
        self.children = {
            name: [clinic.process(home, module) for module in MODULES] for name, home in self.homes.items()
        }
        self.grid: GuardedGrid = link.grid(bundle)
        threading.Thread(target=self._beat, daemon=True).start()

    def start(self) -> None:
        """Start the sites, and wait until both are connected."""
        for children in self.children.values():
            for child in children:
                child.start()
        assert eventually(lambda: len(self.grid.node_keys()) == len(SITES)), self.logs()

    def stop(self) -> None:
        """End them."""
        for children in self.children.values():
            for child in children:
                child.ask_to_stop()
            for child in children:
                child.stop(3.0)

    def signal(self, name: str, number: int) -> None:
        """Send a signal to every process of a site."""
        for child in self.children[name]:
            assert child.pid
            os.killpg(child.pid, number)

    def loop(self, run: str = "r1", **job: Any) -> Loop:
        """A run of the round loop over them."""
        contract = CONTRACT.model_copy(update={"variables": SPECS, "architecture": sha256(b"{}")})
        messenger = SealedMessenger(self.federation, self.grid, run)
        loop = Loop(self.federation.folder, [], self.grid, contract, messenger=messenger, run=run, **job)
        object.__setattr__(loop.plan, "expected", SITES)
        return loop

    def logs(self) -> str:
        """What the sites printed."""
        files = [file for home in self.homes.values() for file in sorted(home.log.glob("*.log"))]
        return "\n".join(f"== {file}\n{file.read_text()[-3000:]}" for file in files)

    def _join(self, name: str, link: Link, coordinator: Ed25519PrivateKey, bundle: str) -> Home:
        home = Home.at(self.folder / name)
        asked = identity.request(home, name)
        Kit(
            federation=self.federation.settings.name,
            site=name,
            address=link.address,
            ca=link.ca.decode(),
            coordinator=public_text(coordinator),
            root=self.federation.anchor.read_text(),
            node_key=asked.node_key,
            signing_key=asked.signing_key,
            bundle=bundle,
        ).write(home.kit)
        home.site.write_text(
            clinic.SITE_TOML.replace("tests.client.numpy_backend:Backend", "tests.server.receiver:Receiver")
        )
        x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
        np.savez(home.root / "data.npz", x=x, y=np.zeros(20, "int64"))
        home.make()
        member = Member(name, asked.node_key, asked.signing_key, asked.software, ADMITTED)
        self.federation.write_roster((*self.federation.entries(), member))
        link.control().register(asked.node_key, name)
        return home

    def _beat(self) -> None:
        """Keep the run alive, as Flower does for a ServerApp."""
        while True:
            time.sleep(10)
            with suppress(httpx.HTTPError, RuntimeError):
                self.grid._grid._runtime_client.SendTaskHeartbeat(SendTaskHeartbeatRequest())


@pytest.fixture(scope="module")
def clinics(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinics]:
    folder = tmp_path_factory.mktemp("real")
    with running(make_federation(folder / "server")) as link:
        made = Clinics(folder, link)
        try:
            made.start()
            yield made
        finally:
            made.stop()


@pytest.mark.slow
def test_sealed_rounds_over_a_real_superlink(clinics: Clinics) -> None:
    """Both members take part in every round of 1 MB each way; nothing is quarantined."""
    loop = clinics.loop(rounds=4, deadline_s=120.0)
    state = loop.run()
    assert loop.quarantined() == [], clinics.logs()
    assert [len(record["admitted"]) for record in state.history] == [2] * 4


@pytest.mark.slow
def test_fault_28_and_30_a_site_that_stands_still_and_goes_on(clinics: Clinics) -> None:
    """The round ends at its deadline without it, and the next ones have it again; nobody does anything about it."""
    loop = clinics.loop(run="r2", rounds=3, min_sites=1, deadline_s=8.0)

    def act(event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint" and event["round"] == 1:
            clinics.signal("south", signal.SIGSTOP)
        if event["event"] == "round-finished" and event["round"] == 2:
            clinics.signal("south", signal.SIGCONT)

    take = loop._take
    loop._take = lambda event: (take(event), act(event))  # type: ignore[method-assign,assignment,return-value]
    loop.run()
    assert loop.quarantined()[0] == (2, "south", "late")
    admitted = [[a["site"] for a in e["admitted"]] for e in loop.named("round-finished")]
    assert admitted == [["north", "south"], ["north"], ["north", "south"]], clinics.logs()


@pytest.mark.slow
def test_a_release_travels_over_a_real_superlink(clinics: Clinics) -> None:
    """Metadata and files arrive whole at both sites, and each says that it has it."""
    release = clinics.registry.publish(drafts.draft("run-1"), None)
    events: list[dict[str, Any]] = []
    deliver(clinics.federation, clinics.grid, lambda event, **fields: events.append({"event": event, **fields}), "r3")
    assert {name: entry.installed for name, entry in installed(clinics.federation).items()} == dict.fromkeys(
        SITES, release.id
    ), (events, clinics.logs())
