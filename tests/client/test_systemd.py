"""The units that ``client up --systemd`` prints."""

import shutil
import subprocess
from pathlib import Path

import pytest

from client.home import Home
from client.sitefile import load_site
from client.systemd import text, units

from .sites import Job, joined


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A joined site."""
    return joined(tmp_path / "h", None, Job())


def test_the_trainer_has_no_network_and_the_others_no_data(home: Home) -> None:
    """Nor the key by which the trainer signs."""
    made = units(home, load_site(home.site))
    trainer = made["fedretrain-trainer.service"]
    assert "PrivateNetwork=yes" in trainer
    for name in ("supernode", "executor"):
        unit = made[f"fedretrain-{name}.service"]
        assert f"InaccessiblePaths=-{home.root / 'data.npz'}" in unit
        assert f"InaccessiblePaths=-{home.signing_key}" in unit
        assert "PrivateNetwork" not in unit
    assert all(name in text(home, load_site(home.site)) for name in made)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_them(home: Home, tmp_path: Path) -> None:
    """By its own verification."""
    for name, unit in units(home, load_site(home.site)).items():
        (tmp_path / name).write_text(unit)
    files = sorted(map(str, tmp_path.glob("*.service")))
    done = subprocess.run(
        ["systemd-analyze", "verify", *files], capture_output=True, text=True, check=False, timeout=60
    )
    assert "Unknown" not in done.stderr
