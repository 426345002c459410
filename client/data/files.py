"""Files of a site's data, and what may be said when they cannot be read: never a name, a value or another's error."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedretrain.errors import DataMismatch

DATA = "the site's data file"


def matching(folder: Path, pattern: str) -> list[Path]:
    """The file, or the files that fit a shell pattern, by name; raises DataMismatch where there is none."""
    whole = folder / pattern
    if whole.is_file():
        return [whole]
    try:
        found = sorted(file for file in Path(whole.anchor).glob(str(whole.relative_to(whole.anchor))) if file.is_file())
    except (OSError, ValueError):
        found = []
    if not found:
        raise unreadable("at least one file that fits data.path in site.toml")
    return found


def unreadable(expected: str) -> DataMismatch:
    """The refusal of data that cannot be read."""
    return DataMismatch("data-unreadable", DATA, expected)


@contextmanager
def readable(expected: str) -> Iterator[None]:
    """Turn whatever a decoder raises inside the block into ``unreadable(expected)``; its own text may quote data."""
    try:
        yield
    except DataMismatch:
        raise
    except Exception:  # noqa: BLE001 - decoders raise nearly anything on damaged files
        raise unreadable(expected) from None
