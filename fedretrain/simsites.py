"""The sites of a simulation, as small values: a name and where its rows lie, in a file of its own or among others'.

Invariants:

- A source holds no data, so ten thousand of them cost nothing; ``load`` reads what one site has.
- Rows out of a folder are memory-mapped: a page is in memory once, however many processes and sites look at it, and
  the arrays are read-only.
- Sites come in the order of their names, and the names alone decide it.

``[simulation] sites`` in a job is either a pattern of npz files, one per site and named after it, or a folder that
``fedretrain partition`` wrote.

Format ``fedretrain.sites/1``, a folder of rows ordered by site::

    sites.json      {"format", "names": [site, ...], "offsets": [0, ..., rows], "preprocessing": text | null,
                     "made": {...}}
                    the i-th site has the rows from offsets[i] up to but not including offsets[i + 1];
                    made says how the rows were divided, for a person who wonders
    x.npy, y.npy    [rows, ...], and what else ``fedretrain.dataset`` knows: x.<input>.npy, sample_weight.npy,
                    timestamp.npy
"""

import functools
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from . import atomic
from .contract import Contract
from .dataset import Dataset, from_arrays, load_npz
from .digest import canonical_json
from .errors import ConfigurationError, DataMismatch
from .job import Job, Name, site_files
from .tomlfile import Section, said

FORMAT = "fedretrain.sites/1"
INDEX = "sites.json"

Array = NDArray[Any]


class _Index(Section):
    """What stands in sites.json."""

    format: Literal["fedretrain.sites/1"]
    names: tuple[Name, ...] = Field(min_length=1)
    offsets: tuple[int, ...]
    preprocessing: str | None = None
    made: dict[str, str | int | float] = Field({})

    @model_validator(mode="after")
    def _rows_of_every_site(self) -> "_Index":
        if len(set(self.names)) != len(self.names):
            raise ValueError("names: expected each once")
        steps = itertools.pairwise(self.offsets)
        if len(self.offsets) != len(self.names) + 1 or self.offsets[0] != 0 or any(a > b for a, b in steps):
            raise ValueError("offsets: expected one more than names, from 0 on and never less than the one before")
        return self


@dataclass(frozen=True, slots=True)
class SiteSource:
    """Where one site's examples are.

    Attributes:
        name: The site's name.
        file: Its npz file; or the folder of rows, where ``start`` and ``stop`` are given.
        start: The first of its rows.
        stop: One after the last of them.
        preprocessing: What the folder says about how its arrays were made.
    """

    name: str
    file: Path
    start: int | None = None
    stop: int | None = None
    preprocessing: str | None = None

    @property
    def rows(self) -> int | None:
        """How many examples there are, where that is known without reading them."""
        return None if self.start is None or self.stop is None else self.stop - self.start

    def load(self, contract: Contract) -> Dataset:
        """The arrays the contract names, as they are; ``fedretrain.dataset.check_dataset`` has still to be asked.

        Raises:
            DataMismatch: As ``fedretrain.dataset.load_npz``; ``data-unreadable`` also where a folder's array is
                damaged, or has fewer rows than the index promises; it names the file.
        """
        if self.start is None or self.stop is None:
            return load_npz(self.file, contract, partial=True)
        arrays = {name: array[self.start : self.stop] for name, array in _mapped(self.file).items()}
        for name, array in arrays.items():
            if len(array) != self.stop - self.start:
                raise _unreadable(f"{self.file.name}/{name}.npy", f"{self.stop} rows or more, as {INDEX} says")
        if self.preprocessing is not None:
            arrays["preprocessing"] = np.array(self.preprocessing)
        return from_arrays(arrays, contract, partial=True)

    def to_json(self) -> list[Any]:
        """As JSON can carry it to another process on this machine; the path is absolute."""
        return [self.name, str(self.file.absolute()), self.start, self.stop, self.preprocessing]

    @classmethod
    def from_json(cls, value: Iterable[Any]) -> "SiteSource":
        """The value that ``to_json`` gave."""
        name, file, *rest = value
        return cls(name, Path(file), *rest)


