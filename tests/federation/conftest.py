"""One federation for the tests of a module: starting three sites takes seconds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .stand import SITES, Stand, write_model

TRAINING = {"BACKEND_SECONDS": "0.7"}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model every federation begins with."""
    path = tmp_path_factory.mktemp("model") / "base.keras"
    write_model(path)
    return path


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Stand]:
    """A federation with three sites, all up."""
    stand = Stand(tmp_path_factory.mktemp("stand"), env=dict.fromkeys(SITES, TRAINING)).set_up(model)
    try:
        stand.server_up()
        stand.client_up(*SITES)
        yield stand
    finally:
        stand.end()
