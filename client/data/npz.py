"""npz: the arrays of ``fedretrain.dataset``, read as they are."""

from dataclasses import replace
from pathlib import Path

from fedretrain.contract import Contract
from fedretrain.dataset import Dataset, load_npz

from .section import NpzData


def read(section: NpzData, folder: Path, contract: Contract) -> Dataset:
    """The examples; what site.toml says of the preprocessing goes before what the file says. Raises DataMismatch."""
    data = load_npz(folder / section.path, contract, partial=True)
    return data if section.preprocessing is None else replace(data, preprocessing=section.preprocessing)
