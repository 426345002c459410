"""csv: text with a line of column names first; several files are read as one."""

import csv
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from fedretrain.contract import Contract
from fedretrain.dataset import Dataset

from .files import matching, readable, unreadable
from .section import CsvData
from .table import Chunk, Table

_ROWS = 8192  # of a chunk


def read(section: CsvData, folder: Path, contract: Contract) -> Dataset:
    """The examples; raises DataMismatch."""
    table = Table(section, contract)
    files = matching(folder, section.path)
    with readable(f"csv files in {section.encoding}, their columns divided by {section.delimiter!r}"):
        return table.dataset(chain.from_iterable(_chunks(file, section, table) for file in files))


def _chunks(file: Path, section: CsvData, table: Table) -> Iterator[Chunk]:
    encoding = "utf-8-sig" if section.encoding.lower() in ("utf-8", "utf8") else section.encoding
    with file.open(newline="", encoding=encoding) as text:
        rows = csv.reader(text, delimiter=section.delimiter, skipinitialspace=True)
        names = [name.strip() for name in next(rows, [])]
        table.check_names(names)
        places = {column: names.index(column) for column in table.columns}
        if any(names.count(column) > 1 for column in places):
            raise unreadable("columns of different names")
        while some := list(islice(rows, _ROWS)):
            some = [row for row in some if row]
            if any(len(row) != len(names) for row in some):
                raise unreadable("as many cells in every row as there are column names in the first")
            yield {column: [row[place] for row in some] for column, place in places.items()}
