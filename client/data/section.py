"""The ``[data]`` tables of ``site.toml``, one model per format; each format's module reads by it."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from fedretrain.contract import Contract
from fedretrain.errors import DataMismatch
from fedretrain.job import Reference
from fedretrain.tomlfile import Section
from fedretrain.wider import WiderContract

Names = Annotated[tuple[str, ...], Field(min_length=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


class DataSection(Section):
    """What every format has."""

    format: str
    preprocessing: str | None = Field(None, description="name of how raw data became these values")
    validation_fraction: Share | None = Field(None, description="share kept for validation instead of the job's")


class NpzData(DataSection):
    """One npz file with the arrays of ``fedretrain.dataset``."""

    format: Literal["npz"]
    path: str


class TableData(DataSection):
    """Rows of named columns. With several inputs or outputs, ``columns`` and ``label`` are tables by their names."""

    path: str = Field(description="a file, or a shell pattern of several that are read as one")
    columns: Names | dict[str, Names] | None = Field(None, description="features in order; default: the contract's")
    label: str | Names | dict[str, str | Names] | None = Field(
        None, description="column of the labels, or several; without it data can be checked, not trained on"
    )
    sample_weight: str | None = Field(None, description="column of the rows' weights")
    timestamp: str | None = Field(None, description="column of when each row was made: ISO 8601, or seconds since 1970")


class CsvData(TableData):
    """Text with a line of column names."""

    format: Literal["csv"]
    delimiter: str = Field(",", min_length=1, max_length=1, description="one character")
    encoding: str = "utf-8"


class ParquetData(TableData):
    """Parquet files; needs pyarrow."""

    format: Literal["parquet"]


class ImageData(DataSection):
    """PNG, JPEG, GIF or BMP files in one folder per class."""

    format: Literal["images"]
    path: str = Field(description="folder of folders that are named as the labels")
    divide_by: float = Field(1.0, gt=0, description="pixels are divided by this")
    resize: bool = Field(False, description="scale pictures of another size than the model's input")


class Feature(Section):
    """One feature of a TFRecord's examples: ``bytes`` is raw uint8 of this shape, or a text where the shape is []."""

    dtype: Literal["float32", "int64", "bytes"]
    shape: tuple[Annotated[int, Field(ge=1)], ...] = ()


class TFRecordData(DataSection):
    """TFRecord files of ``tf.train.Example``. With several inputs or outputs, ``input`` and ``label`` are tables."""

    format: Literal["tfrecord"]
    path: str = Field(description="a file, or a shell pattern of several that are read as one")
    features: dict[str, Feature] = Field(description="dtype and shape by name")
    input: str | dict[str, str] = Field(description="name of the feature that is the model's input")
    label: str | dict[str, str] | None = Field(
        None, description="name of the feature that is the label; without it data can be checked, not trained on"
    )
    sample_weight: str | None = Field(None, description="name of the feature that is the weight")
    timestamp: str | None = Field(None, description="name of the feature that is the time, in seconds since 1970")
    compression: Literal["", "GZIP", "ZLIB"] = ""


class FunctionData(DataSection):
    """The site's own reader, called with the contract."""

    format: Literal["function"]
    function: Reference
    path: str | None = Field(None, description="folder it is imported from; default: what is installed")


def labelled(said: object, contract: Contract, what: str) -> list[str]:
    """The outputs a site has labels for, by what it says under ``label``: where that is a table, those it names.

    Raises:
        DataMismatch: ``data-missing`` where the table names none of them, or leaves one out and names one that the
            model does not have; or where nothing is said, unless data are read for a check, which takes them without
            labels (``fedretrain.wider``). ``what`` says what was expected.
    """
    outputs = [spec.name for spec in contract.outputs]
    if said is None:
        if isinstance(contract, WiderContract):
            return []
        raise DataMismatch("data-missing", outputs[0], what)
    if not isinstance(said, Mapping):
        return outputs
    found = [name for name in outputs if name in said]
    if not found or (len(found) < len(outputs) and set(said) - set(outputs)):
        raise DataMismatch("data-missing", next(name for name in outputs if name not in said), what)
    return found


FORMATS: dict[str, type[DataSection]] = {
    "npz": NpzData,
    "csv": CsvData,
    "parquet": ParquetData,
    "images": ImageData,
    "tfrecord": TFRecordData,
    "function": FunctionData,
}
