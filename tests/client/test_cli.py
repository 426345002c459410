"""``fedretrain client``: what a site's operator types, reads, and the exit codes."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from client import approvals, record
from client.home import Home
from client.installer import Installer
from client.shelf import Shelf
from fedretrain import cli
from fedretrain.membership import JoinRequest, read
from server import provision
from server.federation import Federation, Settings
from server.registry import Registry
from tests.drafts import draft, flip

from .deliveries import files_of, request_for
from .doctor.jobs import job

pytestmark = pytest.mark.usefixtures("unflushed")


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    settings = Settings(name="north", address="fedserver.example:8443", listen="127.0.0.1:8443")
    return provision.init(tmp_path_factory.mktemp("server") / "federation", settings)


@pytest.fixture(scope="module")
def made(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a site that joined and has run-1 and run-2, which it serves; not to be changed."""
    folder = tmp_path_factory.mktemp("site")
    (kit,) = provision.make_kits(federation, ["hospital-a"], folder)
    assert ask(folder / "home", "join", str(kit))
    home = Home(folder / "home")
    installer = Installer(home, home.load_kit(), check=lambda _: None)
    for seed in (1, 2):
        Registry.open(federation.folder).publish(draft(f"run-{seed}", seed))
        files = files_of(federation.folder)
        installer.receive(request_for(files), files)
    return home.root


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Home:
    return Home(Path(shutil.copytree(made, tmp_path / "home")))


def ask(home: Path, *arguments: str, code: int = 0) -> str:
    """What a command that ends with ``code`` says: its output, then the line about a mistake."""
    said, mistakes = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(mistakes):
        ended = cli.run(["client", *arguments, "--home", str(home)])
    assert ended == code, said.getvalue() + mistakes.getvalue()
    return said.getvalue() + mistakes.getvalue()


def ask_json(home: Home, *arguments: str, code: int = 0) -> Any:
    lines = ask(home.root, *arguments, "--json", code=code).splitlines()
    return json.loads(next(line for line in reversed(lines) if not line.startswith("error: ")))


def ids(home: Home) -> dict[str, str]:
    """Release ids by run."""
    return {str(Shelf(home).open(i).lineage["run"]): i for i in Shelf(home).ids()}


