"""Divide one file of examples among the sites of a simulation.

Invariants:

- Every row is at exactly one site, and every site has at least ``fewest`` rows.
- The same file and the same scheme give the same sites, on any machine with the same NumPy.

Schemes, for n rows, S sites and labels out of L:

- ``iid``: a random permutation, cut into S parts of equal size (give or take one row).
- ``shards``: rows sorted by label and cut into S * ``shards`` parts of equal size; every site gets ``shards`` of them
  at random. With two, most sites see two labels: McMahan et al. 2017, arXiv:1602.05629, section 3.
- ``dirichlet``: for each label, the sites' shares are drawn from a symmetric Dirichlet distribution with ``alpha``; the
  smaller it is, the fewer labels a site sees and the more its size differs from others': Yurochkin et al. 2019,
  arXiv:1905.12022.
- ``quantity``: the sites' sizes are shares drawn from a symmetric Dirichlet distribution with ``alpha``; the rows are
  random, so that sites differ in size alone: Li et al. 2022, arXiv:2102.02079.
"""

import heapq
import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedretrain.errors import ConfigurationError
from fedretrain.simsites import write_sites

Array = NDArray[Any]
Indices = NDArray[np.intp]

_BY_ROW = frozenset({"sample_weight", "timestamp"})  # arrays beside those of inputs and outputs


class Kind(StrEnum):
    """How rows are divided; see the module docstring."""

    iid = "iid"
    shards = "shards"
    dirichlet = "dirichlet"
    quantity = "quantity"


@dataclass(frozen=True)
class Scheme:
    """One way to divide rows.

    Attributes:
        kind: See the module docstring.
        sites: How many sites.
        seed: Decides everything that is drawn.
        shards: Parts for each site, for ``shards``.
        alpha: Concentration, for ``dirichlet`` and ``quantity``; above 0.
        fewest: Rows every site has at least, for ``dirichlet`` and ``quantity``.

    Raises:
        ConfigurationError: ``alpha`` is not finite, or not above 0.
    """

    kind: Kind
    sites: int
    seed: int = 0
    shards: int = 2
    alpha: float = 0.5
    fewest: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigurationError(f"--alpha: expected a finite number above 0, got {self.alpha:g}")

    @property
    def needs_labels(self) -> bool:
        """Whether labels decide about anything."""
        return self.kind in {Kind.shards, Kind.dirichlet}

    def owners(self, rows: int, labels: Array | None) -> Indices:
        """Which site each row belongs to, [rows], counted from 0.

        Args:
            rows: How many rows there are.
            labels: Of each row a whole number from 0 on; None where ``needs_labels`` says that it does not matter.

        Raises:
            ConfigurationError: There are fewer rows than the sites need, or no labels.
        """
        option, least = {Kind.iid: ("", 1), Kind.shards: ("shards", self.shards)}.get(
            self.kind, ("fewest", self.fewest)
        )
        if rows < self.sites * least:
            asked = f"--sites {self.sites}" + (f", --{option} {least}" if least > 1 else "")
            raise ConfigurationError(
                f"{asked}: expected at least {self.sites * least} rows, {least} for each site, got {rows}"
            )
        rng = np.random.default_rng([self.seed, *self.kind.encode()])
        if self.kind is Kind.iid:
            return _in_order(rng.permutation(rows), self.sites)
        if self.kind is Kind.quantity:
            return self._by_quantity(rows, rng)
        if labels is None:
            raise ConfigurationError(f"--scheme {self.kind}: expected labels to divide by, got none")
        return self._by_shards(labels, rng) if self.kind is Kind.shards else self._by_label(labels, rng)

    def _by_shards(self, labels: Array, rng: np.random.Generator) -> Indices:
        shard = _in_order(np.argsort(labels, kind="stable"), self.sites * self.shards)
        owner_of_shard = np.empty(self.sites * self.shards, np.intp)
        owner_of_shard[rng.permutation(self.sites * self.shards)] = np.repeat(np.arange(self.sites), self.shards)
        return np.asarray(owner_of_shard[shard])

    def _by_quantity(self, rows: int, rng: np.random.Generator) -> Indices:
        shares = rng.dirichlet(np.full(self.sites, self.alpha))
        spare = rows - self.fewest * self.sites
        ends: Indices = np.round(np.cumsum(shares) * spare).astype(np.intp)
        sizes: Indices = self.fewest + np.diff(ends, prepend=0)
        sizes[-1] += rows - sizes.sum()  # the shares may sum to a little less than 1
        owner = np.empty(rows, np.intp)
        owner[rng.permutation(rows)] = np.repeat(np.arange(self.sites), sizes)
        return owner

    def _by_label(self, labels: Array, rng: np.random.Generator) -> Indices:
        owner = np.empty(len(labels), np.intp)
        for label in np.unique(labels):
            mine = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(self.sites, self.alpha))
            cuts: Indices = np.round(np.cumsum(shares)[:-1] * len(mine)).astype(np.intp)
            sizes: Indices = np.diff(cuts, prepend=0, append=len(mine))
            owner[mine] = np.repeat(np.arange(self.sites), sizes)
        return _filled_up(owner, self.sites, self.fewest)


