"""The operator's commands: what they write down, what they tell, and the exit codes."""

import _thread
import json
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fedretrain import cli
from fedretrain.runfolder import RunFolder
from server import desired, operations, provision, uplock
from server.events import EventLog
from server.federation import Federation, Settings
from tests.fedretrain.test_report import RESULT, record
from tests.server.upkit import make_job

pytestmark = pytest.mark.usefixtures("unflushed")


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    settings = Settings(name="clinics", address="127.0.0.1:1", listen="127.0.0.1:1")
    made = provision.init(tmp_path / "fed", settings)
    provision.make_kits(made, ["hospital-a", "hospital-b"], tmp_path / "kits")
    return made


@pytest.fixture
def run(federation: Federation, tmp_path: Path) -> RunFolder:
    """A run in its second round: one site has answered, one is awaited, one quarantined."""
    folder = operations.retrain(federation, make_job(tmp_path), "r1")
    desired.write_starts(folder, (desired.Start(flower_run=1, at=desired.utc(), progress=0),))
    emit = EventLog(folder)
    emit("run-started", rounds=4, completed=0, sites=[])
    emit("round-started", round=1, sites=["a", "b"])
    finished = {**record(1), "bytes_base": 100, "bytes_down": 2_000_000, "bytes_up": 1_000_000, "seconds": 60.0}
    emit("round-finished", **finished)
    emit("round-started", round=2, sites=["hospital-a", "hospital-b", "hospital-c"])
    emit("reply", round=2, site="hospital-a", examples=9, norm=1.0, bytes=500_000, seconds=1.0, metrics={}, flags=[])
    emit("quarantined", round=2, site="hospital-b", code="norm", detail="too large")
    return folder


def ask(capsys: pytest.CaptureFixture[str], federation: Federation, *arguments: str, code: int = 0) -> str:
    """What a command prints on standard output; it ends with ``code``."""
    ended = cli.run(["server", *arguments, "--folder", str(federation.folder)])
    said = capsys.readouterr()
    assert ended == code, said.out + said.err
    return said.out if code in {0, 130} else said.out + said.err


def test_a_job_is_taken_as_it_is_wanted_without_its_simulation(
    federation: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's folder holds the job and the wish; without `up` that is said."""
    job = make_job(tmp_path)
    job.write_text(job.read_text() + '\nsimulation = { sites = "nowhere/*.npz" }\n')
    said = ask(capsys, federation, "retrain", str(job), "--run-id", "r7")
    assert "fedretrain server up" in said
    folder = federation.runfolder("r7")
    assert folder.load_job().simulation is None
    wish = desired.desired(folder)
    assert wish is not None
    assert wish.state == "run"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('model = { path = "gone.keras" }', "model.path: expected an existing file"),
        ("participation = { min_sites = 3 }", "expected at most 2, the number of admitted sites, got 3"),
        ('strategy = { name = "fedprox", objectives = [{ name = "proximal", mu = 1.0 }] }', "cannot stand together"),
        ("[train]\nrouns = 3", "did you mean 'rounds'"),
    ],
)
def test_a_wrong_job_is_refused_at_once(
    federation: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, expected: str
) -> None:
    """A missing model, too few members and a misspelt key are found before anything is written."""
    job = make_job(tmp_path)
    kept = [kept for kept in job.read_text().splitlines() if kept.partition(" ")[0] != line.partition(" ")[0]]
    job.write_text("\n".join([*kept, line, ""]))
    assert expected in ask(capsys, federation, "retrain", str(job), code=2)
    assert not list(federation.runs.glob("*"))


