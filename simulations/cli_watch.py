"""``fedretrain server watch`` and ``approve``: sites are asked, and runs started, in a federation or simulated here.

They stand among the server's commands because who watches a model uses them, and here because a job's sites may be
simulated: ``server`` does not know of simulations, and ``fedretrain.cli`` puts the commands in their place.

Invariants: importing this module loads neither NumPy nor Flower nor TensorFlow; a federation's folder means its
members, whatever a job says of simulated sites.
"""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedretrain.answers import Json, answers, say
from fedretrain.errors import ConfigurationError
from server.options import DEFAULT_FOLDER, SIMULATED_FOLDER

if TYPE_CHECKING:
    from fedretrain.job import Job
    from fedretrain.progress import Progress
    from fedretrain.runfolder import RunFolder
    from server.checking.document import Check
    from server.deployed import Deployed
    from server.history import History

INTERRUPTED = 128 + signal.SIGINT

watching = typer.Typer(add_completion=False, rich_markup_mode=None)
approving = typer.Typer(add_completion=False, rich_markup_mode=None)

Workers = Annotated[
    int | None, typer.Option(min=1, max=1000, help="Processes that serve simulated sites. Default: cores.")
]


@watching.command()
def watch(  # noqa: PLR0913, PLR0917  # the command's options
    job: Annotated[Path, typer.Argument(metavar="JOB.toml", help="Its tables [watch] and [plan] say how.")],
    every: Annotated[
        str | None, typer.Option(metavar="TIME", help="Go on, once in such a time: 90s, 30m, 6h, 1d; Ctrl-C ends it.")
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Carry plans out that [plan.auto] allows.")] = False,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            "--out",
            help="The federation's folder, or one for a simulation's output. Default: federation, for a job with "
            "simulated sites: watched.",
        ),
    ] = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Check data and model at the sites without training, and say what to do about it.

    What is watched is the release in use, else the job's model. Sites answer with counts, as far as their policies
    allow. A job with [simulation] is watched at its simulated sites, another one at the federation's, by `server up`.
    """
    with answers(as_json):
        from fedretrain.job import load_job
        from fedretrain.planning import duration
        from server.history import History, history_path
        from server.watchable import check_names
        from server.watching import alone, keep_looking, last_check

        period = None if every is None else _period(every, duration)
        loaded = load_job(job)
        try:
            with (
                _place(folder, loaded, workers) as place,
                alone(place.out),
                History.open(history_path(place.out)) as history,
            ):
                meant = place.job(loaded)
                check_names(meant, place.out)
                if period is None:
                    _look(place, meant, history, auto, as_json)
                    return
                last = last_check(history)
                keep_looking(lambda: _look(place, meant, history, auto, as_json), period, last, _warn)
        except KeyboardInterrupt:
            typer.echo("no longer watching; a check that a federation was asked for goes on, and is not lost", err=True)
            raise typer.Exit(INTERRUPTED) from None


@approving.command()
def approve(  # noqa: PLR0913, PLR0917  # the command's options
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="A plan's id, or its beginning.")],
    why: Annotated[str, typer.Option(help="The reason; it is kept with the plan.")] = "",
    by: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who decides. Default: the user of this machine.")
    ] = None,
    folder: Annotated[
        Path, typer.Option("--folder", "--out", help="The federation's folder, or a simulation's output.")
    ] = DEFAULT_FOLDER,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Decide for a plan, and have it done: a run is started, or an older release put in use again.

    In a federation `server up` starts the run; at simulated sites it is run here to its end. A plan is decided once,
    and only the latest one, while the release it was made for is in use.
    """
    with answers(as_json):
        from server import decisions
        from server import watching_text as text
        from server.cli_watch import existing

        who = decisions.person(by)
        with existing(folder) as history:
            kept = decisions.find(history, plan)
            with _place(folder, None, workers) as place:
                decision = decisions.carry_out(place, history, kept.id, decisions.Voice("approved", who, why))
            done = decisions.find(history, kept.id)
        value = {"plan": kept.id, **vars(decision), "score": done.score}
        say(as_json, text.carried_out_lines(done, decision, folder), value)