def test_request_then_join(federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is here, its fingerprint and what comes next are said; the kit's answer says where to go on."""
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    text = ask(home, "request", "--name", "hospital-z")
    request = read(Path("hospital-z.request"), JoinRequest)
    assert f"fingerprint {request.fingerprint}" in text
    assert "fedretrain client join hospital-z.kit" in text
    provision.admit(federation, Path("hospital-z.request"), Path("hospital-z.kit"))
    text = ask(home, "join", "hospital-z.kit")
    assert "joined north as hospital-z; the server is at fedserver.example:8443" in text
    assert f"{home / 'site.toml'}: say there" in text
    assert "private keys: delete it" not in text


def test_a_complete_kit_is_to_be_deleted(federation: Federation, tmp_path: Path) -> None:
    """It holds private keys, and that is said."""
    (kit,) = provision.make_kits(federation, ["hospital-y"], tmp_path)
    assert f"{kit} brought this site's private keys: delete it" in ask(tmp_path / "home", "join", str(kit))


@pytest.mark.parametrize(
    "arguments",
    [
        ["join", "nowhere.kit"],
        ["approve"],
        ["log"],
        ["up"],
        ["release", "show"],
        ["release", "back"],
        ["release", "list"],
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(tmp_path: Path, arguments: list[str]) -> None:
    """Before the site has joined, or with a file that is not there: what is missing, no traceback."""
    lines = ask(tmp_path / "home", *arguments, code=2).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")


def test_releases_are_listed(home: Home) -> None:
    """In the order they were published, the one in use marked, the server's named."""
    header, first, second, *_, last = ask(home.root, "release", "list").splitlines()
    assert header.split() == ["release", "published", "run"]
    assert first.split()[0] == ids(home)["run-1"][:16]
    assert second.split()[:2] == ["*", ids(home)["run-2"][:16]]
    assert "in use at the server" in second
    assert last == "* in use here"
    value = ask_json(home, "release", "list")
    assert value["used"] == ids(home)["run-2"]
    assert [row["run"] for row in value["releases"]] == ["run-1", "run-2"]


def test_use_back_and_latest(home: Home) -> None:
    """Each says what is in use and whether the site stays with it; the site's record has it too."""
    first, second = ids(home)["run-1"], ids(home)["run-2"]
    assert f"in use: {first} (run run-1); the site stays" in ask(home.root, "release", "use", first[:8])
    assert "chosen here" in ask(home.root, "release", "list")
    assert ask_json(home, "release", "back") == {"used": second, "run": "run-2", "pinned": True}
    assert ask_json(home, "release", "use", "latest") == {"used": second, "run": "run-2", "pinned": False}
    assert [entry["release"] for entry in record.read(home.record)] == [first, second, second]


def test_show_and_remove(home: Home) -> None:
    """Lineage and model of a release, by default the one in use; one that is not needed can be deleted."""
    text = ask(home.root, "release", "show")
    assert ids(home)["run-2"] in text
    assert "lineage.sites     a, b" in text
    first = ids(home)["run-1"]
    assert ask_json(home, "release", "show", first[:8])["lineage"]["run"] == "run-1"
    assert first in ask(home.root, "release", "remove", first)
    assert list(ids(home)) == ["run-2"]


def test_a_damaged_release_is_shown_as_such(home: Home) -> None:
    """The list says so and exit code 1 is that of showing it; the other one can be used."""
    flip(Shelf(home).folder / ids(home)["run-2"] / "gate.json", 3)
    assert "DAMAGED" in ask(home.root, "release", "list")
    assert "'fedretrain client release back'" in ask(home.root, "release", "show", code=1)
    assert "run-1" in ask(home.root, "release", "back")


def test_jobs_that_wait_are_listed_and_approved(home: Home) -> None:
    """What the job would do, and what to type; afterwards by whom it was approved."""
    assert "no job has asked yet" in ask(home.root, "approve")
    assert not approvals.is_approved(home, job())
    identity = approvals.job_digest(job())[:12]
    text = ask(home.root, "approve")
    assert f"{identity}  waits since" in text
    assert "inputs: x (age, pulse, weight)" in text
    assert f"to say yes: fedretrain client approve {identity}" in text
    assert "approved" in ask(home.root, "approve", identity)
    assert approvals.is_approved(home, job())
    assert ask_json(home, "approve")["jobs"][0]["approved"]
    ask(home.root, "approve", identity, "--withdraw")
    assert not approvals.is_approved(home, job())
    assert "no job has this id" in ask(home.root, "approve", "zzz", code=2)


def test_the_record_is_read_and_verified(home: Home) -> None:
    """In words, as JSON, and whether a line was changed; exit code 1 if so."""
    assert "nothing was asked of this site yet" in ask(home.root, "log")
    ask(home.root, "release", "use", "latest")
    ask(home.root, "release", "use", "latest")
    assert "chose release" in ask(home.root, "log")
    assert len(ask_json(home, "log")["entries"]) == 2
    assert "ok: 2 lines" in ask(home.root, "log", "--verify")
    data = home.record.read_bytes()
    home.record.write_bytes(data.replace(b"run-2", b"run-3", 1))
    assert "line 2: does not follow" in ask(home.root, "log", "--verify", code=1)
    assert ask_json(home, "log", "--verify", code=1)["ok"] is False


def test_units_for_systemd(home: Home) -> None:
    """They name this home, and the trainer has no network."""
    home.site.write_text('[data]\nformat = "npz"\npath = "data.npz"\n')
    text = ask(home.root, "up", "--systemd")
    assert f"--home {home.root}" in text
    assert "PrivateNetwork=yes" in text
