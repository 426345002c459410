"""The Flower app's folder and bundle: nothing but our code, and the same bytes from everywhere."""

import hashlib
import io
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from fedretrain import bundle
from fedretrain.errors import MachineError

CHECKOUT = Path(__file__).parents[2]


def tops(names: list[str]) -> set[str]:
    return {n.split("/")[0] for n in names}


def test_the_bundle_holds_the_code_folders_and_nothing_else(tmp_path: Path) -> None:
    """Four folders of Python files, pyproject.toml and Flower's manifest; no tests, simulations, caches or data."""
    path, _ = bundle.build_bundle(tmp_path)
    names = zipfile.ZipFile(path).namelist()
    assert tops(names) == {"fedretrain", "strategies", "client", "server", "pyproject.toml", ".info"}
    assert {n for n in names if not n.endswith(".py")} == {"pyproject.toml", ".info/CONTENT"}


def test_the_digest_is_of_the_bytes_and_in_the_name(tmp_path: Path) -> None:
    """The returned SHA-256 is what a site computes over the file it received."""
    path, digest = bundle.build_bundle(tmp_path / "out")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert path.name == f"fedretrain.fedretrain.0-1-0.{digest[:8]}.fab"


def test_the_bytes_are_the_same_from_everywhere(tmp_path: Path) -> None:
    """Built twice, by Flower from the checkout, from a staged folder and from an unpacked bundle."""
    first, second = (bundle.build_bundle(tmp_path / n)[0].read_bytes() for n in ("one", "two"))
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        archive.extractall(tmp_path / "unpacked")
    staged = build_fab_from_disk(bundle.stage_app(tmp_path))
    assert first == second == build_fab_from_disk(CHECKOUT) == staged
    assert first == build_fab_from_disk(tmp_path / "unpacked")


def test_an_installed_wheel_builds_the_same_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel has no pyproject.toml beside its folders: the copy inside the package takes its place."""
    site = tmp_path / "site-packages"
    for name in bundle.FOLDERS:
        shutil.copytree(CHECKOUT / name, site / name)
    shutil.copyfile(CHECKOUT / "pyproject.toml", site / "fedretrain" / "app.toml")
    (site / "pyproject.toml").write_text("[project]\nname = 'somebody-else'\n")
    expected = bundle.build_bundle(tmp_path)[1]
    monkeypatch.setattr(bundle, "_package", lambda name: site / name)
    assert bundle.build_bundle(tmp_path)[1] == expected


def test_staging_again_starts_afresh(tmp_path: Path) -> None:
    """A file that an earlier staging left, or somebody put there, is not bundled."""
    stale = bundle.stage_app(tmp_path) / "client" / "stale.py"
    stale.write_text("")
    assert bundle.stage_app(tmp_path) == tmp_path / "fedretrain"
    assert not stale.exists()


def test_an_incomplete_installation_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing package or pyproject.toml names itself and what to do."""
    monkeypatch.setattr(bundle, "_package", lambda name: tmp_path / name)
    with pytest.raises(MachineError, match=r"expected app\.toml in it or pyproject\.toml beside it"):
        bundle.stage_app(tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(bundle, "FOLDERS", ("fedretrain", "no_such_package"))
    with pytest.raises(MachineError, match="lacks the package no_such_package"):
        bundle.stage_app(tmp_path / "out")


def test_flower_is_imported_only_to_build() -> None:
    """Importing the module costs no Flower command line."""
    import subprocess

    code = "import sys, fedretrain.bundle; sys.exit('flwr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=CHECKOUT).returncode == 0