def simulated_sites(job: Job) -> dict[str, SiteSource]:
    """The simulation's sites by name, in the order of their names; only the first where the job says how many.

    Raises:
        ConfigurationError: The job has no [simulation] sites, the pattern matches no file, or a folder's index is
            not what it has to be.
        MachineError: A folder's index cannot be read.
    """
    files = site_files(job)
    path = next(iter(files.values()))
    if len(files) == 1 and path.is_dir():
        sources = _in_folder(path)
    else:
        sources = {name: SiteSource(name, file) for name, file in files.items()}
    first = job.simulation.first if job.simulation else None
    return dict(itertools.islice(sources.items(), first))


def write_sites(
    folder: Path,
    arrays: Mapping[str, Array],
    rows: Mapping[str, Array],
    preprocessing: str | None = None,
    made: Mapping[str, str | int | float] | None = None,
) -> None:
    """Write a folder of rows. Its index comes last: a folder with an index is complete.

    Args:
        folder: Made if need be; has no index yet.
        arrays: By the names they have in an npz file, each [n, ...].
        rows: The positions of each site's rows in ``arrays``, by the site's name.
        preprocessing: How raw data became these arrays, or None.
        made: How the rows were divided.

    Raises:
        ConfigurationError: The names are no names for sites, or there is a partition in the folder already.
        MachineError: The disk is full or the folder is not writable.
    """
    names = sorted(rows)
    offsets = [0, *itertools.accumulate(len(rows[name]) for name in names)]
    raw = {"format": FORMAT, "names": names, "offsets": offsets, "preprocessing": preprocessing, "made": made or {}}
    index = _checked(canonical_json(raw), folder)
    atomic.make_folder(folder)
    if (folder / INDEX).exists():
        raise ConfigurationError(f"{folder}: there is a partition already; choose another folder or remove this one")
    order = np.concatenate([rows[name] for name in names])
    for name, array in arrays.items():
        with atomic.replacing(folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, array[order], allow_pickle=False)
    atomic.write_json(folder / INDEX, index.model_dump(mode="json"))


def _in_folder(folder: Path) -> dict[str, SiteSource]:
    path = folder / INDEX
    if not path.exists():
        raise ConfigurationError(
            f"simulation.sites: expected a pattern of npz files, or a folder that `fedretrain partition` wrote; "
            f"{folder} has no {INDEX}"
        )
    with atomic.disk_errors(path, "read"):
        index = _checked(path.read_bytes(), path)
    ends = itertools.pairwise(index.offsets)
    sources = {n: SiteSource(n, folder, a, b, index.preprocessing) for n, (a, b) in zip(index.names, ends, strict=True)}
    return dict(sorted(sources.items()))


def _checked(content: bytes, path: Path) -> _Index:
    try:
        return _Index.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"{path}: expected {FORMAT}: {where + ': ' if where else ''}{said(first)}") from None


def _mapped(folder: Path) -> dict[str, Array]:
    """The arrays of a folder, mapped once in a process for as long as its index stays the same."""
    try:
        status = (folder / INDEX).stat()
    except OSError:
        raise _unreadable(folder.name, f"a folder that `fedretrain partition` wrote, with {INDEX}") from None
    return _map(folder, (status.st_ino, status.st_mtime_ns))


@functools.lru_cache(maxsize=4)
def _map(folder: Path, _version: tuple[int, int]) -> dict[str, Array]:
    return {file.stem: _array(file) for file in sorted(folder.glob("*.npy"))}


def _array(file: Path) -> Array:
    try:
        return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError):  # ValueError: no npy, cut short, or pickled objects
        where = f"{file.parent.name}/{file.name}"
        raise _unreadable(where, "an undamaged array, as `fedretrain partition` wrote it") from None


def _unreadable(where: str, expected: str) -> DataMismatch:
    return DataMismatch("data-unreadable", where, expected)
