"""``fedretrain partition``: one file of examples becomes a folder of simulated sites.

Invariant: importing this module loads no NumPy.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from click.core import ParameterSource

from fedretrain.answers import Json, answers, say, table
from fedretrain.errors import ConfigurationError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class Division(StrEnum):
    """How rows are divided."""

    iid = "iid"
    shards = "shards"
    dirichlet = "dirichlet"
    quantity = "quantity"


_ONLY = {
    "shards": (Division.shards,),
    "alpha": (Division.dirichlet, Division.quantity),
    "fewest": (Division.dirichlet, Division.quantity),
}
"""Options that mean something to some schemes alone."""


@app.command()
def partition(  # noqa: PLR0913, PLR0917  # the command's options
    context: typer.Context,
    data: Annotated[Path, typer.Argument(metavar="DATA.npz", help="Arrays x and y, as a site's file has them.")],
    out: Annotated[Path, typer.Option(help="Folder for the sites; a job names it as [simulation] sites.")],
    sites: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many sites.")] = 100,
    scheme: Annotated[
        Division, typer.Option(help="Random; sorted shards; labels, or sizes, by Dirichlet shares.")
    ] = Division.iid,
    shards: Annotated[int, typer.Option(min=1, help="shards: sorted parts for each site.")] = 2,
    alpha: Annotated[
        float, typer.Option(min=1e-3, max=1e6, help="dirichlet, quantity: the smaller, the more sites differ.")
    ] = 0.5,
    fewest: Annotated[int, typer.Option(min=1, help="dirichlet, quantity: rows every site has at least.")] = 1,
    by: Annotated[str, typer.Option(metavar="ARRAY", help="shards, dirichlet: the array with each row's label.")] = "y",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Decides everything that is drawn.")] = 0,
    as_json: Json = False,
) -> None:
    """Divide a file of examples among the sites of a simulation.

    Rows are written in the order of the sites and mapped into memory when they are used: 10,000 sites need no more
    memory than one.
    """
    from .partition import Kind, Scheme
    from .partition import partition as divide

    with answers(as_json):
        _check_used(context, scheme)
        made = divide(data, out, Scheme(Kind(scheme), sites, seed, shards, alpha, fewest), by)
    spreads = {"rows": made.rows_per_site, "labels": made.labels_per_site}
    heading = ("per site", "least", "median", "greatest")
    lines = table([heading, *((what, *(f"{n:g}" for n in three)) for what, three in spreads.items() if three)])
    value = {"folder": str(out), "sites": made.sites, "rows": made.rows, "per_site": spreads}
    say(as_json, [f"{out}: {made.rows} rows at {made.sites} sites", *lines], value)


def _check_used(context: typer.Context, scheme: Division) -> None:
    """Raise ConfigurationError where an option was given that the scheme takes no notice of."""
    for option, schemes in _ONLY.items():
        if scheme not in schemes and context.get_parameter_source(option) is ParameterSource.COMMANDLINE:
            expected = " or ".join(f"--scheme {one}" for one in schemes)
            raise ConfigurationError(f"--{option}: goes with {expected}, got --scheme {scheme}")