def _look(place: "Deployed | Simulated", job: "Job", history: "History", auto: bool, as_json: bool) -> None:
    """One check, its findings and its plan, told; with ``auto`` carried out where nobody has to be asked."""
    from fedretrain.planning import PlanSection
    from server import decisions
    from server import watching_text as text
    from server.watching import look

    seen = look(place, job, history)
    tell: Callable[[Iterable[str]], None] = (lambda _: None) if as_json else (lambda lines: say(False, lines, None))
    tell(text.seen_lines(seen.check, seen.findings, seen.plan, place.out))
    decision, waits = None, "for a decision"
    if seen.plan.acts and auto:
        decision, waits = decisions.by_itself(place, history, seen.plan, job.plan or PlanSection())
    if decision is not None:
        tell(text.carried_out_lines(decisions.find(history, seen.plan.id), decision, place.out))
    elif seen.plan.acts:
        tell(text.waiting_lines(seen.plan, waits, place.out))
    value = {
        "check": seen.check.to_json(),
        "findings": seen.findings.to_json(),
        "plan": seen.plan.to_json(),
        "decision": text.decision_value(decision),
    }
    if as_json:
        say(True, (), value)


def _period(text: str, duration: Callable[[str], timedelta]) -> timedelta:
    try:
        return duration(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"--every: {error}") from None


def _warn(text: str) -> None:
    typer.echo(text, err=True)


# --- places ---


@contextmanager
def _place(folder: Path | None, job: "Job | None", workers: int | None) -> "Iterator[Deployed | Simulated]":
    """Where the sites are: a federation's, where the folder is one; else simulated."""
    from rich.console import Console

    from fedretrain.progress import Progress
    from server.federation import Federation, is_federation

    from .quiet import console_stream

    simulated = job is not None and job.simulation is not None
    out = folder or (SIMULATED_FOLDER if simulated else DEFAULT_FOLDER)
    with console_stream() as stream, Progress(Console(file=stream)) as progress:
        if is_federation(out) or not (simulated or job is None):
            from server.deployed import Deployed

            yield Deployed(Federation.open(out), progress)
        else:
            yield Simulated(out.resolve(), workers, progress)


class Simulated:
    """A job's simulated sites, in worker processes of this machine.

    Args:
        out: The folder of runs, registry and history.
        workers: Processes; None for the default.
        progress: Is told what happens.
    """

    def __init__(self, out: Path, workers: int | None, progress: "Progress") -> None:
        self.out = out
        self._workers = workers
        self._progress = progress
        os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

    def job(self, job: "Job") -> "Job":
        """The job as it is."""
        return job

    def check(self, job: "Job", folder: "RunFolder") -> "Check":
        """Ask the sites; raises as ``server.checking.run.check``."""
        from fedretrain.simsites import simulated_sites

        from .devices import default_workers
        from .pool import WorkerPool
        from .quiet import diverted_stderr

        sources, logs = simulated_sites(job), folder.root / "logs"
        count = min(self._workers or default_workers(len(sources)), len(sources))
        self._progress.say("starting the workers")
        with diverted_stderr(logs / "server.log"), WorkerPool(count, logs=logs) as pool:
            self._progress.say("loading TensorFlow and the model")
            from client.trainer import configure_process
            from server.checking.run import check
            from server.events import EventLog

            from .engine import LocalGrid
            from .worker import Sites

            configure_process()
            sites, tell = Sites(sources, folder.store, job.model.allow_modules), EventLog(folder, self._progress)
            with LocalGrid(sites, pool=pool, on_event=lambda event: tell(**event)) as grid:
                return check(job, grid, folder, self._progress)

    def run(self, folder: "RunFolder") -> None:
        """Run a job to its end; raises as ``server.run.execute``."""
        from fedretrain.simsites import simulated_sites

        from .simulate import simulate
        from .task import Task

        job = folder.load_job()
        task = Task(self.out, folder.run_id, len(simulated_sites(job)), job, workers=self._workers)
        simulate(task, self._progress)
