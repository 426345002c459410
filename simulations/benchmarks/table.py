"""Tables of measurements: one shape for all benchmarks, as Markdown and as JSON.

Invariants:

- A ratio is to a baseline that was measured in the same invocation; what the baseline is stands below the table.
- The environment stands below the table.

Format ``fedretrain.table/1``, one object in a list per table::

    {"format", "name", "title", "columns": [text], "rows": [[cell]], "baseline": text, "note": text, "command": text,
     "environment": {...}}; a cell is text, a number, null, or {"value": number, "baseline": number, "ratio": number}

Use::

    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.NAME", description=__doc__)
    common_arguments(parser)
    options = parser.parse_args(arguments)
    table = Table("aggregation", "Adding up updates", ("", "seconds", "peak MB"), baseline="`a += x`")
    table.add("10 sites", Figure(0.09, baseline=0.06), 312)
    emit([table], options)

A table goes into a document, with ``--into FILE``, between the lines ``<!-- table NAME -->`` and ``<!-- end NAME -->``.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fedretrain import atomic
from fedretrain.errors import ConfigurationError

from .environment import Environment

FORMAT = "fedretrain.table/1"


@dataclass(frozen=True)
class Figure:
    """A number beside the baseline's, measured in the same invocation."""

    value: float
    baseline: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times the baseline; None without one."""
        return self.value / self.baseline if self.baseline else None


Cell = Figure | float | int | str | None


@dataclass
class Table:
    """A table under construction; None is an empty cell.

    Attributes:
        name: For the document's markers and file names: lower-case letters, digits and hyphens.
        title: One line.
        columns: Headings, with the unit in them; the first column names the rows.
        rows: One cell for each column.
        baseline: What ratios are to.
        note: What a reader has to know, in Markdown.
        command: How the table is made, without paths of this machine.
        environment: Where; taken when the table is made.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: list[tuple[Cell, ...]] = field(default_factory=list)
    baseline: str = ""
    note: str = ""
    command: str = ""
    environment: Environment = field(default_factory=Environment.now)

    def add(self, *cells: Cell) -> None:
        """Add a row; raises ValueError where cells and columns differ in number."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{self.name}: expected {len(self.columns)} cells, got {len(cells)}")
        self.rows.append(cells)

    def against(self, label: str) -> "Table":
        """The same table, with every number beside the one of the row ``label``, which is the baseline.

        Raises:
            ValueError: There is no such row.
        """
        base = next((row for row in self.rows if row[0] == label), None)
        if base is None:
            raise ValueError(f"{self.name}: no row {label}")
        rows = [tuple(map(_beside, row, base)) if row is not base else row for row in self.rows]
        return replace(self, rows=rows, baseline=label)

    def ended(self) -> "Table":
        """The same table, with the load of the machine after the measurement."""
        return replace(self, environment=self.environment.ended())

    def markdown(self) -> str:
        """The table with title, note and environment."""
        lines = [f"**{self.title}**", ""]
        lines += [_line(self.columns), "|---|" + "---:|" * (len(self.columns) - 1)]
        lines += [_line([_text(cell) for cell in row]) for row in self.rows]
        below = [f"In brackets: times {self.baseline}."] if self.baseline else []
        below += [self.note] if self.note else []
        below += [f"`{self.command}`"] if self.command else []
        for text in [*below, f"({self.environment.text()})"]:
            lines += ["", text]
        return "\n".join(lines) + "\n"

    def of_smoke(self) -> "Table":
        """The table with a title and a command that are those of a smoke run."""
        command = re.sub(r" --mnist \S+", "", self.command) + " --smoke" if self.command else self.command
        return replace(self, title=f"{self.title} (smoke run: shows only that it runs)", command=command)

    def as_json(self) -> dict[str, Any]:
        """The table in the format above."""
        value = {"format": FORMAT, **asdict(replace(self, rows=[], columns=list(self.columns)))}
        return value | {"rows": [[_plain(cell) for cell in row] for row in self.rows]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Table":
        """The table that ``as_json`` wrote; raises ConfigurationError for another format."""
        if value.get("format") != FORMAT:
            raise ConfigurationError(f"table: expected format {FORMAT}, got {value.get('format')}")
        known = {k: v for k, v in value.items() if k != "format"}
        rows = [tuple(_cell(cell) for cell in row) for row in known["rows"]]
        return cls(**known | {"rows": rows, "environment": Environment(**known["environment"])})


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what all benchmarks have: ``--json --markdown --into --mnist --smoke``."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the tables as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--mnist", type=Path, metavar="PATH", help="mnist.npz; default: Keras downloads it")
    either = parser.add_mutually_exclusive_group()  # figures of made-up data are nobody's to read
    either.add_argument("--into", type=Path, metavar="FILE", help="replace the tables in a document")
    either.add_argument("--smoke", action="store_true", help="seconds, little made-up data: shows only that it runs")


def emit(tables: Sequence[Table], options: argparse.Namespace) -> None:
    """Print the tables as Markdown, and write the files that ``common_arguments`` name; those of a smoke run say so.

    Raises:
        MachineError: A file cannot be written.
        ConfigurationError: The document of ``--into`` lacks a table's markers.
    """
    ended = [(table.of_smoke() if options.smoke else table).ended() for table in tables]
    text = "\n".join(table.markdown() for table in ended)
    if options.json:
        atomic.write_json(options.json.resolve(), [table.as_json() for table in ended])
    if options.markdown:
        atomic.write_bytes(options.markdown.resolve(), text.encode())
    for table in ended if options.into else []:
        insert(options.into, table)
    sys.stdout.write(text)


def read(file: Path) -> list[Table]:
    """The tables of a JSON file that ``emit`` wrote."""
    return [Table.from_json(value) for value in json.loads(file.read_bytes())]


def insert(document: Path, table: Table) -> None:
    """Replace a table in a document; raises ConfigurationError where its markers are missing."""
    text = document.read_text(encoding="utf-8")
    begin, end = f"<!-- table {table.name} -->\n", f"<!-- end {table.name} -->"
    made, count = re.subn(
        f"({re.escape(begin)}).*?({re.escape(end)})",
        lambda found: f"{found[1]}\n{table.markdown()}\n{found[2]}",
        text,
        flags=re.DOTALL,
    )
    if count != 1:
        raise ConfigurationError(f"{document}: expected the lines {begin.strip()} and {end} once, found {count}")
    atomic.write_bytes(document.resolve(), made.encode())


def number(value: float) -> str:
    """A number with three significant digits, or all before the point."""
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 100 or not value or not math.isfinite(value):
        return f"{value:,.0f}"
    digits = 2 - int(f"{value:e}".partition("e")[2])
    return f"{value:.{digits}f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _text(cell: Cell) -> str:
    if isinstance(cell, Figure):
        return number(cell.value) + (f" ({number(cell.ratio)}x)" if cell.ratio is not None else "")
    return "" if cell is None else cell if isinstance(cell, str) else number(cell)


def _plain(cell: Cell) -> Any:
    return asdict(cell) | {"ratio": cell.ratio} if isinstance(cell, Figure) else cell


def _cell(value: Any) -> Cell:
    found: Cell = Figure(value["value"], value["baseline"]) if isinstance(value, dict) else value
    return found


def _beside(cell: Cell, base: Cell) -> Cell:
    if isinstance(cell, int | float) and isinstance(base, int | float):
        return Figure(cell, base)
    return cell
