"""The ``fedretrain`` command: mounts the commands of the other folders, and answers every mistake the same way.

Invariants:

- Starting it, and ``--help``, import neither NumPy nor Flower nor TensorFlow: a command's module is imported when that
  command is called.
- An error is one line on standard error and an exit code, never a traceback: that of ``fedretrain.errors`` for our
  errors, 2 for wrong options, 130 after Ctrl-C, 1 for everything else, with the traceback in a file.
  ``--debug``, or FEDRETRAIN_DEBUG=1, shows tracebacks.

This is the one module of ``fedretrain`` that names packages to its right (as text, until they are needed).
"""

import contextlib
import io
import os
import signal
import sys
import tempfile
import traceback
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click
import typer
from typer.core import TyperGroup

from . import __version__
from .errors import ConfigurationError, FedretrainError

typer.core.HAS_RICH = False  # else it escapes brackets in help for rich, which none of our commands is shown by

DEBUG = "FEDRETRAIN_DEBUG"
INTERRUPTED = 128 + signal.SIGINT


@dataclass(frozen=True)
class Mount:
    """A command that is imported when it is called: ``app`` in ``module`` is a ``typer.Typer``."""

    module: str
    help: str


MOUNTS = {
    "simulate": Mount("simulations.cli", "Run a job, or the built-in demo, on this machine."),
    "partition": Mount("simulations.cli_partition", "Divide a file of examples among simulated sites."),
    "scenario": Mount("simulations.cli_scenario", "Write a drift that is built in, with example jobs."),
    "compare": Mount("simulations.cli_compare", "Compare ways to retrain on such a drift."),
    "compare-policies": Mount("simulations.cli_policies", "Compare who decides when to retrain."),
    "server": Mount("server.cli", "Operate the aggregation server."),
    "client": Mount("client.cli", "Take part as a site."),
}
GRAFTS = {
    "server": {
        "search": "simulations.cli_search:app",
        "watch": "simulations.cli_watch:watching",
        "approve": "simulations.cli_watch:approving",
    }
}
"""Commands, by module and name, that stand among another folder's, which does not know of them."""
EXTRAS = {"sklearn": "simulation", "ray": "simulation", "keras_tuner": "search", "matplotlib": "plot"}
"""Packages that only an extra installs, by the name they are imported under."""


EXIT_CODES = """\b
Exit codes:
  0    done; simulate: the candidate was released
  1    anything not named here
  2    the job, the data or an option is wrong
  3    simulate: the gate rejected the candidate
  4    too few sites, or rounds that could not be completed
  130  interrupted
"""


class LazyGroup(TyperGroup):
    """Knows names and one line of help of its commands; the commands themselves come with ``resolve_command``."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """Names, in the order a user needs them."""
        return list(MOUNTS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's
        """A stand-in with the name and the help."""
        mount = MOUNTS.get(cmd_name)
        return typer.core.TyperCommand(cmd_name, help=mount.help) if mount else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command itself; this imports its module."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in MOUNTS:
            command = typer.main.get_command(import_module(MOUNTS[name].module).app)
            command.name = name
            for other, place in GRAFTS.get(name, {}).items():
                if isinstance(command, click.Group):
                    module, _, attribute = place.partition(":")
                    command.add_command(typer.main.get_command(getattr(import_module(module), attribute)), other)
        return name, command, rest


app = typer.Typer(
    cls=LazyGroup,
    name="fedretrain",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog=EXIT_CODES,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedretrain {__version__}")
        raise typer.Exit


@app.callback()
def _fedretrain(
    debug: bool = typer.Option(False, "--debug", help=f"Show tracebacks; {DEBUG}=1 does the same."),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),  # noqa: ARG001  # answered by its callback
) -> None:
    """Retrain a Keras model on data that stay where they are; gate and sign what comes of it."""
    if debug:
        os.environ[DEBUG] = "1"


def main(args: list[str] | None = None) -> None:
    """Run the command line (default: this process's arguments) and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character shows "?"
    signal.signal(signal.SIGTERM, _terminated)  # as an exception, so that what has to be tidied up is
    sys.exit(run(args))


def run(args: list[str] | None = None) -> int:
    """The exit code; whatever is to be said about an error has been said."""
    try:
        result = typer.main.get_command(app)(args, prog_name="fedretrain", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        result = INTERRUPTED
    except BrokenPipeError:  # nobody reads any more, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except click.ClickException as error:
        return _wrong_usage(error)
    except Exception as error:
        if os.environ.get(DEBUG, "0") not in {"", "0"}:
            raise
        return _explain(error)
    if result == INTERRUPTED:
        _say("interrupted")
    return result if isinstance(result, int) else 0


def _terminated(number: int, _frame: Any) -> None:
    sys.exit(128 + number)


def _wrong_usage(error: click.ClickException) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    context = getattr(error, "ctx", None)
    hint = f" See `{context.command_path} --help`." if context else ""
    _say(f"error: {error.format_message()}{hint}")
    return error.exit_code


def _explain(error: Exception) -> int:
    """Say what happened; the exit code."""
    if isinstance(error, FedretrainError):
        _say(f"error: {error}")
        return error.exit_code
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package in EXTRAS:
        _say(f"error: the package {package} is not installed; install fedretrain[{EXTRAS[package]}]")
        return ConfigurationError.exit_code
    if isinstance(error, PermissionError) and error.filename is not None:
        _say(f"error: {os.fsdecode(error.filename)}: permission denied; run the command as the user whom it belongs to")
        return FedretrainError.exit_code
    what = " ".join(str(error).split()) or "no message"
    _say(f"error: unexpected {type(error).__name__}: {what}; {_keep_traceback(error)}")
    return FedretrainError.exit_code


def _keep_traceback(error: Exception) -> str:
    """Where the traceback lies, readable by this user alone."""
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="fedretrain-", suffix=".log", delete=False) as file:
            file.write(text)
    except OSError:
        return f"set {DEBUG}=1 to see the traceback"
    return f"the traceback lies in {file.name}"


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody may be listening
        print(line, file=sys.stderr, flush=True)  # noqa: T201  # this is the command line


if __name__ == "__main__":
    main()
