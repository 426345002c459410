"""``fedretrain server releases``: what an operator at night and an auditor read, and the exit codes."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedretrain import cli
from server.registry import Registry
from server.releases_text import gate_summary
from tests.drafts import draft, flip
from tests.signing import YEAR, open_registry

pytestmark = pytest.mark.usefixtures("unflushed")
GATE = {
    "passed": True,
    "holdouts": [{"name": "old", "difference": -0.002, "lower_bound": -0.0081}, {"name": "new", "difference": 0.11}],
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with run-1 and run-2, signed at the machine's time; not to be changed."""
    out = tmp_path_factory.mktemp("published")
    Registry.open(out).publish(draft("run-1", 1))
    Registry.open(out).publish(draft("run-2", 2, gate=GATE))
    return out


@pytest.fixture
def out(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "out"))


@pytest.fixture
def releases(out: Path) -> dict[str, str]:
    """Release ids by run."""
    return {row.run: row.id for row in Registry.open(out).releases()}


def ask(out: Path, *arguments: str, code: int = 0) -> str:
    """What a command that ends with ``code`` says: its output, then the line about a mistake."""
    said, mistakes = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(mistakes):
        ended = cli.run(["server", "releases", *arguments, "--out", str(out)])
    assert ended == code, said.getvalue() + mistakes.getvalue()
    return said.getvalue() + mistakes.getvalue()


def ask_json(out: Path, *arguments: str, code: int = 0) -> Any:
    lines = ask(out, *arguments, "--json", code=code).splitlines()
    return json.loads(next(line for line in reversed(lines) if not line.startswith("error: ")))


def test_list_shows_which_one_is_in_use(out: Path, releases: dict[str, str]) -> None:
    """One line per release: mark, id, date, run, parent, sites, verdict with the numbers."""
    header, first, second, *_ = ask(out, "list").splitlines()
    assert header.split() == ["release", "published", "run", "parent", "sites", "gate"]
    assert first.startswith(f"   {releases['run-1'][:16]}  20")
    assert second.startswith(f"*  {releases['run-2'][:16]}  20")
    assert second.endswith(f"run-2  {releases['run-1'][:16]}  2      passed: old -0.002 (bound -0.0081), new +0.11")


def test_list_as_json(out: Path, releases: dict[str, str]) -> None:
    """The same for programs, with whole ids, lineage and gate report."""
    value = ask_json(out, "list")
    assert value["incumbent"] == releases["run-2"]
    assert [(r["run"], r["incumbent"]) for r in value["releases"]] == [("run-1", False), ("run-2", True)]
    assert value["releases"][1]["gate"] == GATE


def test_show_tells_where_a_release_comes_from(out: Path, releases: dict[str, str]) -> None:
    """A beginning of the id is enough; lineage, gate, model, and every file with its hash are shown."""
    text = ask(out, "show", releases["run-2"][:8])
    for expected in (releases["run-2"], "in use            yes", "lineage.sites     a, b", releases["run-1"]):
        assert expected in text
    value = ask_json(out, "show", releases["run-1"])
    assert value["incumbent"] is False
    assert {f["name"] for f in value["files"]} >= {"weights.safetensors", "model.keras"}
    assert all(f["sha256"] in ask(out, "show", releases["run-1"]) for f in value["files"])


def test_show_of_a_damaged_release_shows_nothing_of_it(out: Path, releases: dict[str, str]) -> None:
    """What does not verify is not shown; the file is named and the exit code is 1."""
    flip(out / "registry" / "releases" / releases["run-1"] / "lineage.json", 20)
    text = ask(out, "show", releases["run-1"], code=1)
    assert text.startswith("error: ")
    assert "lineage.json: expected SHA-256" in text


def test_verify_says_ok_for_each_part(out: Path, releases: dict[str, str]) -> None:
    """Pointer, metadata, history and each release have their line; the last line says it all."""
    lines = ask(out, "verify").splitlines()
    assert [line.split()[:2] for line in lines[:5]] == [
        ["pointer", "ok"],
        ["metadata", "ok"],
        ["history", "ok"],
        ["release", "ok"],
        ["release", "ok"],
    ]
    assert f"{releases['run-2'][:16]} (in use)" in "\n".join(lines)
    assert lines[-1] == "ok: 2 releases, every file as it was signed."
    assert ask_json(out, "verify")["ok"] is True


