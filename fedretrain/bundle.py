"""The Flower app: its folder and its bundle, made from wherever this package is installed.

Invariants:

- The app is the four code folders below and ``pyproject.toml``; the bundle adds Flower's own manifest, nothing else.
- The same code gives the same bytes, however often and from wherever it is built: a checkout, an installed wheel, a
  staged folder or an unpacked bundle.

A checkout has ``pyproject.toml`` beside the folders; a wheel carries it as ``fedretrain/app.toml``.
"""

import shutil
import tempfile
import tomllib
from importlib.util import find_spec
from pathlib import Path

from . import atomic
from .digest import sha256
from .errors import MachineError

FOLDERS = ("fedretrain", "strategies", "client", "server")
APP = "fedretrain"  # Flower takes a folder name of letters, digits and hyphens only


def stage_app(target: Path) -> Path:
    """Make the app's folder, ``target/fedretrain``, afresh.

    Returns:
        The folder, ready for ``flwr run`` and ``flwr build``.

    Raises:
        MachineError: A part of the installation is missing, or the folder cannot be written.
    """
    app = target / APP
    sources = {name: _package(name) for name in FOLDERS}
    settings = _settings(sources[APP])
    with atomic.disk_errors(app):
        if app.exists():
            shutil.rmtree(app)
        for name, source in sources.items():
            for file in sorted(source.rglob("*.py")):
                copy = app / name / file.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
        shutil.copyfile(settings, app / "pyproject.toml")
    return app


def build_bundle(target: Path) -> tuple[Path, str]:
    """Build the bundle that a SuperLink takes, as Flower names it, in the folder ``target``.

    Returns:
        The bundle's path and the SHA-256 of its bytes, by which a site pins it.

    Raises:
        MachineError: As ``stage_app``, or Flower does not accept the app.
    """
    from flwr.cli.build import build_fab_from_disk, get_fab_filename

    with tempfile.TemporaryDirectory(prefix="fedretrain-bundle-") as folder:
        app = stage_app(Path(folder))
        try:
            bundle = build_fab_from_disk(app)
        except ValueError as error:
            raise MachineError(f"{app}: Flower does not accept the app: {error}") from error
        config = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))
    digest = sha256(bundle)
    path = target / get_fab_filename(config, digest)
    atomic.make_folder(target)
    atomic.write_bytes(path, bundle)
    return path, digest


def _package(name: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise MachineError(f"the installation lacks the package {name}; install fedretrain again")
    return Path(spec.origin).parent


def _settings(package: Path) -> Path:
    """The app's pyproject.toml: inside the package in a wheel, beside it everywhere else."""
    for candidate in (package / "app.toml", package.parent / "pyproject.toml"):
        if candidate.is_file():
            return candidate
    raise MachineError(f"{package}: expected app.toml in it or pyproject.toml beside it; install fedretrain again")
