"""Plain Flower: the quickstart beside this file, by ``flwr run`` on Flower's simulation runtime, which is Ray.

One actor for each core, one thread in each. SuperLink is started with less waiting than Flower's own
(``simulations.superlink``), which is in Flower's favour.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from fedretrain.processes import clean_environment
from simulations.benchmarks.race import Command, Work
from simulations.superlink import SuperLink

_PROJECT = """\
[project]
name = "quickstart"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "benchmark"
[tool.flwr.app.components]
serverapp = "quickstart.server_app:app"
clientapp = "quickstart.client_app:app"
[tool.flwr.app.config]
"""


def prepare(folder: Path, work: Work, *, keep: bool = False) -> Command:
    """The app and how it is run; with ``keep`` an actor keeps its model from message to message."""
    app = folder / "app"
    shutil.copytree(Path(__file__).parent / "quickstart", app / "quickstart", ignore=shutil.ignore_patterns("*.pyc"))
    sites = len(np.load(work.data / "y.npy", mmap_mode="r"))
    config: dict[str, Any] = {"data": str(work.data), "model": work.case.model, "epochs": work.case.epochs}
    config |= {"batch": work.batch, "rate": work.rate, "keep": keep, "sites": sites, "per-round": work.per_round}
    config |= {"out": str(folder / "marks.jsonl")}
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in config.items())
    (app / "pyproject.toml").write_text(_PROJECT + lines, encoding="utf-8")
    module = [sys.executable, "-P", "-m", __name__, str(folder), str(sites), str(work.processes)]
    paths = os.pathsep.join(str(Path(p or ".").absolute()) for p in sys.path)
    return Command(module, clean_environment(TF_CPP_MIN_LOG_LEVEL="3", PYTHONPATH=paths))


def main(folder: Path, sites: int, processes: int) -> None:
    """Run the app until Flower holds it for finished, or this process is ended."""
    (folder / "f").mkdir()
    federation = {"num-supernodes": sites, "client-resources-num-cpus": 1, "init-args-num-cpus": processes}
    with SuperLink(folder / "f", folder / "flower.log") as link:
        run = link.run(folder / "app", {}, federation)
        while link.alive and not link.finished(run):
            time.sleep(30)  # asking takes a process


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
