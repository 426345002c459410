"""The command line: what it loads, and how it answers mistakes."""

import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import click
import pytest
import typer

from fedretrain import __version__, cli
from fedretrain.errors import ConfigurationError, RunFailed

COMMAND = [sys.executable, "-m", "fedretrain.cli"]


def call(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *args], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def mount(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Mounts a command `fail` that raises ``error``."""
    app = typer.Typer()

    @app.command()
    def fail() -> NoReturn:
        raise error

    module = ModuleType("failing")
    module.app = app  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "failing", module)
    monkeypatch.setitem(cli.MOUNTS, "fail", cli.Mount("failing", "Fails."))
    monkeypatch.delenv(cli.DEBUG, raising=False)


def test_help_answers_within_half_a_second() -> None:
    """`--help` takes under 0.5 s of processor time, which is the wall time of a machine with nothing else to do."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert call("--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize("args", [["--help"], ["--version"], *([command, "--help"] for command in cli.MOUNTS)])
def test_help_and_version_load_nothing_heavy(args: list[str]) -> None:
    """Neither NumPy nor Flower, Keras or TensorFlow is imported to say what a command does."""
    code = (
        "import sys; from fedretrain import cli; code = cli.run(sys.argv[1:]);"
        "sys.stderr.write(' '.join({'numpy', 'flwr', 'keras', 'tensorflow', 'sklearn'} & set(sys.modules)));"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_documents_commands_and_exit_codes() -> None:
    """`--help` names both commands and every exit code."""
    text = call("--help").stdout
    assert all(word in text for word in ("simulate", "server", "rejected", "too few sites", "130"))


def test_version_is_the_packages() -> None:
    """`--version` says the version of the package."""
    assert call("--version").stdout == f"fedretrain {__version__}\n"


def test_our_error_is_one_line_with_its_exit_code() -> None:
    """A mistake in the job ends with exit code 2 and one line on standard error."""
    done = call("simulate", "nowhere.toml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: nowhere.toml: no such job file\n"


@pytest.mark.parametrize(("args", "environment"), [(["--debug"], {}), ([], {cli.DEBUG: "1"})])
def test_debug_shows_the_traceback(args: list[str], environment: dict[str, str]) -> None:
    """--debug and the environment variable both let the traceback through."""
    done = call(*args, "simulate", "nowhere.toml", **environment)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["simulate", "--round", "3"], "'--rounds'"),
        (["simulte"], "No such command 'simulte'"),
        (["simulate", "--engine", "ray"], "'local'"),
        (["simulate", "--rounds", "0"], "0"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_two(args: list[str], said: str) -> None:
    """A wrong option or command is answered in one line that names what was probably meant, or what is possible."""
    done = call(*args)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_exit_code_comes_from_the_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """RunFailed ends with 4."""
    mount(monkeypatch, RunFailed("too few sites"))
    assert cli.run(["fail"]) == 4
    assert capsys.readouterr().err == "error: too few sites\n"


def test_an_unexpected_error_leaves_its_traceback_in_a_private_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Anything else is exit code 1, one line, and a file that only this user can read."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mount(monkeypatch, ZeroDivisionError("two\nlines"))
    assert cli.run(["fail"]) == 1
    [file] = tmp_path.iterdir()
    assert capsys.readouterr().err == f"error: unexpected ZeroDivisionError: two lines; the traceback lies in {file}\n"
    assert "Traceback" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_ctrl_c_is_exit_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """KeyboardInterrupt is said in one word."""
    mount(monkeypatch, KeyboardInterrupt())
    assert cli.run(["fail"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(("package", "extra"), cli.EXTRAS.items())
def test_a_missing_package_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str, extra: str
) -> None:
    """A package that only an extra installs is answered with what to install."""
    mount(monkeypatch, ModuleNotFoundError(f"No module named '{package}'", name=f"{package}.part"))
    assert cli.run(["fail"]) == ConfigurationError.exit_code
    assert f"fedretrain[{extra}]" in capsys.readouterr().err


def test_a_file_of_another_user_is_no_surprise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it is met: the file and what to do, without a traceback."""
    mount(monkeypatch, PermissionError(13, "Permission denied", "/srv/fed/state/log"))
    assert cli.run(["fail"]) == 1
    expected = "error: /srv/fed/state/log: permission denied; run the command as the user whom it belongs to\n"
    assert capsys.readouterr().err == expected


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    """Output into a closed pipe ends quietly."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*COMMAND, "--help"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr == ""


def test_a_terminal_without_a_character_is_no_reason_to_fail() -> None:
    """What an ASCII terminal cannot show becomes a question mark."""
    done = call("simulate", "nowhereé.toml", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (2, "error: nowhere?.toml: no such job file\n")


@pytest.mark.parametrize("name", [*cli.MOUNTS, "server releases", "client release"])
def test_every_mounted_command_exists(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What the group promises can be imported and has a help text, of our own options alone."""
    assert cli.run([*name.split(), "--help"]) == 0
    said = capsys.readouterr().out
    assert f"Usage: fedretrain {name}" in said
    assert "completion" not in said


def commands(command: click.Command, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """A command and all below it, with what is typed for each."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            _, below, _ = command.resolve_command(context, [name])
            assert below is not None
            yield from commands(below, *path, name)


def test_no_help_has_backslashes(capsys: pytest.CaptureFixture[str]) -> None:
    """Of every command, however deep: defaults and the like stand in plain brackets."""
    paths = [path for path, _ in commands(typer.main.get_command(cli.app))]
    assert len(paths) > 30
    for path in paths:
        assert cli.run([*path, "--help"]) == 0
        said = capsys.readouterr().out
        assert f"Usage: {' '.join(['fedretrain', *path])}" in said
        assert "\\" not in said, path
