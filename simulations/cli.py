"""``fedretrain simulate``: options in, progress on standard error, the result on standard output.

Invariants: importing this module loads neither NumPy nor Flower nor TensorFlow; with ``--json`` the last line on
standard output is one JSON object, however the run ended.
"""

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedretrain.errors import ConfigurationError, FedretrainError, RunFailed

if TYPE_CHECKING:
    from .cli_loop import Asked
    from .task import Options, Task

EXIT_CODES = {"released": 0, "rejected": 3}
INTERRUPTED = 130

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class Engine(StrEnum):
    """Where the sites run."""

    local = "local"
    flower = "flower"


class Poison(StrEnum):
    """How the demo's last site misbehaves."""

    scale = "scale"
    nan = "nan"
    labels = "labels"


@app.command(
    epilog="""\b
Exit codes:
  0    released; --scenario: all steps are over
  1    anything not named here, such as a full disk
  2    the job, the data or an option is wrong
  3    rejected by the gate; the model in use stays
  4    too few sites, or rounds that could not be completed
  130  interrupted; the run can be resumed
"""
)
def simulate(  # noqa: PLR0917  # the command's options
    job: Annotated[Path | None, typer.Argument(metavar="[JOB.toml]", help="Default: the built-in demo.")] = None,
    sites: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, help="Only the job's first sites by name; the demo makes so many (5)."),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, max=100_000, help="Instead of the job's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Instead of the job's.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Processes that serve the sites. Default: cores.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder. Default: retrained/RUN.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")] = False,
    engine: Annotated[Engine | None, typer.Option(help="Worker processes, or Flower's own runtime.")] = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Go on with a run that was stopped.")] = None,
    poison: Annotated[
        Poison | None, typer.Option(help="In the demo: the last site sends such updates, or has such labels.")
    ] = None,
    demo: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Only make the demo's model, data and job, in DIR.")
    ] = None,
    scenario: Annotated[
        str | None, typer.Option(metavar="NAME", help="A world of --steps months that retrains by itself.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=4, max=120, help="Of --scenario, in months (12).")] = None,
) -> None:
    """Run a retraining job on this machine: rounds at the sites, the gate, a signed release.

    Without a job it runs the built-in demo: handwritten digits at five hospitals that replaced their scanners.
    With --scenario the whole loop runs by itself, step by step: watch, plan, retrain, gate, release. NAME is covariate,
    concept, label-shift, new-classes, new-site, seasonal or none.
    """
    from .task import Options

    options = Options(job, sites, rounds, seed, workers, out, engine, resume, poison)
    if scenario is not None or steps is not None:
        _run_scenario(_asked(scenario, steps, options, demo), as_json)
        return
    if demo is not None:
        _make_demo(demo, options, as_json)
        return
    result, task = _run(options, as_json)
    if as_json:
        _print_json(result)
    else:
        _show(task, result)
    raise typer.Exit(EXIT_CODES[result["outcome"]])


def _make_demo(folder: Path, options: "Options", as_json: bool) -> None:
    """The demo's files alone; raises ConfigurationError where an option asks for more."""
    if options.only_for_a_run():
        raise ConfigurationError(
            "--demo: makes files and runs nothing; of the other options only --sites and --seed go with it"
        )
    from .demo import Recipe, ensure_demo
    from .quiet import console_stream, diverted_stderr
    from .task import DEMO_SITES

    recipe = Recipe.make(options.seed or 0, options.sites or DEMO_SITES)
    with console_stream() as stream, diverted_stderr(Path(os.devnull)):  # TensorFlow greets at length
        job = ensure_demo(folder.resolve(), recipe, lambda line: typer.echo(line, file=stream))
    value = {"job": str(job), "sites": recipe.sites}
    typer.echo(json.dumps(value) if as_json else f"{job}, beside it the model, the holdouts and {recipe.sites} sites")


def _asked(scenario: str | None, steps: int | None, options: "Options", demo: Path | None) -> "Asked":
    """What a world is; raises ConfigurationError where an option does not go with it."""
    from .cli_loop import Asked

    if scenario is None:
        raise ConfigurationError("--steps: of a world; expected --scenario NAME beside it")
    others = {"JOB": options.job, "--rounds": options.rounds, "--engine": options.engine, "--demo": demo}
    others |= {"--resume": options.resume, "--poison": options.poison}
    for name, value in others.items():
        if value is not None:
            raise ConfigurationError(f"--scenario: has jobs of its own; expected no {name} beside it")
    return Asked(scenario, steps, options.sites, options.seed, options.workers, options.out)


def _run_scenario(asked: "Asked", as_json: bool) -> None:
    from fedretrain.answers import answers, say

    from . import cli_loop

    with answers(as_json):
        course, out = cli_loop.run_scenario(asked)
    say(as_json, cli_loop.lines(course, out), cli_loop.as_json(course, out))


def _run(options: "Options", as_json: bool) -> tuple[dict[str, Any], "Task"]:
    """The result; where there is none, what is known of the run is shown, and the reason raised."""
    from rich.console import Console

    from fedretrain.progress import Progress

    from .quiet import console_stream
    from .simulate import simulate as run
    from .task import plan

    task = None
    try:
        with console_stream() as stream, Progress(Console(file=stream)) as progress:
            task = plan(options)
            return run(task, progress), task
    except (Exception, KeyboardInterrupt) as error:
        if as_json:
            _print_json(_failure(task, error))
        elif task is not None and isinstance(error, RunFailed):
            _show(task, None)
        if task is not None and task.begun and _can_resume(task, error):
            typer.echo(f"what was finished is kept; to go on: {task.resume_command}", err=True)
        raise


def _can_resume(task: "Task", error: BaseException) -> bool:
    """Whether there is something to go on with; what is wrong with a job, or with data at the start, stays wrong."""
    if isinstance(error, RunFailed) and _events(task, "site-declined") and not _events(task, "round-finished"):
        return False
    return getattr(error, "exit_code", None) != ConfigurationError.exit_code


def _show(task: "Task", result: dict[str, Any] | None) -> None:
    """The tables; of a run without a verdict, its rounds so far."""
    from rich.console import Console

    from fedretrain.report import show_result, show_rounds

    if result is None:
        show_rounds(Console(), _events(task, "round-finished"))
    else:
        show_result(Console(), result, task.out, _events(task, "site-declined"))


def _failure(task: "Task | None", error: BaseException) -> dict[str, Any]:
    """The JSON object of a run without a verdict."""
    code = error.exit_code if isinstance(error, FedretrainError) else FedretrainError.exit_code
    if isinstance(error, KeyboardInterrupt):
        code = INTERRUPTED
    return {
        "run_id": task.run_id if task else None,
        "outcome": "failed",
        "release": None,
        "rounds": _events(task, "round-finished"),
        "gate": None,
        "bytes": None,
        "seconds": None,
        "error": {"kind": type(error).__name__, "message": str(error), "exit_code": code},
    }


def _events(task: "Task | None", kind: str) -> list[dict[str, Any]]:
    """The run's events of one kind so far."""
    from fedretrain.runfolder import RunFolder

    return [event for event in RunFolder(task.root).read_events() if event["event"] == kind] if task else []


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, allow_nan=False))
