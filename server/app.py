"""The Flower ServerApp: what the run configuration asks for, done once.

``task`` is "run": the job in the run folder that ``run`` names is run, or resumed; where it is a check's
(``server.checking``), the sites are checked. What stops it is written to the folder as ``failure.json``, so that the
command which started Flower can report it with the right exit code:
``{"error": class name, "exit_code": int, "message": str}``. Or ``task`` is "deliver": the release in use is brought to
the sites that lack it, and what became of that stands in the federation's ``state/installed.json``.

``federation`` names the server's folder; without one the sites are a simulation's.
"""

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedretrain import atomic
from fedretrain.errors import ConfigurationError, FedretrainError, MachineError
from fedretrain.runfolder import RunFolder

from .checking.run import check
from .deliver import deliver
from .federation import Federation
from .guarded import guarded
from .kinds import is_check, is_trial
from .run import execute
from .trial import run_trial

app = ServerApp()
log = logging.getLogger(__name__)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Do the task; raises what ``execute``, ``check`` and ``deliver`` raise."""
    config = context.run_config
    task, run, folder = (str(config.get(key) or "") for key in ("task", "run", "federation"))
    federation = Federation.open(Path(folder)) if folder else None
    if task == "deliver" and federation is not None:
        deliver(federation, guarded(grid), _log)
    elif task in {"run", ""}:
        _run(RunFolder.open(Path(run)), guarded(grid), federation)
    else:
        raise ConfigurationError(f"task: expected 'run', or 'deliver' with a federation, got {task!r}")


def _run(folder: RunFolder, grid: Grid, federation: Federation | None) -> None:
    folder.failure.unlink(missing_ok=True)
    try:
        if is_check(folder):
            check(folder.load_job(), grid, folder, federation=federation)
        elif is_trial(folder):
            run_trial(folder.load_job(), grid, folder, federation=federation)
        else:
            execute(folder.load_job(), grid, folder, federation=federation)
    except Exception as error:
        code = error.exit_code if isinstance(error, FedretrainError) else FedretrainError.exit_code
        failure = {"error": type(error).__name__, "exit_code": code, "message": str(error)}
        with suppress(MachineError):  # on a full disk there is no room for this either
            atomic.write_json(folder.failure, failure)
        raise


def _log(event: str, **fields: Any) -> None:
    log.info("%s %s", event, fields)
