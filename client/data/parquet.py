"""parquet: files of named columns, read in batches and only the columns that are needed; needs pyarrow."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from fedretrain.contract import Contract
from fedretrain.dataset import Dataset

from .files import matching, readable, unreadable
from .section import ParquetData
from .table import Chunk, Table

_ROWS = 65_536  # of a batch


def read(section: ParquetData, folder: Path, contract: Contract) -> Dataset:
    """The examples; raises DataMismatch, also where pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401 - asked here once, used below
    except ImportError:
        raise unreadable("the package pyarrow: pip install 'fedretrain[parquet]'") from None
    table = Table(section, contract)
    files = matching(folder, section.path)
    with readable("undamaged parquet files"):
        return table.dataset(chain.from_iterable(_chunks(file, table) for file in files))


def _chunks(file: Path, table: Table) -> Iterator[Chunk]:
    from pyarrow import types
    from pyarrow.parquet import ParquetFile

    with ParquetFile(file) as source:
        table.check_names(source.schema_arrow.names)
        for batch in source.iter_batches(_ROWS, columns=table.columns):
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            yield {
                name: column.to_numpy(zero_copy_only=False)
                if types.is_integer(column.type) or types.is_floating(column.type) or types.is_boolean(column.type)
                else column.to_pylist()
                for name, column in columns.items()
            }
