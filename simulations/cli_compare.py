"""``fedretrain compare``: what ways to retrain cost, gain and forget, side by side on a drift that is built in.

Invariants: importing this module loads neither NumPy nor Flower nor TensorFlow; without ``--out`` nothing is left
behind, however the command ends; what is asked for beside the table is checked before the first run.
"""

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedretrain.answers import Json, answers, say, table
from fedretrain.errors import ConfigurationError

from .outputs import check_outputs

if TYPE_CHECKING:
    from .benchmarks.environment import Environment
    from .comparing.run import Comparison, Found
    from .comparing.summary import Way

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def compare(  # noqa: PLR0913, PLR0917  # the command's options
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO", help="A drift's name.")],
    modes: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Example jobs by name. Default: all that mean something.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="How many; each has data and a model of its own.")] = 1,
    first: Annotated[int, typer.Option("--seed", min=0, max=2**31, help="The first of them.")] = 0,
    sites: Annotated[int, typer.Option(min=2, max=20, help="How many sites share the data.")] = 5,
    workers: Annotated[int | None, typer.Option(min=1, max=1000, help="Processes. Default: cores.")] = None,
    out: Annotated[Path | None, typer.Option(help="Keep scenarios and runs in this folder, which is made.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw accuracy over rounds.")] = None,
    into: Annotated[Path | None, typer.Option(metavar="FILE.md", help="Replace the table in a document.")] = None,
    as_json: Json = False,
) -> None:
    """Run ways to retrain on a drift, and tell accuracy on old and new, forgetting, bytes and seconds of each.

    SCENARIO is appearance, new-classes, meaning or label-shift. A way is an example job; `fedretrain scenario` writes
    them. One that is refused is a row with the reason; where all are, the exit code is 2.
    """
    with answers(as_json):
        what = _comparison(scenario, modes, range(first, first + seeds), sites)
        check_outputs(out, plot, into)
        ways, environment = _ways(what, out, workers)
        _keep(what, ways, environment, plot, into)
    _say(what, ways, environment, as_json)
    if not any(way.outcomes for way in ways):
        raise typer.Exit(ConfigurationError.exit_code)


def _comparison(scenario: str, modes: str | None, seeds: range, sites: int) -> "Comparison":
    from .comparing.run import Comparison
    from .scenarios.registry import Drift, examples

    Drift(scenario, 0, sites)
    names = [job.stem for job in examples(scenario)] if modes is None else [name.strip() for name in modes.split(",")]
    what = Comparison(scenario, tuple(dict.fromkeys(names)), tuple(seeds), sites)
    what.check()
    return what


def _ways(what: "Comparison", out: Path | None, workers: int | None) -> "tuple[list[Way], Environment]":
    from .benchmarks.environment import Environment
    from .comparing.summary import ways

    before = Environment.now()
    return ways(what, _runs(what, out, workers)), before.ended()


def _keep(
    what: "Comparison", ways: "list[Way]", environment: "Environment", plot: Path | None, into: Path | None
) -> None:
    from .benchmarks.table import insert
    from .comparing import summary
    from .comparing.plots import draw

    if plot is not None:
        draw(f"{what.scenario}, {summary.told(what.seeds)}", ways, plot.resolve())
    if into is not None:
        insert(into, summary.table(what, ways, environment, command(what)))


def _say(what: "Comparison", ways: "list[Way]", environment: "Environment", as_json: bool) -> None:
    from .comparing import summary

    say(as_json, table([summary.COLUMNS, *summary.rows(ways)]), summary.as_json(what, ways, environment))


def _runs(what: "Comparison", out: Path | None, workers: int | None) -> "list[Found]":
    """All runs, with a bar on standard error while they go on."""
    from .comparing.run import compare as run
    from .comparing.watched import Watched
    from .devices import default_workers
    from .quiet import console_stream, diverted_stderr

    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    with ExitStack() as stack:
        folder = out.resolve() if out else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedretrain-")))
        stream = stack.enter_context(console_stream())
        stack.enter_context(diverted_stderr(folder / "logs" / "server.log"))
        watched = stack.enter_context(Watched(stream, len(what.ways) * len(what.seeds)))
        count = min(workers or default_workers(what.sites), what.sites)
        return [watched.done(found) for found in run(what, folder, count, watched.say)]


def command(what: "Comparison") -> str:
    """What makes the table again."""
    from .scenarios.registry import examples

    given: dict[str, Any] = {}
    if list(what.ways) != [job.stem for job in examples(what.scenario)]:
        given["--modes"] = ",".join(what.ways)
    given["--seeds"] = len(what.seeds)
    if what.seeds[0]:
        given["--seed"] = what.seeds[0]
    if what.sites != 5:
        given["--sites"] = what.sites
    return " ".join(["fedretrain compare", what.scenario, *(f"{name} {value}" for name, value in given.items())])
