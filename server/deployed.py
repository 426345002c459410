"""A federation's sites as a place to watch (``server.watching``): what is asked goes through `server up`.

Invariant: nothing is done here but writing down what is wanted and waiting for it, so that a check goes on, and is not
lost, when whoever waits for it does not.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedretrain.errors import ConfigurationError, FedretrainError, MachineError, RunFailed, RunStopped
from fedretrain.job import Job
from fedretrain.progress import Progress
from fedretrain.runfolder import RunFolder

from . import desired, operations
from .federation import Federation
from .watch import until_ended
from .watching import read_check

if TYPE_CHECKING:
    from .checking.document import Check

_ERRORS: Final = {error.exit_code: error for error in (MachineError, ConfigurationError, RunFailed)}


class Deployed:
    """The members of a federation.

    Args:
        federation: Whose.
        progress: Is told what happens.
    """

    def __init__(self, federation: Federation, progress: Progress) -> None:
        self._federation = federation
        self._progress = progress

    @property
    def out(self) -> Path:
        """The federation's folder."""
        return self._federation.folder

    def job(self, job: Job) -> Job:
        """A job as it is meant here: where a simulation's sites lie does not matter."""
        return job.model_copy(update={"simulation": None})

    def check(self, job: Job, folder: RunFolder) -> "Check":  # noqa: ARG002  # it stands in the folder
        """Ask `server up` for the check and wait for it.

        Raises:
            FedretrainError: It failed, with its reason; or RunStopped: its operator stopped it.
        """
        desired.ask(folder, "run")
        state = until_ended(self._federation, folder, self._progress)
        if state == "checked":
            return read_check(folder)
        if state == "stopped":
            raise RunStopped(f"check {folder.run_id}: was stopped; to go on: fedretrain server resume {folder.run_id}")
        raise self._error(folder, state)

    def run(self, folder: RunFolder) -> None:
        """Ask `server up` for the run; does not wait for it."""
        desired.ask(folder, "run")

    def _error(self, folder: RunFolder, state: str) -> FedretrainError:
        failed = desired.failure(folder)
        kind = _ERRORS.get(operations.exit_code(state, failed) or 1, MachineError)
        return kind(f"check {folder.run_id}: {operations.why(folder)}")
