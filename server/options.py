"""Options that several commands of the server have."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_FOLDER = Path("federation")
Folder = Annotated[Path, typer.Option("--folder", help="The federation's folder, as made by 'server init'.")]
