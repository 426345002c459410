"""What a round costs beside training: plain Flower and this project, the same model and data, in one command.

Use::

    python -m simulations.benchmarks.round_overhead --mb 1 --sites 2 --rounds 10

A machine that does something else meanwhile measures that too: the load before and after is printed with the result.
Everything is on one machine, so a megabyte on the wire costs CPU time and no waiting.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedretrain.errors import FedretrainError

from . import federated, plain
from .measured import Costs

PLAIN, OURS = "plain Flower", "fedretrain"
_WAYS: dict[str, Callable[[Path, float, int, int, float], Costs]] = {PLAIN: plain.measure, OURS: federated.measure}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    options = _parse(arguments)
    console = Console(stderr=True)
    before = os.getloadavg()[0]
    found: dict[str, Costs] = {}
    try:
        for name in [PLAIN, OURS] if options.only is None else [PLAIN if options.only == "plain" else OURS]:
            console.print(f"{name}: {options.sites} sites, {options.mb:g} MiB, {options.rounds} rounds", style="dim")
            found[name] = _measure(name, options)
    except FedretrainError as error:
        console.print(str(error), style="red", markup=False)
        return error.exit_code
    if options.json:
        sys.stdout.write(json.dumps({name: asdict(costs) for name, costs in found.items()}) + "\n")
        return 0
    out = Console()
    out.print(_table(found))
    if len(found) == 2:
        ratio = found[PLAIN].typical(lambda r: r.overhead) / found[OURS].typical(lambda r: r.overhead)
        out.print(f"Beside training a round of {PLAIN} takes {ratio:.1f} times as long.")
    out.print(f"{os.cpu_count()} cores; load {before:.1f} before, {os.getloadavg()[0]:.1f} after.", style="dim")
    return 0


def _measure(name: str, options: argparse.Namespace) -> Costs:
    folder = Path(tempfile.mkdtemp(prefix="fr-", dir=options.work))
    try:
        return _WAYS[name](folder, options.mb, options.sites, options.rounds, options.idle)
    finally:
        if options.work is None:
            shutil.rmtree(folder, ignore_errors=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.round_overhead", description=__doc__)
    parser.add_argument("--mb", type=float, default=1.0, help="MiB of variables that change (1)")
    parser.add_argument("--sites", type=int, default=2, help="how many sites (2)")
    parser.add_argument("--rounds", type=int, default=10, help="how many rounds, at least 2; the first is apart (10)")
    parser.add_argument(
        "--idle", type=float, default=30.0, help="seconds for which idle processes are watched (30), 0: not"
    )
    parser.add_argument("--only", choices=["plain", "ours"], help="one of the two")
    parser.add_argument("--work", type=Path, help="folder in which what is made stays; default: nothing stays")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args(arguments)
    if options.rounds < 2 or options.sites < 1 or options.mb <= 0 or options.idle < 0:
        parser.error("expected at least two rounds, one site, and positive sizes")
    return options


def _table(found: dict[str, Costs]) -> Table:
    table = Table(title="A round, median of all but the first")
    table.add_column("")
    for name in found:
        table.add_column(name, justify="right")
    rows: list[tuple[str, Callable[[Costs], str]]] = [
        ("seconds", lambda c: f"{c.typical(lambda r: r.seconds):.2f}"),
        ("  of them training and evaluation", lambda c: f"{c.typical(lambda r: r.training):.2f}"),
        ("  beside them", lambda c: f"{c.typical(lambda r: r.overhead):.2f}"),
        ("first round, seconds", lambda c: f"{c.first.seconds:.2f}"),
        ("MB from the server, all sites", lambda c: f"{c.typical(lambda r: r.down) / 1e6:.2f}"),
        ("MB to the server, all sites", lambda c: f"{c.typical(lambda r: r.up) / 1e6:.2f}"),
        ("CPU seconds, server", lambda c: f"{c.server_cpu:.2f}"),
        ("CPU seconds, one site", lambda c: f"{c.site_cpu:.2f}"),
        ("idle: server, % of a core", lambda c: f"{100 * c.server_idle:.1f}"),
        ("idle: one site, % of a core", lambda c: f"{100 * c.site_idle:.1f}"),
    ]
    for label, value in rows:
        table.add_row(label, *(value(costs) for costs in found.values()))
    if OURS in found:
        table.add_section()
        for part in found[OURS].first.parts:
            seconds = found[OURS].typical(lambda r, part=part: r.parts[part])  # type: ignore[misc]  # a default binds it
            table.add_row(f"  {part}", *(f"{seconds:.2f}" if name == OURS else "" for name in found))
    return table


if __name__ == "__main__":
    sys.exit(main())
