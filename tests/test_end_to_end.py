"""The command as a user runs it, in processes of its own.

One demo is made and run with ``fedretrain simulate``; the other runs take its job file, so that the base model is
trained once. Weights are compared as the released file's bytes.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedretrain.processes import free_port
from simulations.supervisor import below

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

COMMAND = [sys.executable, "-m", "fedretrain.cli"]
ROUNDS = ("--rounds", "4")
LIMIT_S = 240.0


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def value(self) -> dict[str, Any]:
        """The JSON object on the last line of standard output."""
        value: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return value


def fedretrain(*args: str | Path) -> Ended:
    done = subprocess.run(
        [*COMMAND, *map(str, args)], capture_output=True, text=True, check=False, timeout=LIMIT_S, cwd="/"
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def weights(out: Path, result: dict[str, Any]) -> bytes:
    """The released weights, as they lie there."""
    return (out / "registry" / "releases" / result["release"] / "weights.safetensors").read_bytes()


def workers_of(pid: int) -> list[int]:
    """Processes that were started as workers of process ``pid``."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"simulations.worker" in words and str(pid).encode() in words:
            found.append(int(file.parent.name))
    return found


def gone(pid: int, within_s: float = 10.0) -> bool:
    """Whether no worker of process ``pid`` is left soon."""
    end = time.monotonic() + within_s
    while workers_of(pid):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


@dataclass(frozen=True)
class Started:
    """A command at work in an output folder of its own."""

    process: subprocess.Popen[str]
    out: Path

    def wait_for(self, event: str, round_: int) -> None:
        """Until the run's log has this event of this round."""
        wanted = {"event": event, "round": round_}
        end = time.monotonic() + LIMIT_S
        while not any(wanted.items() <= happened.items() for happened in self.events()):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end
            time.sleep(0.005)

    def events(self) -> list[dict[str, Any]]:
        """Whole lines of the run's log."""
        lines = [line for file in self.out.glob("runs/*/events.jsonl") for line in file.read_text().splitlines()]
        return [json.loads(line) for line in lines if line.endswith("}")]

    @property
    def run_id(self) -> str:
        [root] = (self.out / "runs").iterdir()
        return root.name


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Starts a command that writes to a folder of its own; it is killed at the end of the test."""
    started: list[Started] = []

    def begin(*args: str | Path) -> Started:
        command = [*COMMAND, *map(str, args), "--out", str(tmp_path)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, text=True, process_group=0, **pipes)  # type: ignore[call-overload]
        started.append(Started(process, tmp_path))
        return started[-1]

    yield begin
    for each in started:
        each.process.kill()
        each.process.communicate()


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """The built-in demo, run by three workers; its output folder."""
    out = tmp_path_factory.mktemp("demo")
    return out, fedretrain("simulate", "--out", out, "--workers", "3", "--json", *ROUNDS)


@pytest.fixture(scope="session")
def job(demo: tuple[Path, Ended]) -> Path:
    """The demo's job file."""
    return demo[0] / "demo" / "job.toml"


def test_the_demo_releases(demo: tuple[Path, Ended]) -> None:
    """Without a job: exit code 0, better on new, not worse on old, and the last line is the whole result."""
    out, ended = demo
    assert ended.code == 0, ended.err
    result = ended.value
    assert {"run_id", "outcome", "release", "rounds", "gate", "bytes", "seconds"} <= set(result)
    assert result["outcome"] == "released"
    old, new = result["gate"]["holdouts"]
    assert (old["name"], new["name"]) == ("old", "new")
    assert old["lower_bound"] > -0.03
    assert new["difference"] > 0.05
    assert [len(record["admitted"]) for record in result["rounds"]] == [5] * 4
    assert result["bytes"]["total"] < result["bytes"]["whole_model_total"] / 2
    assert (out / "registry" / "releases" / result["release"]).is_dir()


def test_progress_is_shown_and_says_nothing_else(demo: tuple[Path, Ended]) -> None:
    """Standard error has the steps and the rounds, and no line of a library."""
    lines = demo[1].err.splitlines()
    assert lines[0].strip() == "starting the workers ..."
    assert any("round 4 of 4: 5 of 5 sites, accuracy" in line for line in lines)
    assert all(line.startswith("  ") for line in lines), demo[1].err


