"""The commands that make a federation and say who belongs to it: `init`, `admit`, `revoke`, `kits`, `renew`.

Invariants: importing this module loads neither Flower nor the signing libraries; a passphrase is read from a file or
from the terminal and stands on no command line.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedretrain.answers import Json, answers, say
from fedretrain.errors import ConfigurationError

from .options import DEFAULT_FOLDER, Folder

if TYPE_CHECKING:
    from .federation import Federation
    from .federation_file import Settings

PassphraseFile = Annotated[
    Path | None,
    typer.Option(help="File with the passphrase of the keys in its first line; also FEDRETRAIN_PASSPHRASE_FILE."),
]
Passphrase = Annotated[bool, typer.Option("--passphrase", help="Ask for the passphrase of the keys.")]


def register(app: typer.Typer) -> None:
    """Mount the commands on ``fedretrain server``."""
    for command in (init, admit, revoke, kits, renew):
        app.command()(command)


def init(  # noqa: PLR0913, PLR0917  # the command's options
    folder: Annotated[Path, typer.Argument(help="Empty, or not there yet.")] = DEFAULT_FOLDER,
    name: Annotated[str | None, typer.Option(help="The federation's name. Default: the folder's.")] = None,
    address: Annotated[
        str | None, typer.Option(help="HOST or HOST:PORT where sites reach this machine. Default: its name, 8443.")
    ] = None,
    listen: Annotated[
        str | None, typer.Option(help="HOST:PORT the gateway listens on. Default: every address, the same port.")
    ] = None,
    also: Annotated[
        list[str] | None, typer.Option("--also", help="A further name or IP address for the certificate; repeatable.")
    ] = None,
    site: Annotated[
        list[str] | None, typer.Option("--site", help="A name that may be admitted; repeatable. Default: any.")
    ] = None,
    root_keys: Annotated[int, typer.Option(min=1, max=16, help="How many root keys to make.")] = 1,
    root_threshold: Annotated[int, typer.Option(min=1, help="How many of them it takes to replace keys.")] = 1,
    passphrase_file: PassphraseFile = None,
    passphrase: Passphrase = False,
    as_json: Json = False,
) -> None:
    """Make a federation: settings, keys, certificates, TUF roles, an empty roster. Asks nothing it can guess."""
    with answers(as_json):
        from . import provision

        _unlock(passphrase_file, passphrase, confirm=True)
        settings = _settings(name or _plain(folder), address, listen, also, site)
        made = provision.init(folder, settings, root_keys=root_keys, root_threshold=root_threshold)
        say(as_json, _init_lines(made, folder), _init_value(made))


def admit(
    request: Annotated[Path, typer.Argument(metavar="SITE.request", help="What the site sent.")],
    kit: Annotated[
        Path | None, typer.Argument(metavar="SITE.kit", help="Where the kit goes. Default: beside the request.")
    ] = None,
    folder: Folder = DEFAULT_FOLDER,
    as_json: Json = False,
) -> None:
    """Admit a site and write the kit to send back. The kit holds no secret, but send it so that nobody changes it."""
    with answers(as_json):
        from fedretrain.membership import fingerprint

        from . import provision
        from .federation import Federation

        path = kit or request.with_suffix(".kit")
        made = provision.admit(Federation.open(folder), request, path)
        print_ = fingerprint(made.site, made.node_key, made.signing_key)
        lines = [
            f"admitted {made.site}; fingerprint {print_}",
            f"if the site reads out another one: fedretrain server revoke {made.site}",
            f"send it {path}; there: fedretrain client join {path.name}",
        ]
        say(as_json, lines, {"site": made.site, "kit": str(path), "fingerprint": print_, "bundle": made.bundle})


def revoke(
    site: Annotated[str, typer.Argument(help="The site's name.")],
    folder: Folder = DEFAULT_FOLDER,
    as_json: Json = False,
) -> None:
    """Shut a site out at once: no connection is taken and no update counted, in runs under way too."""
    with answers(as_json):
        from . import provision
        from .federation import Federation

        gone = provision.revoke(Federation.open(folder), site)
        say(
            as_json,
            [f"revoked {gone.name}; its keys cannot be admitted again"],
            {"site": gone.name, "at": gone.revoked},
        )


def kits(
    sites: Annotated[list[str] | None, typer.Argument(help="Names. Default: 'sites' of federation.toml.")] = None,
    into: Annotated[Path, typer.Option(help="Folder for the kits.")] = Path("kits"),
    folder: Folder = DEFAULT_FOLDER,
    as_json: Json = False,
) -> None:
    """Make complete kits, with the sites' private keys in them, and admit the sites.

    Simpler than requests, and weaker: whoever sees a kit on its way can pass for the site.
    """
    with answers(as_json):
        from . import provision
        from .federation import Federation

        federation = Federation.open(folder)
        active = federation.active()
        wanted = sites or [name for name in federation.settings.sites if name not in active]
        if not wanted:
            raise ConfigurationError(f"no site without a kit in {federation.config}; name sites on the command line")
        made = provision.make_kits(federation, wanted, into)
        lines = [*map(str, made), "each holds its site's private keys: hand it over in private, then delete it here"]
        say(as_json, lines, {"kits": [str(path) for path in made]})


def renew(
    folder: Folder = DEFAULT_FOLDER,
    passphrase_file: PassphraseFile = None,
    passphrase: Passphrase = False,
    as_json: Json = False,
) -> None:
    """Renew certificates and TUF roles, and the app bundle if the software changed. No kit has to be sent again."""
    with answers(as_json):
        from . import renewal
        from .federation import Federation
        from .metadata import utc

        _unlock(passphrase_file, passphrase)
        done = renewal.renew(Federation.open(folder))
        lines = [f"{utc(expiry.when)}  {expiry.what}" for expiry in done.expiries]
        lines = ["valid until:", *lines, *done.skipped]
        if done.bundle:
            lines.append(f"the app bundle changed: sites that pin it accept {done.bundle} before they take part again")
        value = {
            "expires": {expiry.what: utc(expiry.when) for expiry in done.expiries},
            "skipped": list(done.skipped),
            "bundle": done.bundle,
        }
        say(as_json, lines, value)


def _settings(
    name: str, address: str | None, listen: str | None, also: list[str] | None, sites: list[str] | None
) -> "Settings":
    """The settings, guessed where nothing is given; raises ConfigurationError."""
    from fedretrain.tomlfile import check_toml

    from .federation_file import DEFAULT_PORT, Settings, split_address
    from .provision import guessed_names

    guesses = guessed_names()
    chosen = address or guesses[0]
    if not re.search(r":\d+$", chosen) or (chosen.count(":") > 1 and "[" not in chosen):
        chosen = f"[{chosen}]:{DEFAULT_PORT}" if ":" in chosen else f"{chosen}:{DEFAULT_PORT}"
    raw: dict[str, Any] = {"name": name, "address": chosen, "sites": sites or []}
    try:
        host, port = split_address(chosen)
        raw["listen"] = listen or f"0.0.0.0:{port}"
    except ValueError as error:
        raise ConfigurationError(f"--address: {error}") from None
    raw["names"] = [other for other in dict.fromkeys([*(also or []), *guesses]) if other != host]
    return check_toml(raw, Settings, Path("server init"))


def _plain(folder: Path) -> str:
    """A federation's name made of a folder's."""
    return re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9._-]+", "", folder.resolve().name)[:64] or "federation"


def _unlock(file: Path | None, ask: bool, *, confirm: bool = False) -> None:
    """Let this process use the passphrase of the option, or of a person who is asked for it."""
    from .keyfile import read_passphrase, use_passphrase

    if file is not None:
        use_passphrase(read_passphrase(file))
    elif ask:
        use_passphrase(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm).encode())


def _init_lines(made: "Federation", folder: Path) -> list[str]:
    settings = made.settings
    names = ", ".join(settings.names) or "nothing else"
    return [
        f"made the federation {settings.name} in {made.folder}",
        f"sites reach it at {settings.address}; its certificate also names {names}",
        f"move {made.offline} to another medium: it holds the root and certificate keys, for renewal only",
        f"back up {made.keys}; who has it can sign for this federation",
        f"next: fedretrain server admit SITE.request --folder {folder}",
        f"then: fedretrain server up --folder {folder}",
    ]


def _init_value(made: "Federation") -> dict[str, Any]:
    settings = made.settings
    return {
        "folder": str(made.folder),
        "name": settings.name,
        "address": settings.address,
        "names": list(settings.server_names),
        "bundle": made.bundle_digest(),
    }
