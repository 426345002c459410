"""The Flower ServerApp: runs the job in the run folder that the run configuration names under ``run``.

What stops it is written to the folder as ``failure.json``, so that the command which started Flower can report it with
the right exit code: ``{"error": class name, "exit_code": int, "message": str}``.
"""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedretrain import atomic
from fedretrain.errors import FedretrainError
from fedretrain.runfolder import RunFolder

from .run import execute

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run, or resume, the run in the folder; raises what ``execute`` raises."""
    folder = RunFolder.open(Path(str(context.run_config["run"])))
    folder.failure.unlink(missing_ok=True)
    try:
        execute(folder.load_job(), grid, folder)
    except Exception as error:
        code = error.exit_code if isinstance(error, FedretrainError) else FedretrainError.exit_code
        failure = {"error": type(error).__name__, "exit_code": code, "message": str(error)}
        atomic.write_json(folder.failure, failure)
        raise