def test_the_release_verifies_and_a_flipped_bit_does_not(demo: tuple[Path, Ended]) -> None:
    """`server releases verify` says so, and names the file where one bit was changed."""
    out, ended = demo
    assert fedretrain("server", "releases", "verify", "--out", out).code == 0
    file = out / "registry" / "releases" / ended.value["release"] / "weights.safetensors"
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        damaged = fedretrain("server", "releases", "verify", "--out", out)
    finally:
        file.write_bytes(whole)
    assert damaged.code == 1
    assert "weights.safetensors" in damaged.out + damaged.err


def test_a_finished_run_is_shown_to_a_person(demo: tuple[Path, Ended]) -> None:
    """Resuming what is finished shows its tables at once, and where the release lies."""
    out, ended = demo
    shown = fedretrain("simulate", "--resume", ended.value["run_id"], "--out", out)
    assert shown.code == 0
    assert "hospital-e" in shown.out
    assert "Candidate against the model in use" in shown.out
    assert str(out / "registry" / "releases" / ended.value["release"]) in shown.out
    assert "\x1b" not in shown.out


def test_one_worker_gives_the_bits_of_three(demo: tuple[Path, Ended], job: Path, tmp_path: Path) -> None:
    """The same job file, run by one worker, ends with the same weights and the same verdict."""
    alone = fedretrain("simulate", job, "--out", tmp_path, "--workers", "1", "--json", *ROUNDS)
    assert alone.code == 0, alone.err
    assert weights(tmp_path, alone.value) == weights(demo[0], demo[1].value)
    assert alone.value["gate"] == demo[1].value["gate"]


def test_a_killed_run_resumes_to_the_same_bits(
    demo: tuple[Path, Ended], job: Path, start: Callable[..., Started]
) -> None:
    """SIGKILL in round 3 leaves no worker; --resume goes on from round 2 and ends like the unbroken run."""
    run = start("simulate", job, *ROUNDS)
    run.wait_for("round-started", 3)
    run.process.send_signal(signal.SIGKILL)
    run.process.wait()
    assert gone(run.process.pid)
    assert not list(run.out.glob("runs/*/result.json"))
    resumed = fedretrain("simulate", "--resume", run.run_id, "--out", run.out, "--json")
    assert resumed.code == 0, resumed.err
    assert weights(run.out, resumed.value) == weights(demo[0], demo[1].value)
    assert [record["round"] for record in resumed.value["rounds"]] == [1, 2, 3, 4]
    finished = [event["round"] for event in run.events() if event["event"] == "round-finished"]
    assert finished == [1, 2, 3, 4]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_its_checkpoint_alone(
    job: Path, start: Callable[..., Started], sent: signal.Signals, code: int
) -> None:
    """Ctrl-C or SIGTERM: no process is left, the checkpoint is, nothing is released; Ctrl-C says how to go on."""
    run = start("simulate", job, "--rounds", "1000")
    run.wait_for("checkpoint", 2)
    assert workers_of(run.process.pid)
    os.kill(run.process.pid, sent)
    _, err = run.process.communicate(timeout=30)
    assert run.process.returncode == code
    assert gone(run.process.pid)
    assert list(run.out.glob("runs/*/state/round-*.safetensors"))
    assert not list(run.out.glob("runs/*/result.json"))
    assert "Traceback" not in err
    if sent == signal.SIGINT:
        assert f"--resume {run.run_id}" in err


@pytest.mark.parametrize(("kind", "code"), [("scale", "norm"), ("nan", "not-finite")])
def test_a_poisoned_site_is_quarantined(job: Path, tmp_path: Path, kind: str, code: str) -> None:
    """A site whose updates are broken is left out of every round; what the others made of it is released."""
    shutil.copytree(job.parent, tmp_path / "demo")  # so that it need not be made again
    ended = fedretrain("simulate", "--out", tmp_path, "--poison", kind, *ROUNDS, "--json")
    assert ended.code == 0, ended.err
    for record in ended.value["rounds"]:
        assert [(q["site"], q["code"]) for q in record["quarantined"]] == [("hospital-e", code)]
        assert len(record["admitted"]) == 4
    assert fedretrain("server", "releases", "verify", "--out", tmp_path).code == 0


