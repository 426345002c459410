"""Files that a comparison writes, checked before it begins: what would fail after the last run is said at once."""

import importlib
from pathlib import Path

from fedretrain.errors import ConfigurationError


def check_outputs(out: Path | None, plot: Path | None, into: Path | None) -> None:
    """Whether folder, picture and document can be what they are asked to be.

    Raises:
        ConfigurationError: ``out`` exists, ``plot`` is no PNG in a folder that exists, ``into`` does not exist.
        ModuleNotFoundError: A plot is asked for, and matplotlib is not installed.
    """
    if out is not None and out.exists():
        raise ConfigurationError(f"--out: {out}: expected a folder that does not exist yet; choose another one")
    if plot is not None:
        if plot.suffix != ".png" or not plot.resolve().parent.is_dir():
            raise ConfigurationError(f"--plot: expected a file that ends in .png in a folder that exists, got {plot}")
        importlib.import_module("matplotlib")
    if into is not None and not into.is_file():
        raise ConfigurationError(f"--into: {into}: no such file; it has the lines between which the table goes")
