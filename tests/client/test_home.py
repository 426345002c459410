"""A site's folder: where it is, and who may look into it."""

import stat
from pathlib import Path

import pytest

from client.home import VARIABLE, Home
from fedretrain.errors import ConfigurationError, MachineError


def test_the_folder_is_the_given_one_or_the_variables_or_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An argument counts before FEDRETRAIN_HOME, that before ~/.fedretrain; all are made absolute."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    assert Home.at().root == tmp_path.resolve() / ".fedretrain"
    monkeypatch.setenv(VARIABLE, "~/site")
    assert Home.at().root == tmp_path.resolve() / "site"
    monkeypatch.chdir(tmp_path)
    assert Home.at(Path("here")).root == tmp_path.resolve() / "here"


def test_what_is_made_is_for_its_owner_alone(tmp_path: Path) -> None:
    """The folder itself is 0700, so nothing in it is readable by others; making it again changes nothing."""
    home = Home(tmp_path / "a" / "b")
    home.make()
    home.make()
    assert stat.S_IMODE(home.root.stat().st_mode) == 0o700
    made = {path.name for path in home.root.iterdir()}
    assert made == {"keys", "run", "store", "approvals", "releases", "log"}


def test_a_site_that_has_not_joined_is_told_what_to_do(tmp_path: Path) -> None:
    """Without a kit, or with a damaged one, there is one line and the command that helps."""
    home = Home(tmp_path)
    with pytest.raises(ConfigurationError, match=r"run 'fedretrain client join SITE\.kit' first"):
        home.load_kit()
    home.kit.write_text("{}")
    with pytest.raises(ConfigurationError, match=r"kit\.json: not a kit of this version"):
        home.load_kit()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """The machine's failure is said with the path."""
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="cannot create the folder"):
        Home(tmp_path / "file" / "home").make()