def test_verify_fails_and_says_what_to_do(out: Path, releases: dict[str, str]) -> None:
    """A damaged incumbent: exit 1, the file, and the command that puts a whole release in use; which then works."""
    file = out / "registry" / "releases" / releases["run-2"] / "weights.safetensors"
    flip(file, -1)
    text = ask(out, "verify", code=1)
    assert f"release   FAILED  {releases['run-2'][:16]} (in use): {file}: " in text
    advice = f"releases rollback {releases['run-1'][:16]}"
    assert advice in text
    assert ask_json(out, "verify", code=1)["ok"] is False
    assert releases["run-1"] in ask(out, *advice.split()[1:])
    assert "The release in use is whole." in ask(out, "verify", code=1)
    assert "ok: 1 release," in ask(out, "verify", releases["run-1"][:8])


def test_verify_of_changed_metadata_shows_no_release(out: Path) -> None:
    """Where the metadata do not verify nothing else is claimed; where the good copies lie is said."""
    flip(out / "registry" / "metadata" / "timestamp.json", 300)
    text = ask(out, "verify", code=1)
    assert "timestamp.json: " in text
    assert "ok " not in text
    assert str(out / "keys" / "trust") in text
    assert ask_json(out, "verify", code=1)["releases"] == []


def test_the_copies_that_verify_points_to_mend_the_registry(out: Path) -> None:
    """Putting back what lies in keys/trust, as the message says, makes everything verify again."""
    for name, copy in (("timestamp.json", "timestamp.json"), ("2.snapshot.json", "snapshot.json")):
        (out / "registry" / "metadata" / name).unlink()
        shutil.copyfile(out / "keys" / "trust" / copy, out / "registry" / "metadata" / name)
    assert "ok: 2 releases" in ask(out, "verify")


def test_rollback_renew_and_rotate_keep_everything_verified(out: Path, releases: dict[str, str]) -> None:
    """Each says what is in use afterwards, and verify agrees."""
    assert ask_json(out, "rollback", releases["run-1"][:8])["incumbent"] == releases["run-1"]
    assert releases["run-1"] in ask(out, "renew")
    assert ask_json(out, "rotate")["root"] == 2
    assert "new keys in force: root version 3" in ask(out, "rotate", "--root")
    assert ask_json(out, "verify")["incumbent"] == releases["run-1"]
    history = [statement["action"] for statement in ask_json(out, "verify")["history"]]
    assert history == ["rotate", "rotate", "renew", "rollback", "publish", "publish"]


def test_an_expired_state_names_the_command_that_renews_it(tmp_path: Path) -> None:
    """The message of verify can be followed word for word."""
    long_ago = Registry.open(tmp_path)._now() - 2 * YEAR
    open_registry(tmp_path, long_ago).publish(draft())
    assert "'fedretrain server releases renew'" in ask(tmp_path, "verify", code=1)
    ask(tmp_path, "renew")
    ask(tmp_path, "verify")


@pytest.mark.parametrize("command", ["list", "verify", "renew", "rotate"])
def test_a_folder_without_releases_is_said(tmp_path: Path, command: str) -> None:
    """Another folder than a run's: one line that asks for --folder, exit 2, nothing made; in JSON as well."""
    assert "name the folder of the federation, or of the simulation, with --folder" in ask(tmp_path, command, code=2)
    assert "nothing was released here" in ask_json(tmp_path, command, code=2)["error"]
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_release_names_those_there_are(out: Path, releases: dict[str, str]) -> None:
    """A mistyped id is answered with the list of ids, exit 2."""
    for command in ("show", "rollback", "verify"):
        text = ask(out, command, "ffffffff", code=2)
        assert all(identity[:16] in text for identity in releases.values())


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        ({}, "not gated"),
        ({"odd": 1}, "no verdict"),
        ({"passed": False, "holdouts": [{"name": "old", "difference": None}]}, "NOT PASSED: old"),
        ({"passed": True, "holdouts": "odd"}, "passed"),
    ],
)
def test_a_gate_report_of_any_shape_has_a_summary(gate: dict[str, Any], says: str) -> None:
    """Reports of other versions never break the list."""
    assert gate_summary(gate) == says


def test_the_command_loads_no_heavy_library() -> None:
    """Building the command, as --help does, imports neither TensorFlow nor the signing libraries."""
    heavy = "{'tensorflow', 'keras', 'tuf', 'securesystemslib', 'cryptography', 'numpy'}"
    code = f"import sys, server.cli; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