def test_status_tells_round_sites_bytes_and_time(
    federation: Federation, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three rounds of a minute are left; two of three sites have answered, one of them in vain."""
    with uplock.hold(federation.up_lock) as held:
        held.tell(since=desired.utc(), problems=[], processes={})
        value = json.loads(ask(capsys, federation, "status", "r1", "--json"))
        said = ask(capsys, federation, "status", "r")
    assert (value["state"], value["stage"], value["round"], value["rounds"]) == ("running", "training", 2, 4)
    assert value["sites"]["answered"] == ["hospital-a", "hospital-b"]
    assert value["sites"]["awaited"] == ["hospital-c"]
    assert value["sites"]["quarantined"] == {"hospital-b": "norm"}
    assert value["bytes"] == 3_500_100
    assert 170 < value["seconds_left"] <= 180
    assert "hospital-b is quarantined: update far too large" in said
    assert "fedretrain server stop r1" in said


def test_a_run_of_a_server_that_is_down_waits(
    federation: Federation, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing claims that it is running; stop and resume are understood all the same."""
    assert json.loads(ask(capsys, federation, "runs", "--json"))["runs"][0]["state"] == "waiting"
    ask(capsys, federation, "stop", "r1")
    assert json.loads(ask(capsys, federation, "status", "r1", "--json"))["state"] == "stopped"
    ask(capsys, federation, "resume", "r1")
    assert json.loads(ask(capsys, federation, "status", "r1", "--json"))["state"] == "waiting"


def test_logs_are_the_events_with_their_times(
    federation: Federation, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line each, in words; with --json the events themselves."""
    lines = ask(capsys, federation, "logs", "r1").splitlines()
    assert len(lines) == 6
    assert lines[-1].endswith("Z  quarantined       round 2: hospital-b: update far too large (too large)")
    events = [json.loads(line) for line in ask(capsys, federation, "logs", "r1", "--json").splitlines()]
    assert [event["event"] for event in events[:2]] == ["run-started", "round-started"]


def test_an_unknown_run_names_those_there_are(
    federation: Federation, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json the mistake is an object too."""
    said = ask(capsys, federation, "status", "r2", "--json", code=2)
    assert "there are: r1" in json.loads(said.splitlines()[0])["error"]


def test_sites_tell_who_is_there_and_what_was_wrong_last(
    federation: Federation, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen by the gateway, revoked, quarantined in a run, refused by the gateway: each of its own source.

    Nobody is there where the server is not up, and what was the server's own fault is no site's problem.
    """
    seen = {"last_seen": time.time(), "address": "10.0.0.3", "requests": 1}
    refusal = {"at": time.time() + 60, "code": "clock", "text": "6 s ahead", "address": "10.0.0.3"}
    ours = {**refusal, "at": time.time() + 90, "code": "superlink-down"}
    report = {"sites": {"hospital-a": {**seen, "refusals": [refusal, ours]}, "hospital-b": {}}}
    federation.sites.write_text(json.dumps(report))
    provision.revoke(federation, "hospital-b")
    assert not json.loads(ask(capsys, federation, "sites", "--json"))["sites"][0]["online"]
    with uplock.hold(federation.up_lock):
        a, b = json.loads(ask(capsys, federation, "sites", "--json"))["sites"]
    assert (a["site"], a["online"], a["problem"]["code"], a["problem"]["run"]) == ("hospital-a", True, "clock", None)
    assert (b["online"], b["problem"]["code"], b["problem"]["run"]) == (False, "norm", "r1")
    assert b["revoked"]
    said = ask(capsys, federation, "sites")
    assert "revoked" in said
    assert "update far too large" in said


def follow(federation: Federation, run: RunFolder, ending: Any, *arguments: str) -> int:
    """`retrain --follow` of a run for which ``ending`` is called after half a second; the exit code."""
    threading.Timer(0.5, ending).start()
    command = ["server", "resume", run.run_id, "--follow", "--folder", str(federation.folder), *arguments]
    with uplock.hold(federation.up_lock) as held:
        held.tell(since=desired.utc())
        return cli.run(command)


def test_following_ends_with_the_run(
    federation: Federation, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rounds are told on standard error, the verdict on standard output; rejected is exit code 3."""
    emit = EventLog(run)

    def ending() -> None:
        emit("round-finished", **{**record(2), "metrics": {}})
        result = {**RESULT, "run_id": "r1", "outcome": "rejected", "release": None}
        run.result.write_text(json.dumps(result))

    assert follow(federation, run, ending) == 3
    said = capsys.readouterr()
    assert "round 2 of 4: 2 of 2 sites" in said.err
    assert "rejected: the model in use stays" in said.out
    assert f"releases list --folder {federation.folder}" in said.out


def test_following_a_failure_ends_with_its_reason_and_code(
    federation: Federation, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too few sites: exit code 4 and what to do."""

    def ending() -> None:
        run.failure.write_text(json.dumps({"error": "RunFailed", "exit_code": 4, "message": "too few sites"}))
        start = desired.read_starts(run)[0].model_copy(update={"ended": desired.utc()})
        desired.write_starts(run, (start,))

    assert follow(federation, run, ending) == 4
    said = capsys.readouterr().err
    assert "too few sites" in said
    assert "fedretrain server resume r1" in said


def test_ctrl_c_ends_the_following_and_not_the_run(
    federation: Federation, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is wanted stays wanted, which is said; with --json the last line is where the run stands."""
    assert follow(federation, run, _thread.interrupt_main, "--json") == 130
    said = capsys.readouterr()
    assert "run r1 goes on" in said.err
    assert json.loads(said.out.splitlines()[-1])["state"] == "running"
    wish = desired.desired(run)
    assert wish is not None
    assert wish.state == "run"


def test_only_one_up_holds_the_lock(federation: Federation, tmp_path: Path) -> None:
    """The second names the first; when it is gone its words count no more."""
    with uplock.hold(federation.up_lock) as held:
        held.tell(since="x")
        told = uplock.running(federation.up_lock)
        assert told is not None
        assert told["since"] == "x"
    assert uplock.running(federation.up_lock) is None


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(federation: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The unit that --systemd prints is taken without a word, and its exposure is rated low."""
    unit = tmp_path / "fedretrain-server.service"
    unit.write_text(ask(capsys, federation, "up", "--systemd", "--passphrase-file", str(tmp_path / "secret")))
    for check in (["verify", str(unit)], ["security", "--offline=true", "--threshold=20", str(unit)]):
        done = subprocess.run(["systemd-analyze", *check], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "secret" not in unit.read_text().replace(f"passphrase:{tmp_path / 'secret'}", "")
