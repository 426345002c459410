"""``fedretrain server``: what the operator of the aggregation server does by hand.

Invariants: importing this module loads neither TensorFlow nor the signing libraries; a mistake leaves as one of our
errors, which the command line (``fedretrain.cli``) says in one line and turns into an exit code; with ``--json`` the
last line on standard output is one JSON object, also after a mistake.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedretrain.errors import FedretrainError

if TYPE_CHECKING:
    from .registry import Registry

app = typer.Typer(name="server", help="Operate the aggregation server.", no_args_is_help=True, rich_markup_mode=None)
releases = typer.Typer(help="Releases: see, verify and go back.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(releases, name="releases")

Out = Annotated[Path, typer.Option("--out", help="Folder of the runs, with 'registry' and 'keys' in it.")]
Json = Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")]
ReleaseArgument = Annotated[str, typer.Argument(help="A release's id, or its first digits.")]
DEFAULT_OUT = Path("retrained")


@releases.command("list")
def list_command(out: Out = DEFAULT_OUT, as_json: Json = False) -> None:
    """List the releases, oldest first, and say which one is in use."""
    with _answers(as_json):
        from . import releases_text as text

        rows = _open(out).releases()
        _print(as_json, text.list_lines(rows), text.list_value(rows))


@releases.command()
def show(release: ReleaseArgument, out: Out = DEFAULT_OUT, as_json: Json = False) -> None:
    """Verify one release and show where it comes from, what the gate said, and its files."""
    with _answers(as_json):
        from . import releases_text as text

        registry = _open(out)
        found, state = registry.load(release)
        _print(as_json, text.show_lines(found, state), text.show_value(found, state))


@releases.command()
def verify(
    release: Annotated[str | None, typer.Argument(help="Only this release.")] = None,
    out: Out = DEFAULT_OUT,
    as_json: Json = False,
) -> None:
    """Check every signature, version and byte; name what fails. Exit code 1 if anything does."""
    with _answers(as_json):
        from . import releases_text as text

        registry = _open(out)
        found = registry.verify(release)
        _print(as_json, text.verify_lines(found, registry.keys.memory), text.verify_value(found))
        if not found.ok:
            raise typer.Exit(1)


@releases.command()
def rollback(release: ReleaseArgument, out: Out = DEFAULT_OUT, as_json: Json = False) -> None:
    """Put an older release in use again, by a signed statement. Nothing is deleted."""
    with _answers(as_json):
        registry = _open(out)
        found = registry.rollback(release)
        value = {"incumbent": found.id, "run": found.lineage["run"]}
        _print(as_json, [f"in use again: {found.id} (run {found.lineage['run']})"], value)


@releases.command()
def renew(out: Out = DEFAULT_OUT, as_json: Json = False) -> None:
    """Sign the present state anew, so that it is valid for another year. The release in use stays."""
    with _answers(as_json):
        from .metadata import utc

        state = _open(out).renew()
        value = {"incumbent": state.ledger.incumbent, "expires": utc(state.expires)}
        _print(as_json, [f"signed anew, valid until {value['expires']}; in use: {value['incumbent']}"], value)


@releases.command()
def rotate(
    root: Annotated[bool, typer.Option("--root", help="Replace the root key too.")] = False,
    accept_older: Annotated[
        bool,
        typer.Option(
            "--accept-older",
            help="Sign the state that lies here although a newer one was verified before: after a stolen key.",
        ),
    ] = False,
    out: Out = DEFAULT_OUT,
    as_json: Json = False,
) -> None:
    """Replace the signing keys through a new root version. The release in use stays."""
    with _answers(as_json):
        from .metadata import utc

        state = _open(out).rotate(with_root=root, accept_older=accept_older)
        value = {
            "root": state.root.version,
            "incumbent": state.ledger.incumbent,
            "expires": utc(state.expires),
        }
        lines = [
            f"new keys in force: root version {state.root.version}; in use: {state.ledger.incumbent}",
            f"sites follow by themselves; give new sites {out / 'keys' / 'root.json'}",
        ]
        _print(as_json, lines, value)


def _open(out: Path) -> "Registry":
    from .registry import Registry

    return Registry.open(out)


def _print(as_json: bool, lines: Iterable[str], value: dict[str, Any]) -> None:
    if as_json:
        typer.echo(json.dumps(value))
    else:
        for line in lines:
            typer.echo(line)


@contextmanager
def _answers(as_json: bool) -> Iterator[None]:
    """With ``--json``, say one of our errors in JSON too before it leaves."""
    try:
        yield
    except FedretrainError as error:
        if as_json:
            typer.echo(json.dumps({"error": str(error)}))
        raise
