"""The commands that tell what watching found and decide about plans: `drift`, `plan`, `reject`.

`watch` and `approve` have sites asked and runs started, which may be simulated: they stand in ``simulations.cli_watch``
and are put beside these by ``fedretrain.cli``.

Invariants: importing this module loads neither NumPy nor Flower nor TensorFlow; the folder is a federation's or a
simulation's output, and is never made here.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedretrain.answers import Json, answers, say
from fedretrain.errors import ConfigurationError

from .options import DEFAULT_FOLDER, SIMULATED_FOLDER, to_type

if TYPE_CHECKING:
    from fedretrain.job import Job

    from .checking.document import Check
    from .drift.findings import Findings
    from .history import History

Folder = Annotated[
    Path, typer.Option("--folder", "--out", help="The federation's folder, or a simulation's output, that is watched.")
]
PlanArgument = Annotated[str, typer.Argument(metavar="PLAN", help="A plan's id, or its beginning.")]
By = Annotated[str | None, typer.Option(metavar="NAME", help="Who decides. Default: the user of this machine.")]


def register(app: typer.Typer) -> None:
    """Mount the commands on ``fedretrain server``."""
    for command in (drift, plan, reject):
        app.command()(command)


def drift(
    last: Annotated[int, typer.Option(min=1, help="How many of the last checks the table has.")] = 20,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw it over time, by feature and site.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Write it as a document, with the picture beside it.")
    ] = None,
    folder: Folder = DEFAULT_FOLDER,
    as_json: Json = False,
) -> None:
    """Show what checks found over time: drift by kind, feature and site, accuracy, and what sites do not tell."""
    with answers(as_json):
        from . import watching_text as text

        _check_files(plot, report)
        with existing(folder) as history:
            from .watching import pick_up

            pick_up(history, folder.resolve())
            checks, found = history.checks(), history.findings()
        if not checks:
            raise ConfigurationError(f"{folder}: expected a check that came to its end, got none; {_make(folder)}")
        if plot is not None:
            from .drift_plot import draw

            draw(found, plot.resolve(), _least_effect(folder.resolve(), checks[-1]))
        if report is not None:
            _write(report.resolve(), checks, found, _least_effect(folder.resolve(), checks[-1]))
        say(as_json, text.drift_lines(checks, found, last, folder), text.drift_value(checks, found))


def plan(
    job: Annotated[
        Path | None, typer.Argument(metavar="[JOB.toml]", help="Decide anew by this job. Default: show the last plan.")
    ] = None,
    folder: Folder = DEFAULT_FOLDER,
    as_json: Json = False,
) -> None:
    """Show the plan: what to do, by which evidence and rule, why nothing else, gain and cost, and who decided.

    With a job it is decided anew from what the last checks found, without asking the sites.
    """
    with answers(as_json):
        from . import watching_text as text
        from .decisions import find
        from .watching import plan_for, settle

        with existing(folder) as history:
            if job is None:
                settle(history, folder.resolve())
            else:
                plan_for(history, _job(job, folder), folder.resolve())
            kept = find(history)
        say(as_json, text.plan_lines(kept), text.plan_value(kept))


def reject(
    plan: PlanArgument,
    why: Annotated[str, typer.Option(help="The reason; it is kept with the plan.")] = "",
    by: By = None,
    folder: Folder = DEFAULT_FOLDER,
    as_json: Json = False,
) -> None:
    """Decide against a plan, with a reason. A plan is decided once."""
    with answers(as_json):
        from . import decisions
        from . import watching_text as text

        with existing(folder) as history:
            decision = decisions.reject(history, plan, decisions.person(by), why)
            kept = decisions.find(history, plan)
        say(as_json, [text.decision_line(kept.id, decision)], {"plan": kept.id, **vars(decision)})


def _make(folder: Path) -> str:
    """What to type where there are no checks; or where there are some, for who did not name a folder."""
    from .history import history_path

    if folder == DEFAULT_FOLDER and history_path(SIMULATED_FOLDER).is_file():
        return f"those of simulated sites are in another one: add --folder {SIMULATED_FOLDER}"
    return f"make one: {to_type('watch JOB.toml', folder)}"


def existing(folder: Path) -> "History":
    """The history in a folder that is watched; raises ConfigurationError where there is none."""
    from .history import History, history_path

    path = history_path(folder.resolve())
    if not path.is_file():
        raise ConfigurationError(f"{folder}: expected a folder with checks, got none in {path}; {_make(folder)}")
    return History.open(path)


def _job(path: Path, folder: Path) -> "Job":
    """The job of a file, with names that there may be; where simulated sites lie does not matter in a federation."""
    from fedretrain.job import load_job

    from .federation import is_federation
    from .watchable import check_names

    job = load_job(path)
    meant = job.model_copy(update={"simulation": None}) if is_federation(folder) else job
    check_names(meant, folder.resolve())
    return meant


def _check_files(plot: Path | None, report: Path | None) -> None:
    """Raises ConfigurationError or ModuleNotFoundError for what would fail after everything was read."""
    for option, path, suffix in (("--plot", plot, ".png"), ("--report", report, ".md")):
        if path is None:
            continue
        if path.suffix != suffix or not path.resolve().parent.is_dir():
            raise ConfigurationError(
                f"{option}: expected a file that ends in {suffix} in a folder that exists, got {path}"
            )
        importlib.import_module("matplotlib")


def _least_effect(out: Path, check: "Check") -> float | None:
    """The ``watch.effect`` that a check was judged by; None where its folder is gone."""
    from fedretrain.checks import WatchSection
    from fedretrain.runfolder import RunFolder

    folder = RunFolder(out / "runs" / check.check)
    return (folder.load_job().watch or WatchSection()).effect if folder.job.is_file() else None


def _write(path: Path, checks: "list[Check]", found: "list[Findings]", effect: float | None) -> None:
    """The report, and its picture under the same name."""
    from fedretrain import atomic

    from . import watching_text as text
    from .drift_plot import draw

    picture = path.with_suffix(".png")
    left_out = draw(found, picture, effect)
    lines = text.report(checks, found, picture.name, left_out)
    atomic.write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
