"""A whole federation as processes: `server up`, and `client up` at every site, each with a trainer that needs no Keras.

Everything goes through the product's own files and commands; what a test looks at afterwards is what lies on the disk:
the run's events and result, the registry, a site's installed release.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from client import identity
from client.home import Home
from fedretrain.processes import clean_environment, free_port
from fedretrain.runfolder import RunFolder
from server import operations, sites
from server.federation import Federation
from server.federation_file import Settings
from server.provision import admit, init
from server.registry import Registry

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-P", "-m", "fedretrain.cli"]
SITES = ("north", "south", "west")
FEATURES, CLASSES = 8, 3
SINCE, DATES = "2026-06-01T00:00:00Z", (1767225600.0, 1782864000.0)  # January and July 2026
SITE_TOML = """
[data]
format = "npz"
path = "data.npz"
[trainer]
backend = "tests.federation.softmax:Backend"
nice = 0
"""
JOB = """
[model]
path = "{model}"
[train]
rounds = {rounds}
optimizer = {{ name = "sgd" }}
loss = "sparse_categorical_crossentropy"
metrics = ["accuracy"]
[strategy]
name = "{strategy}"
{more}
[participation]
min_sites = {min_sites}
deadline_s = {deadline}
[[holdout]]
name = "all"
path = "holdout.npz"
must = "not-worse"
margin = 0.2
"""


def wait_for(what: Callable[[], Any], within_s: float = 120.0, doing: str = "it") -> Any:
    """What the call returns as soon as it is true; fails after ``within_s`` seconds."""
    end = time.monotonic() + within_s
    while not (found := what()):
        assert time.monotonic() < end, f"{doing}: not so within {within_s:g} s"
        time.sleep(0.1)
    return found


def processes(*texts: str) -> list[int]:
    """Ids of living processes with all ``texts`` among their arguments, this one left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if int(path.name) != os.getpid() and all(text in words for text in texts):
            found.append(int(path.name))
    return sorted(found)


def write_data(folder: Path, seed: int, examples: int = 200, name: str = "data.npz", features: int = FEATURES) -> None:
    """Examples of three clouds of points; features beyond ``FEATURES`` are zero."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, examples)
    x = rng.normal(size=(examples, FEATURES)) + 2 * np.eye(CLASSES, FEATURES)[y]
    wide = np.zeros((examples, features), "float32")
    wide[:, :FEATURES] = x
    np.savez(folder / name, allow_pickle=False, x=wide, y=y)


def write_dated(path: Path, seed: int, old: int, new: int, shift: float) -> None:
    """Such examples from before ``SINCE`` and from after it; of the latter the fifth feature is shifted."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, old + new)
    x = (rng.normal(size=(old + new, FEATURES)) + 2 * np.eye(CLASSES, FEATURES)[y]).astype("float32")
    x[old:, 4] += shift
    time = np.where(np.arange(old + new) < old, *DATES)
    np.savez(path, allow_pickle=False, x=x, y=y, timestamp=time)


def write_model(path: Path, features: int = FEATURES) -> None:
    """The model in use when a federation begins, of some ``12 * features`` bytes."""
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((features,), name="x"), keras.layers.Dense(CLASSES, "softmax", name="y")])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.save(path)


