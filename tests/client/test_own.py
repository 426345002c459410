"""A release with what the site keeps for itself in its place."""

from pathlib import Path

import numpy as np
import pytest

from client.home import Home
from client.keeping import LAYERS
from client.own import own
from client.store import SiteStore
from fedretrain.contract import VariableSpec
from fedretrain.errors import ConfigurationError
from fedretrain.release import Release
from strategies.ditto import PERSONAL
from tests import drafts

from .deliveries import kit_of


def release(*rules: str) -> Release:
    """Of run "run-1", every variable two zeros; made by hand, as verification is not what is tested here."""
    draft = drafts.draft("run-1")
    specs = tuple(VariableSpec(shape=(2,), dtype="float32", rule=rule) for rule in rules)
    contract = draft.contract.model_copy(update={"variables": specs})
    weights = [np.zeros(2, np.float32) for _ in rules]
    return Release("id", Path(), "{}", weights, contract, {}, {"run": "run-1"})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.make()
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "root.json").write_text("{}")
    made.kit.write_text(kit_of(tmp_path).model_dump_json())
    return made


def kept(home: Home, name: str, round_: int, *values: float, run: str = "run-1") -> None:
    arrays = [np.full(2, value, np.float32) for value in values]
    SiteStore(home.store).memory(run, "hospital-a").write(name, round_, arrays)


def firsts(found: Release) -> list[float]:
    return [float(array[0]) for array in found.weights]


def test_personal_layers_are_those_of_the_last_round(home: Home) -> None:
    """FedPer and FedBN; what is shared is the release's, which itself stays as it is."""
    served = release("train", "personal", "keep", "personal")
    kept(home, LAYERS, 1, 1.0, 2.0)
    kept(home, LAYERS, 2, 3.0, 4.0)
    assert firsts(own(home, served)) == [0.0, 3.0, 0.0, 4.0]
    assert firsts(served) == [0.0] * 4


def test_a_model_of_the_sites_own_takes_the_place_of_all_that_changes(home: Home) -> None:
    """Ditto; what is frozen is the release's."""
    kept(home, PERSONAL, 7, 5.0, 6.0)
    assert firsts(own(home, release("keep", "train", "average"))) == [0.0, 5.0, 6.0]


def test_another_runs_values_are_not_taken(home: Home) -> None:
    """One line says what was expected, and why there may be nothing."""
    kept(home, LAYERS, 1, 1.0, run="run-2")
    with pytest.raises(ConfigurationError, match=r"expected what run run-1 left of this site's own, got nothing: "):
        own(home, release("train", "personal"))
