"""Options that several commands of the server have."""

from pathlib import Path
from typing import Annotated

import typer

from fedretrain import words

DEFAULT_FOLDER = Path("federation")
SIMULATED_FOLDER = Path("watched")
"""Where a job with simulated sites is watched."""
Folder = Annotated[Path, typer.Option("--folder", help="The federation's folder, as made by 'server init'.")]


def to_type(command: str, folder: Path) -> str:
    """A command for a person to type, with the folder where it is not the one that is meant without saying so.

    Args:
        command: Such as "plan JOB.toml".
        folder: That it is about.
    """
    named = "" if folder.resolve() == DEFAULT_FOLDER.resolve() else f" --folder {words.path(folder.resolve())}"
    return f"fedretrain server {command}{named}"
