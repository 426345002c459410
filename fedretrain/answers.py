"""How the commands of server and site answer: lines for a person or one JSON object, and options of one name.

Invariant: with ``--json`` the last line on standard output is one JSON object, also after a mistake.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from .errors import FedretrainError

Json = Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")]


def say(as_json: bool, lines: Iterable[str], value: Any) -> None:
    """Print the lines, or with ``as_json`` the value."""
    if as_json:
        typer.echo(json.dumps(value, allow_nan=False))
    else:
        for line in lines:
            typer.echo(line)


@contextmanager
def answers(as_json: bool) -> Iterator[None]:
    """With ``as_json``, say one of our errors in JSON too before it leaves."""
    try:
        yield
    except FedretrainError as error:
        if as_json:
            typer.echo(json.dumps({"error": str(error)}))
        raise


def table(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """The rows, of equal length, as lines with aligned columns."""
    cells = list(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
