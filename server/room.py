"""Whether a federation's disks have room: the operator is told before, and in one place, what else many would say.

Invariant: a disk is told once when its room is used up, and once when there is room again.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .federation import Federation

LEAST_BYTES: Final = 64 * 2**20
AGAIN_BYTES: Final = LEAST_BYTES * 5 // 4


class Room:
    """The disks of one federation; ``look`` now and then."""

    def __init__(self, federation: Federation) -> None:
        self.problems: dict[Path, str] = {}
        self._folders = (federation.state, federation.runs, federation.registry)

    def look(self) -> list[str]:
        """News for the operator, a line each; ``problems`` is what is wrong with the disks that are short of room."""
        free = _free(self._folders)
        short = {folder: most for folder, most in free.items() if most < LEAST_BYTES}
        news = [f"! {told(folder, most)}" for folder, most in short.items() if folder not in self.problems]
        self.problems |= {folder: told(folder, most) for folder, most in short.items()}
        for folder in [f for f in self.problems if free.get(f, 0) >= AGAIN_BYTES]:
            del self.problems[folder]
            news.append(f"{folder}: there is room again")
        return news


def told(folder: Path, free: int) -> str:
    """What to do about a disk."""
    return (
        f"{folder}: the disk is full, {free // 2**20} MB are left; free some space there: until then runs stand "
        "still or fail, sites are refused, and nothing can be released"
    )


def _free(folders: tuple[Path, ...]) -> Mapping[Path, int]:
    """Bytes that are free on each disk, by the first of the folders that lies on it."""
    found: dict[int, tuple[Path, int]] = {}
    for folder in folders:
        try:
            found.setdefault(folder.stat().st_dev, (folder, shutil.disk_usage(folder).free))
        except OSError:  # whoever needs the folder says so
            continue
    return dict(found.values())
