"""``fedretrain server``: what the operator of the aggregation server does by hand.

Invariants: importing this module loads neither TensorFlow nor the signing libraries; a mistake leaves as one of our
errors, which the command line (``fedretrain.cli``) says in one line and turns into an exit code.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedretrain.answers import Json, answers, say

from . import cli_operations, cli_provision, cli_watch
from .options import DEFAULT_FOLDER

if TYPE_CHECKING:
    from .registry import Registry

app = typer.Typer(
    name="server",
    help="Operate the aggregation server.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
releases = typer.Typer(help="Releases: see, verify and go back.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(releases, name="releases")

cli_provision.register(app)
cli_operations.register(app)
cli_watch.register(app)

Folder = Annotated[
    Path,
    typer.Option("--folder", "--out", help="The federation's folder, or a simulation's output: 'registry' is in it."),
]
Anchor = Annotated[
    Path | None,
    typer.Option(help="Root metadata to verify from, such as FOLDER/public/root.json, where 'keys' is not yours."),
]
ReleaseArgument = Annotated[str, typer.Argument(help="A release's id, or its first digits.")]


@releases.command("list")
def list_command(folder: Folder = DEFAULT_FOLDER, anchor: Anchor = None, as_json: Json = False) -> None:
    """List the releases, oldest first, and say which one is in use."""
    with answers(as_json):
        from . import releases_text as text

        rows = _open(folder, anchor).releases()
        say(as_json, text.list_lines(rows), text.list_value(rows))


@releases.command()
def show(
    release: ReleaseArgument, folder: Folder = DEFAULT_FOLDER, anchor: Anchor = None, as_json: Json = False
) -> None:
    """Verify one release and show where it comes from, what the gate said, and its files."""
    with answers(as_json):
        from . import releases_text as text

        registry = _open(folder, anchor)
        found, state = registry.load(release)
        say(as_json, text.show_lines(found, state), text.show_value(found, state))


@releases.command()
def verify(
    release: Annotated[str | None, typer.Argument(help="Only this release.")] = None,
    folder: Folder = DEFAULT_FOLDER,
    anchor: Anchor = None,
    as_json: Json = False,
) -> None:
    """Check every signature, version and byte; name what fails. Exit code 1 if anything does."""
    with answers(as_json):
        from . import releases_text as text

        registry = _open(folder, anchor)
        found = registry.verify(release)
        say(as_json, text.verify_lines(found, registry.keys.memory), text.verify_value(found))
        if not found.ok:
            raise typer.Exit(1)


@releases.command()
def rollback(release: ReleaseArgument, folder: Folder = DEFAULT_FOLDER, as_json: Json = False) -> None:
    """Put an older release in use again, by a signed statement. Nothing is deleted."""
    with answers(as_json):
        registry = _open(folder)
        found = registry.rollback(release)
        value = {"incumbent": found.id, "run": found.lineage["run"]}
        say(as_json, [f"in use again: {found.id} (run {found.lineage['run']})"], value)


@releases.command()
def renew(folder: Folder = DEFAULT_FOLDER, as_json: Json = False) -> None:
    """Sign the present state anew, so that it is valid for another year. The release in use stays."""
    with answers(as_json):
        from .metadata import utc

        state = _open(folder).renew()
        value = {"incumbent": state.ledger.incumbent, "expires": utc(state.expires)}
        say(as_json, [f"signed anew, valid until {value['expires']}; in use: {value['incumbent']}"], value)


@releases.command("rotate")
def rotate_command(
    root: Annotated[bool, typer.Option("--root", help="Replace the root key too.")] = False,
    accept_older: Annotated[
        bool,
        typer.Option(
            "--accept-older",
            help="Sign the state that lies here although a newer one was verified before: after a stolen key.",
        ),
    ] = False,
    folder: Folder = DEFAULT_FOLDER,
    as_json: Json = False,
) -> None:
    """Replace the signing keys through a new root version. The release in use stays."""
    with answers(as_json):
        from .metadata import utc
        from .renewal import rotate

        state, anchor = rotate(folder, with_root=root, accept_older=accept_older)
        value = {
            "root": state.root.version,
            "incumbent": state.ledger.incumbent,
            "expires": utc(state.expires),
        }
        lines = [
            f"new keys in force: root version {state.root.version}; in use: {state.ledger.incumbent}",
            f"sites follow by themselves; auditors, and sites without a kit, get {anchor}",
        ]
        say(as_json, lines, value)


def _open(folder: Path, anchor: Path | None = None) -> "Registry":
    from .registry import Registry

    return Registry.open(folder, anchor=anchor)
