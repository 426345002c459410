"""A federation's folder, made once and copied for each test: nothing in it depends on where it lies."""

import shutil
from pathlib import Path

import pytest

from server.federation import Federation, Settings
from server.provision import init


@pytest.fixture(scope="session")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a federation without members; not to be changed."""
    settings = Settings(name="trial", address="localhost:8443", names=("server.example", "10.0.0.7"))
    return init(tmp_path_factory.mktemp("founded") / "federation", settings).folder


@pytest.fixture
def federation(founded: Path, tmp_path: Path) -> Federation:
    """A federation of one's own, without members."""
    return Federation.open(Path(shutil.copytree(founded, tmp_path / "federation")))
