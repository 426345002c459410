"""A look into an HDF5 file before Keras opens it.

HDF5 can point outside itself: external and soft links, virtual datasets, external storage, filters loaded as plug-ins.
A few bytes can also declare an array of any size. A file that passes here holds plain numeric arrays of its own, stored
in a bounded number of bytes once read.
"""

from pathlib import Path
from typing import Any

from .errors import ConfigurationError, ModelRefused

_BUILT_IN_FILTERS = frozenset({1, 2, 3})  # deflate, shuffle, fletcher32: compiled into the library
_MAX_OBJECTS = 100_000


def check_hdf5(path: Path, name: str, max_bytes: int, skip: frozenset[str] = frozenset()) -> None:
    """Check a file of weights.

    Args:
        path: The file.
        name: What to call it in an error.
        max_bytes: Most bytes that all its arrays together may have in memory.
        skip: Groups at the top that nobody will read; their links and storage are checked, their bytes not counted.

    Raises:
        ConfigurationError: It is not HDF5, or is damaged.
        ModelRefused: It points outside itself, holds other than numbers, or is larger than ``max_bytes``.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            total = _checked_bytes(file, name, skip)
    except ModelRefused:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged file makes h5py raise nearly anything
        raise ConfigurationError(f"{name}: expected an undamaged HDF5 file of weights: {error}") from None
    if total > max_bytes:
        raise ModelRefused(
            f"{name}: expected arrays of at most {max_bytes} bytes, as the architecture has, got {total}"
        )


def float_shapes(
    path: Path, groups: frozenset[str] | None = None, skip: frozenset[str] = frozenset()
) -> dict[str, tuple[int, ...]]:
    """Shapes of all arrays of floats by name, in some groups at the top or in all but ``skip``.

    The file is one that ``check_hdf5`` has passed.
    """
    import h5py

    shapes: dict[str, tuple[int, ...]] = {}

    def note(where: str, item: Any) -> None:
        top = where.partition("/")[0]
        wanted = top not in skip if groups is None else top in groups
        if wanted and isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
            shapes[where] = tuple(item.shape)

    with h5py.File(path, "r") as file:
        file.visititems(note)
    return shapes


def _checked_bytes(file: Any, name: str, skip: frozenset[str]) -> int:
    """Bytes of all arrays outside ``skip``."""
    import h5py

    total = seen = 0
    groups = [("", file)]
    visited = {h5py.h5o.get_info(file.id).addr}
    while groups:
        prefix, group = groups.pop()
        for key in group:
            where = f"{prefix}{key}"
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise ModelRefused(f"{name}: '{where}' is a link; expected arrays of the file's own")
            item = group[key]
            seen += 1
            if seen > _MAX_OBJECTS:
                raise ModelRefused(f"{name}: expected at most {_MAX_OBJECTS} arrays and groups")
            if isinstance(item, h5py.Group):
                address = h5py.h5o.get_info(item.id).addr
                if address not in visited:  # a group may contain itself
                    visited.add(address)
                    groups.append((f"{where}/", item))
                continue
            _check_array(item, name, where)
            total += 0 if where.partition("/")[0] in skip else item.nbytes
    return total


def _check_array(item: Any, name: str, where: str) -> None:
    import h5py

    if not isinstance(item, h5py.Dataset):
        raise ModelRefused(f"{name}: '{where}' is neither an array nor a group")
    if item.is_virtual or item.external:
        raise ModelRefused(f"{name}: '{where}' takes its numbers from another file; expected arrays of the file's own")
    if item.dtype.kind not in "biuf":
        raise ModelRefused(f"{name}: '{where}' holds {item.dtype}; expected numbers")
    plist = item.id.get_create_plist()
    if not {plist.get_filter(i)[0] for i in range(plist.get_nfilters())} <= _BUILT_IN_FILTERS:
        raise ModelRefused(f"{name}: '{where}' needs a filter that is not part of HDF5; save it without")
