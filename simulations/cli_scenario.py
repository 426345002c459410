"""``fedretrain scenario``: a drift of real digits as files, with the example jobs that mean something for it.

Invariant: importing this module loads no NumPy.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from fedretrain.answers import Json, answers, say

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def scenario(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a drift.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Is made.")],
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Decides everything that is drawn.")] = 0,
    sites: Annotated[int, typer.Option(min=2, max=20, help="How many sites share the data.")] = 5,
    as_json: Json = False,
) -> None:
    """Write a drift: the model in use, holdouts of old and new, the sites' data with times, and example jobs.

    NAME is appearance, new-classes, meaning or label-shift. A job is run with `fedretrain simulate FOLDER/MODE.toml`.
    """
    from .quiet import console_stream, diverted_stderr
    from .scenarios.registry import Drift
    from .scenarios.write import write

    with answers(as_json):
        drift = Drift(name, seed, sites)
        with console_stream() as stream, diverted_stderr(Path(os.devnull)):  # TensorFlow greets at length
            jobs = write(drift, folder.resolve(), lambda line: typer.echo(f"  {line} ...", file=stream))
    value = {"folder": str(folder), "scenario": name, "seed": seed, "sites": sites, "jobs": jobs}
    say(as_json, [f"{folder}: model, holdouts, {sites} sites and {len(jobs)} jobs: {', '.join(jobs)}"], value)