@dataclass
class Stand:
    """A federation in ``folder``; ``inside`` puts a command on a machine, by default this one."""

    folder: Path
    host: str = "localhost"
    inside: Callable[[str], Sequence[str]] = lambda _machine: ()
    env: dict[str, dict[str, str]] = field(default_factory=dict)
    features: int = FEATURES
    _running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def set_up(self, model: Path, names: Iterable[str] = SITES) -> "Stand":
        """Make the federation and let the sites join."""
        port = free_port()
        settings = Settings(name="stand", address=f"{self.host}:{port}", listen=f"0.0.0.0:{port}", names=("127.0.0.1",))
        federation = init(self.folder / "federation", settings)
        for number, name in enumerate(names):
            home = self.home(name)
            kit, request = self.folder / f"{name}.kit", self.folder / f"{name}.request"
            identity.request(home, name).write(request)
            admit(federation, request, kit)
            identity.join(home, kit)
            home.site.write_text(SITE_TOML)
            write_data(home.root, seed=number, features=self.features)
        write_data(self.folder, seed=99, examples=400, name="holdout.npz", features=self.features)
        (self.folder / "base.keras").write_bytes(model.read_bytes())
        return self

    @property
    def federation(self) -> Federation:
        """The server's folder."""
        return Federation.open(self.folder / "federation")

    def home(self, site: str) -> Home:
        """A site's folder."""
        return Home.at(self.folder / site)

    def server_up(self) -> None:
        """`server up`, ready."""
        self._start("server", "server", "up", "--folder", self.folder / "federation")
        wait_for(lambda: "ready:" in self.said("server") or not self.alive("server"), doing="server up")
        assert self.alive("server"), self.said("server")

    def client_up(self, *names: str) -> None:
        """`client up` at each of the sites, and all of them connected."""
        for site in names:
            self._start(site, "client", "up", "--home", self.home(site).root)
        wait_for(lambda: set(names) <= set(self.online()), 150, f"{names} connected")

    def online(self) -> list[str]:
        """Names of the sites that the server's SuperLink holds for connected."""
        return sorted(sites.online(self.federation))

    def retrain(
        self,
        rounds: int = 5,
        *,
        min_sites: int = 2,
        deadline_s: float = 60,
        strategy: str = "fedavg",
        more: str = "",
    ) -> RunFolder:
        """Ask for a run that starts from the model in use; ``more`` are lines behind the strategy's name."""
        used = Registry.open(self.federation.folder).incumbent()
        model = used.folder / "model.keras" if used else self.folder / "base.keras"
        job = self.folder / f"job-{time.monotonic_ns()}.toml"
        job.write_text(
            JOB.format(
                model=model, rounds=rounds, min_sites=min_sites, deadline=deadline_s, strategy=strategy, more=more
            )
        )
        return operations.retrain(self.federation, job)

    def ended(self, run: RunFolder, within_s: float = 240.0) -> dict[str, Any]:
        """The run's result, once it is there."""
        wait_for(run.result.exists, within_s, f"{run.root.name} ended; {self.tail(run)}")
        result: dict[str, Any] = json.loads(run.result.read_bytes())
        return result

    def tail(self, run: RunFolder) -> list[dict[str, Any]]:
        """The run's last events."""
        return list(run.read_events())[-5:]

    def pid(self, module: str, machine: str = "server") -> int:
        """The process of this machine that runs ``module``."""
        folder = self.folder / "federation" if machine == "server" else self.home(machine).root
        [found] = wait_for(lambda: processes(module, str(folder)), 90, f"{module} runs at {machine}")
        return int(found)

    def kill(self, module: str, machine: str = "server", for_s: float = 0.0) -> None:
        """SIGKILL a process, and every one that takes its place for some seconds."""
        os.kill(self.pid(module, machine), signal.SIGKILL)
        folder = self.folder / "federation" if machine == "server" else self.home(machine).root
        end = time.monotonic() + for_s
        while time.monotonic() < end:
            for again in processes(module, str(folder)):
                os.kill(again, signal.SIGKILL)
            time.sleep(0.02)

    def kill_up(self, machine: str) -> None:
        """SIGKILL `up` itself."""
        self._running[machine].kill()
        self._running[machine].wait()

    def alive(self, machine: str) -> bool:
        """Whether `up` runs."""
        return self._running[machine].poll() is None

    def said(self, machine: str) -> str:
        """What `up` printed."""
        return (self.folder / f"{machine}.log").read_text(errors="replace")

    def end(self, *machines: str) -> None:
        """Ctrl-C at these machines, by default all."""
        chosen = machines or tuple(self._running)
        for machine in reversed(chosen):
            self._running[machine].send_signal(signal.SIGINT)
        for machine in chosen:
            try:
                self._running[machine].wait(30)
            except subprocess.TimeoutExpired:
                self._running[machine].kill()

    def _start(self, machine: str, *arguments: str | Path) -> None:
        environment = clean_environment(**{"PYTHONPATH": str(ROOT)} | self.env.get(machine, {}))
        with (self.folder / f"{machine}.log").open("wb") as log:
            self._running[machine] = subprocess.Popen(
                [*self.inside(machine), *COMMAND, *map(str, arguments)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment,
                cwd=self.folder,
                start_new_session=True,
                preexec_fn=_end_with_the_test,  # noqa: PLW1509  # tests have one thread
            )


def _end_with_the_test() -> None:
    """Nothing is left where the tests themselves are killed (Linux: PR_SET_PDEATHSIG, prctl(2))."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def rounds_done(run: RunFolder) -> list[int]:
    """The rounds that were checkpointed, as the events tell."""
    return [event["round"] for event in run.read_events() if event["event"] == "checkpoint"]


def happened(run: RunFolder, event: str, round_: int) -> bool:
    """Whether the run's log has this event of this round."""
    return any(e["event"] == event and e.get("round") == round_ for e in run.read_events())


def check_whole(stand: Stand, run: RunFolder, rounds: int) -> dict[str, Any]:
    """The run was released, every round counted once, and the registry is whole and names the run's release."""
    result = stand.ended(run)
    assert result["outcome"] == "released", result
    assert [r["round"] for r in result["rounds"]] == list(range(1, rounds + 1))
    assert rounds_done(run) == list(range(1, rounds + 1))
    registry = Registry.open(stand.federation.folder)
    assert registry.verify().ok
    incumbent = registry.incumbent()
    assert incumbent is not None
    assert incumbent.id == result["release"]
    entries = registry.state().ledger.releases.values()
    assert [entry.run for entry in entries].count(run.root.name) == 1
    return result