@dataclass(frozen=True)
class Summary:
    """What a partition looks like; three numbers are least, median and greatest over the sites.

    Attributes:
        sites: How many.
        rows: Of all sites together.
        rows_per_site: Three numbers.
        labels_per_site: How many different labels a site sees, three numbers; None where there are no labels.
    """

    sites: int
    rows: int
    rows_per_site: tuple[float, float, float]
    labels_per_site: tuple[float, float, float] | None


def partition(data: Path, folder: Path, scheme: Scheme, by: str = "y") -> Summary:
    """Write the folder of sites that ``[simulation] sites`` of a job can name.

    Args:
        data: npz file with the arrays of ``fedretrain.dataset``; the array ``slice`` of a holdout is left out.
        folder: Where the sites go; see ``fedretrain.simsites``.
        scheme: How rows are divided.
        by: The array that holds each row's label; needs to be no array the model sees, and is to be there where it is
            not ``y``.

    Raises:
        ConfigurationError: The file is no such file, or it cannot be divided so.
        MachineError: The folder cannot be written.
    """
    arrays, preprocessing, labels = _read(data, by)
    if labels is None and scheme.needs_labels:
        raise ConfigurationError(
            f"{data}: --scheme {scheme.kind} expects one label per row in the array {by!r}; name another with --by"
        )
    rows = len(next(iter(arrays.values())))
    owners = scheme.owners(rows, labels)
    counts = np.bincount(owners, minlength=scheme.sites)
    positions = np.split(np.argsort(owners, kind="stable"), np.cumsum(counts)[:-1])
    names = site_names(scheme.sites)
    write_sites(folder, arrays, dict(zip(names, positions, strict=True)), preprocessing, asdict(scheme) | {"by": by})
    return Summary(scheme.sites, rows, _spread(counts), None if labels is None else _spread(_distinct(owners, labels)))


def site_names(sites: int) -> list[str]:
    """``site-1`` and so on, with as many digits as the last one has, so that their order is that of the numbers."""
    digits = len(str(sites))
    return [f"site-{number:0{digits}d}" for number in range(1, sites + 1)]


def _in_order(order: Indices, parts: int) -> Indices:
    """The part each row is in, when ``order`` is cut into parts of equal size."""
    part = np.empty(len(order), np.intp)
    part[order] = np.arange(len(order)) * parts // len(order)
    return part


def _filled_up(owner: Indices, sites: int, fewest: int) -> Indices:
    """The owners after the largest sites gave rows to those with fewer than ``fewest``."""
    counts = np.bincount(owner, minlength=sites)
    rows = np.split(np.argsort(owner, kind="stable"), np.cumsum(counts)[:-1])
    largest = [(-int(count), site) for site, count in enumerate(counts)]
    heapq.heapify(largest)
    for site in np.flatnonzero(counts < fewest):
        for _ in range(fewest - counts[site]):
            count, giver = heapq.heappop(largest)
            owner[rows[giver][-count - 1]] = site
            heapq.heappush(largest, (count + 1, giver))
    return owner


def _read(data: Path, by: str) -> tuple[dict[str, Array], str | None, Indices | None]:
    """The arrays by row, what they say about preprocessing, and each row's label as a whole number from 0 on."""
    try:
        with np.load(data, allow_pickle=False) as file:
            known = {*_BY_ROW, "preprocessing", by}
            wanted = [key for key in file.files if key in known or key.partition(".")[0] in {"x", "y"}]
            found = {key: file[key] for key in wanted}
            there = ", ".join(file.files)
            named = [key for key in file.files if key.partition(".")[0] == "labels" and key != by]
    except FileNotFoundError:
        raise ConfigurationError(f"{data}: no such file; expected an npz file of examples") from None
    except Exception as error:  # a damaged archive makes zipfile, zlib and NumPy raise nearly anything
        raise ConfigurationError(f"{data}: expected an undamaged npz file of plain arrays") from error
    if named:
        raise ConfigurationError(
            f"{data}: {named[0]} names the positions of y, which a folder of rows does not keep; write y in the order "
            "of the job's labels, without this array"
        )
    if by not in {"y", *found}:
        raise ConfigurationError(f"{data}: --by {by}: expected one of the arrays {there}")
    said = found.pop("preprocessing", None)
    labels = _labels(found.get(by))
    arrays = {key: array for key, array in found.items() if key in _BY_ROW or key.partition(".")[0] in "xy"}
    if {key.partition(".")[0] for key in arrays} - _BY_ROW != {"x", "y"}:
        raise ConfigurationError(
            f"{data}: expected arrays x and y (x.INPUT and y.OUTPUT where a model has several), got {there}; write "
            "what is to be divided as numpy.savez(FILE, x=..., y=...)"
        )
    lengths = {key: len(array) if array.ndim else 0 for key, array in arrays.items()}
    if len(set(lengths.values())) != 1 or (labels is not None and len(labels) not in lengths.values()):
        raise ConfigurationError(f"{data}: expected as many rows in each array, got {lengths}")
    return arrays, None if said is None else str(said), labels


def _labels(array: Array | None) -> Indices | None:
    if array is None or array.ndim == 0 or array.size != len(array):
        return None
    return np.unique(array.reshape(-1), return_inverse=True)[1]


def _distinct(owners: Indices, labels: Indices) -> Indices:
    """How many different labels each site sees."""
    width = int(labels.max()) + 1
    return np.bincount(np.unique(owners * width + labels) // width)


def _spread(counts: Indices) -> tuple[float, float, float]:
    return float(counts.min()), float(np.median(counts)), float(counts.max())
