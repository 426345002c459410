"""pfl-research (PyTorch on the CPU): the app beside this file, in an environment of its own, one process for each core.

The environment is made from ``pfl/requirements.txt`` by pip, so it follows this machine's pip configuration, and kept
in the folder that ``environment_folder`` names for the next time. It has nothing of this project in it.
"""

import os
import subprocess
import sys
from pathlib import Path

from fedretrain.digest import sha256
from fedretrain.errors import MachineError
from fedretrain.processes import clean_environment
from simulations.benchmarks.race import Command, Work

_APP = Path(__file__).parent / "pfl"
_INSTALL_S = 1800


def environment_folder() -> Path:
    """Where the environment is kept: ``$XDG_CACHE_HOME/fedretrain``, one for each state of the requirements."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = sha256((_APP / "requirements.txt").read_bytes() + version.encode())
    return cache / "fedretrain" / f"pfl-{digest[:12]}"


def install() -> Path:
    """The environment's folder of commands, made if need be; raises MachineError where pip cannot."""
    home = environment_folder()
    done = home / "installed"
    if not done.exists():
        for call in (
            [sys.executable, "-m", "venv", "--clear", str(home)],
            [str(home / "bin" / "pip"), "install", "--quiet", "-r", str(_APP / "requirements.txt")],
        ):
            try:
                subprocess.run(call, check=True, capture_output=True, text=True, timeout=_INSTALL_S)
            except (OSError, subprocess.SubprocessError) as error:
                said = str(getattr(error, "stderr", "") or "").strip().splitlines()[-3:]
                raise MachineError(f"pfl-research cannot be installed: {error} {' '.join(said)}") from error
        done.touch()
    return home / "bin"


def prepare(folder: Path, work: Work) -> Command:
    """The command; installs pfl-research where it is not yet, which no clock sees."""
    launcher = [str(install() / "torchrun"), "--standalone", "--nproc-per-node", str(work.processes)]
    options = {
        "data": work.data,
        "model": work.case.model,
        "epochs": work.case.epochs,
        "per-round": work.per_round,
        "batch": work.batch,
        "rate": work.rate,
        "out": folder / "marks.jsonl",
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return Command([*launcher, str(_APP / "app.py"), *arguments], clean_environment(OMP_NUM_THREADS="1"))
