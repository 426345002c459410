"""``fedretrain compare-policies``: never to retrain, on schedule, or as the planner says, over worlds that go on.

Invariants: importing this module loads neither NumPy nor Flower nor TensorFlow; without ``--out`` nothing is left
behind, however the command ends; what is asked for beside the table is checked before the first world begins.
"""

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedretrain.answers import Json, answers, say, table

from .outputs import check_outputs

if TYPE_CHECKING:
    from .benchmarks.environment import Environment
    from .loop.outcome import Course
    from .loop.worlds import Comparison

app = typer.Typer(add_completion=False, rich_markup_mode=None)

STEPS, EVERY = 12, 2


@app.command("compare-policies")
def compare_policies(  # noqa: PLR0913, PLR0917  # the command's options
    scenarios: Annotated[str | None, typer.Option(metavar="A,B,C", help="Of worlds. Default: all.")] = None,
    policies: Annotated[str | None, typer.Option(metavar="A,B", help="Default: never,schedule,planner.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="How many; each has data and a model of its own.")] = 1,
    first: Annotated[int, typer.Option("--seed", min=0, max=2**20, help="The first of them.")] = 0,
    steps: Annotated[int, typer.Option(min=4, max=120, help="Months that each world lasts.")] = STEPS,
    every: Annotated[int, typer.Option(min=1, max=120, help="Steps between retrainings of the schedule.")] = EVERY,
    workers: Annotated[int | None, typer.Option(min=1, max=1000, help="Processes. Default: cores.")] = None,
    out: Annotated[Path | None, typer.Option(help="Keep worlds, runs and plans in this folder, which is made.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw accuracy over time.")] = None,
    into: Annotated[Path | None, typer.Option(metavar="FILE.md", help="Replace the table in a document.")] = None,
    as_json: Json = False,
) -> None:
    """Let worlds pass under each policy; tell accuracy over time on what was current, retrainings, bytes, seconds.

    A world is a scenario of `fedretrain simulate --scenario`: covariate, concept, label-shift, new-classes, new-site,
    seasonal or none. Accuracy is that of the model in use while a step lasts, before anything is decided at its end.
    """
    with answers(as_json):
        what = _comparison(scenarios, policies, range(first, first + seeds), steps, every)
        check_outputs(out, plot, into)
        courses, environment = _courses(what, out, workers)
        _keep(what, courses, environment, plot, into)
    _say(what, courses, environment, as_json)


def _comparison(scenarios: str | None, policies: str | None, seeds: range, steps: int, every: int) -> "Comparison":
    from .loop.conditions import ABOUT
    from .loop.policies import POLICIES
    from .loop.worlds import Comparison

    what = Comparison(_names(scenarios, ABOUT), _names(policies, POLICIES), tuple(seeds), steps, every)
    what.check()
    return what


def _names(given: str | None, known: Any) -> tuple[str, ...]:
    return tuple(known) if given is None else tuple(dict.fromkeys(name.strip() for name in given.split(",")))


def _courses(what: "Comparison", out: Path | None, workers: int | None) -> "tuple[list[Course], Environment]":
    """All worlds, with a bar on standard error while they pass."""
    from .benchmarks.environment import Environment
    from .devices import default_workers
    from .loop.streams import SITES
    from .loop.watched import Watched
    from .loop.worlds import compare
    from .quiet import console_stream, diverted_stderr

    before = Environment.now()
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    with ExitStack() as stack:
        folder = out.resolve() if out else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedretrain-")))
        stream = stack.enter_context(console_stream())
        stack.enter_context(diverted_stderr(folder / "logs" / "server.log"))
        watched = stack.enter_context(Watched(stream, what.worlds))
        count = min(workers or default_workers(SITES), SITES)
        return [watched.done(course) for course in compare(what, folder, count, watched.say)], before.ended()


def _keep(
    what: "Comparison", courses: "list[Course]", environment: "Environment", plot: Path | None, into: Path | None
) -> None:
    from .benchmarks.table import insert
    from .comparing.summary import told
    from .loop import summary
    from .loop.plots import draw

    if plot is not None:
        draw(f"Accuracy on what was current, {told(what.seeds)}", courses, plot.resolve())
    if into is not None:
        insert(into, summary.table(what, courses, environment, command(what)))


def _say(what: "Comparison", courses: "list[Course]", environment: "Environment", as_json: bool) -> None:
    from .loop import summary

    found = summary.grouped(courses)
    lines = [*table([summary.COLUMNS, *summary.rows(found)]), "", *summary.verdicts(found)]
    say(as_json, lines, summary.as_json(what, courses, environment))


def command(what: "Comparison") -> str:
    """What makes the table again."""
    from .loop.conditions import ABOUT
    from .loop.policies import POLICIES

    given: dict[str, Any] = {}
    if what.scenarios != tuple(ABOUT):
        given["--scenarios"] = ",".join(what.scenarios)
    if what.policies != POLICIES:
        given["--policies"] = ",".join(what.policies)
    given["--seeds"] = len(what.seeds)
    if what.seeds[0]:
        given["--seed"] = what.seeds[0]
    if what.steps != STEPS:
        given["--steps"] = what.steps
    if what.every != EVERY:
        given["--every"] = what.every
    return " ".join(["fedretrain compare-policies", *(f"{name} {value}" for name, value in given.items())])