def test_wrong_labels_do_no_harm(tmp_path: Path) -> None:
    """A large site with wrong labels moves far away from where the others go: it is quarantined, they are released."""
    ended = fedretrain("simulate", "--out", tmp_path, "--poison", "labels", *ROUNDS, "--json")
    result = ended.value
    refused = [(q["site"], q["code"]) for record in result["rounds"] for q in record["quarantined"]]
    assert refused == [("hospital-e", "norm")] * len(result["rounds"])
    assert (ended.code, result["outcome"]) == (0, "released")
    assert all(holdout["passed"] for holdout in result["gate"]["holdouts"])


def test_a_candidate_that_forgets_is_rejected(job: Path, tmp_path: Path) -> None:
    """A learning rate a thousand times higher loses what the model knew: exit code 3, the base stays in use."""
    shutil.copytree(job.parent, tmp_path / "job")
    eager = tmp_path / "job" / "job.toml"
    eager.write_text(job.read_text().replace("learning_rate = 0.0025", "learning_rate = 2.5"))
    ended = fedretrain("simulate", eager, "--out", tmp_path, "--rounds", "1", "--sites", "2", "--json")
    assert ended.code == 3, ended.err
    assert ended.value["outcome"] == "rejected"
    assert ended.value["release"] is None
    assert ended.value["gate"]["reasons"]
    listed = json.loads(fedretrain("server", "releases", "list", "--out", tmp_path, "--json").out)
    assert [release["run"].partition("-")[0] for release in listed["releases"]] == ["import"]


def test_flowers_own_runtime_gives_the_same_bits(demo: tuple[Path, Ended], job: Path, tmp_path: Path) -> None:
    """`--engine flower` runs the same job through `flwr run` and ends with the same weights."""
    ended = fedretrain("simulate", job, "--engine", "flower", "--out", tmp_path, "--json", *ROUNDS)
    assert ended.code == 0, ended.err
    assert weights(tmp_path, ended.value) == weights(demo[0], demo[1].value)
    assert ended.value["gate"] == demo[1].value["gate"]


@dataclass(frozen=True)
class RayNode:
    """A machine of a Ray cluster, as ``ray start --block`` makes it: its process and all below it."""

    process: subprocess.Popen[bytes]

    def has_actor(self) -> bool:
        """Whether an actor of Flower's runs there."""
        for pid in below(self.process.pid):
            with suppress(OSError):  # gone meanwhile
                if b"ClientAppActor" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return True
        return False


@pytest.fixture
def cluster() -> Iterator[tuple[str, list[RayNode]]]:
    """Two nodes of one core each on this machine: the head's address, and both."""
    ray = [sys.executable, "-P", "-m", "simulations.supervisor", str(Path(sysconfig.get_path("scripts")) / "ray")]
    options = ["--block", "--num-cpus=1", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    nodes: list[RayNode] = []
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, ExitStack() as ends, ExitStack() as inputs:
        address = f"127.0.0.1:{free_port()}"
        head = ["--head", f"--port={address.rpartition(':')[2]}", f"--temp-dir={folder}", "--include-dashboard=false"]
        for arguments in (head, [f"--address={address}"]):
            log = Path(folder) / f"node-{len(nodes)}.log"
            with log.open("wb") as file:
                process = subprocess.Popen(
                    [*ray, "start", *options, *arguments], stdin=subprocess.PIPE, stdout=file, stderr=file
                )
            ends.callback(process.wait, 30)
            assert process.stdin is not None
            inputs.callback(process.stdin.close)  # the end of a node; all of them are closed before one is waited for
            nodes.append(RayNode(process))
            end = time.monotonic() + LIMIT_S
            while "Ray runtime started" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.1)
        yield address, nodes


def test_a_ray_cluster_gives_the_same_bits(
    demo: tuple[Path, Ended],
    job: Path,
    cluster: tuple[str, list[RayNode]],
    start: Callable[..., Started],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With RAY_ADDRESS the sites train on both nodes of a cluster, to the same weights, and the cluster stays."""
    address, nodes = cluster
    monkeypatch.setenv("RAY_ADDRESS", address)
    run = start("simulate", job, "--engine", "flower", "--json", *ROUNDS)
    run.wait_for("round-started", 2)
    assert [node.has_actor() for node in nodes] == [True, True]
    out, err = run.process.communicate(timeout=LIMIT_S)
    assert run.process.returncode == 0, err
    assert weights(run.out, json.loads(out.splitlines()[-1])) == weights(demo[0], demo[1].value)
    assert [node.process.poll() for node in nodes] == [None, None]
