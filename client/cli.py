"""``fedretrain client``: what the operator of a site does by hand.

Invariants: importing this module loads neither NumPy, Flower nor TensorFlow; a mistake leaves as one of our errors,
which the command line (``fedretrain.cli``) says in one line and turns into an exit code; with ``--json`` the last line
on standard output is one JSON object, also after a mistake; no command asks anything.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedretrain.answers import Json, answers, say
from fedretrain.errors import ConfigurationError

if TYPE_CHECKING:
    from .home import Home

app = typer.Typer(
    name="client", help="Take part as a site.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)
release = typer.Typer(
    help="Releases: see them, and choose which one is in use.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(release, name="release")

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="The site's folder; default ~/.fedretrain, or what FEDRETRAIN_HOME names."),
]
ReleaseArgument = Annotated[str, typer.Argument(help="A release's id, or its first digits.")]


@app.command()
def request(
    name: Annotated[str, typer.Option("--name", help="What the site is called in the federation.")],
    home: HomeOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="The request file; default NAME.request here.")] = None,
    as_json: Json = False,
) -> None:
    """Make this site's keys, and a request to join that holds their public halves only."""
    with answers(as_json):
        from . import identity

        place = _home(home)
        made = identity.request(place, name)
        file = out or Path(f"{name}.request")
        made.write(file)
        lines = [
            f"{file}: send it to the server's operator; it holds no secret",
            f"fingerprint {made.fingerprint}: read it to them, so that both know it is yours",
            f"the private keys stay in {place.keys}",
            f"when their answer is here: fedretrain client join {name}.kit",
        ]
        say(as_json, lines, {"request": str(file), "name": name, "fingerprint": made.fingerprint})


