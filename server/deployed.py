"""A federation's sites as a place to watch (``server.watching``) or to try settings: what is asked goes by `server up`.

Invariant: nothing is done here but writing down what is wanted and waiting for it, so that a check, or a trial of a
search, goes on, and is not lost, when whoever waits for it does not.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedretrain.errors import ConfigurationError, FedretrainError, MachineError, RunFailed, RunStopped
from fedretrain.job import Job
from fedretrain.progress import Progress
from fedretrain.runfolder import RunFolder

from . import desired, operations
from .federation import Federation
from .kinds import mark_trial
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
        raise self._error(f"check {folder.run_id}", folder, state)

    def trial(self, job: Job, folder: RunFolder) -> dict[str, Any]:  # noqa: ARG002  # it stands in the folder
        """Ask `server up` for a trial of a search and wait for it; its record (``server.trial``).

        Raises:
            FedretrainError: As ``check``.
        """
        from .trial import read_trial  # loads Flower

        mark_trial(folder)
        if operations.run_state(folder, running=True) != "tried":
            desired.ask(folder, "run")
        state = until_ended(self._federation, folder, self._progress)
        record = read_trial(folder) if state == "tried" else None
        if record is not None:
            return record
        if state == "stopped":
            raise RunStopped(f"trial {folder.run_id}: was stopped; to go on: start the search again")
        raise self._error(f"trial {folder.run_id}", folder, state)

    def run(self, folder: RunFolder) -> None:
        """Ask `server up` for the run; does not wait for it."""
        desired.ask(folder, "run")

    def _error(self, what: str, folder: RunFolder, state: str) -> FedretrainError:
        failed = desired.failure(folder)
        kind = _ERRORS.get(operations.exit_code(state, failed) or 1, MachineError)
        return kind(f"{what}: {operations.why(folder)}")