@app.command()
def join(
    kit: Annotated[Path, typer.Argument(help="The kit the server's operator sent.")],
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Take in a kit: whom to believe, and where the server is."""
    with answers(as_json):
        from fedretrain.membership import Kit, read

        from . import identity

        place = _home(home)
        had_site = place.site.exists()
        had_secrets = read(kit, Kit).secrets is not None
        joined = identity.join(place, kit)
        lines = [f"joined {joined.federation} as {joined.site}; the server is at {joined.address}"]
        if had_secrets:
            lines.append(f"{kit} brought this site's private keys: delete it here, and wherever it passed through")
        verb = "it is as it was" if had_site else "say there where the data lie and what may be done with them"
        lines += [f"{place.site}: {verb}", "then look whether all is well: fedretrain client check"]
        say(as_json, lines, {"federation": joined.federation, "site": joined.site, "site_file": str(place.site)})


@app.command()
def check(
    home: HomeOption = None,
    step: Annotated[bool, typer.Option(help="Try a step of training, which takes up to a minute.")] = True,
    as_json: Json = False,
) -> None:
    """Look at everything a site needs; name the cause of what is wrong. Exit code 1 if anything is."""
    with answers(as_json):
        from . import doctor

        findings = []
        for finding in doctor.examine(_home(home), step=step):
            findings.append(finding)
            if not as_json:
                say(False, doctor.lines(finding), {})
        value = doctor.value(findings)
        say(as_json, ["", doctor.summary(findings)], value)
        if not value["ok"]:
            raise typer.Exit(1)


@app.command()
def up(
    home: HomeOption = None,
    systemd: Annotated[bool, typer.Option("--systemd", help="Print systemd units instead, hardened.")] = False,
) -> None:
    """Take part: run SuperNode, executor and trainer until Ctrl-C, and start again what ends."""
    place = _home(home)
    if systemd:
        from .sitefile import load_site
        from .systemd import text

        typer.echo(text(place, load_site(place.site)))
        return
    from .up import main

    raise typer.Exit(main(place))


@app.command()
def approve(
    job: Annotated[str | None, typer.Argument(help="The job's id; without it, all jobs are listed.")] = None,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Take a yes back.")] = False,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Say yes to a job that waits for a person, or list the jobs that do."""
    with answers(as_json):
        from . import approvals, site_text

        place = _home(home)
        place.load_kit()
        if job is None:
            found = approvals.listed(place)
            say(as_json, site_text.approval_lines(found), site_text.approvals_value(found))
            return
        one = (approvals.withdraw if withdraw else approvals.approve)(place, job)
        said = "taken back" if withdraw else "approved"
        say(as_json, [f"job {one.id} {said}; the site's record says so"], site_text.approval_value(one))


@app.command()
def log(
    home: HomeOption = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check that no line was changed or removed.")] = False,
    as_json: Json = False,
) -> None:
    """The site's own record: what was asked and by whom, what was sent, what was refused."""
    with answers(as_json):
        from . import record, site_text

        place = _home(home)
        coordinator = place.load_kit().coordinator
        if not verify:
            entries = list(record.read(place.record))
            say(as_json, site_text.log_lines(entries, place.record), {"entries": entries})
            return
        chain = record.verify(place.record, coordinator)
        say(as_json, site_text.chain_lines(chain), site_text.chain_value(chain))
        if chain.problems:
            raise typer.Exit(1)


@release.command("list")
def list_command(home: HomeOption = None, as_json: Json = False) -> None:
    """List the releases that are here, and say which one is in use."""
    with answers(as_json):
        from . import releases_text as text
        from .shelf import Shelf

        rows = text.rows(Shelf(_home(home, there=True)))
        say(as_json, text.list_lines(rows), text.list_value(rows))


@release.command()
def show(
    identity: Annotated[str | None, typer.Argument(help="A release's id; default: the one in use.")] = None,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Verify a release and show where it comes from, and what the gate said."""
    with answers(as_json):
        from . import releases
        from . import releases_text as text

        place = _home(home, there=True)
        found = releases.find(place, identity)
        say(as_json, text.show_lines(found), text.show_value(found))


@release.command()
def use(
    identity: Annotated[str, typer.Argument(help="A release's id, its first digits, or 'latest'.")],
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Put a release in use and stay with it; 'latest' follows the server again."""
    with answers(as_json):
        from . import releases

        found = releases.use(_home(home, there=True), identity)
        _chosen(as_json, found.id, found.lineage["run"], pinned=identity != releases.LATEST)


@release.command()
def back(home: HomeOption = None, as_json: Json = False) -> None:
    """Put the release in use again that was in use before, and stay with it."""
    with answers(as_json):
        from . import releases

        found = releases.back(_home(home, there=True))
        _chosen(as_json, found.id, found.lineage["run"], pinned=True)


@release.command()
def export(
    file: Annotated[Path, typer.Argument(help="Where to write it; ends in .keras.")],
    own: Annotated[bool, typer.Option("--own", help="With the layers, or the model, that this site keeps.")] = False,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Write the release in use as a .keras file, for code that reads such files."""
    with answers(as_json):
        from . import releases

        found = releases.export(_home(home, there=True), file, own=own)
        say(as_json, [f"{file}: release {found.id}"], {"release": found.id, "file": str(file)})


@release.command()
def remove(identity: ReleaseArgument, home: HomeOption = None, as_json: Json = False) -> None:
    """Delete a release that is not in use, to free its space."""
    with answers(as_json):
        from . import releases

        gone = releases.remove(_home(home, there=True), identity)
        say(as_json, [f"deleted: {gone}"], {"deleted": gone})


def _chosen(as_json: bool, identity: str, run: str, *, pinned: bool) -> None:
    how = (
        "the site stays with it until 'fedretrain client release use latest'"
        if pinned
        else "later ones follow by themselves"
    )
    say(as_json, [f"in use: {identity} (run {run}); {how}"], {"used": identity, "run": run, "pinned": pinned})


def _home(folder: Path | None, *, there: bool = False) -> "Home":
    """The site's folder; with ``there`` one that exists, where its absence would look like an empty one."""
    from .home import Home

    home = Home.at(folder)
    if there and not home.root.is_dir():
        raise ConfigurationError(
            f"{home.root}: no such folder; name the site's with --home ('fedretrain client request' makes one)"
        )
    return home
