"""Every table, one after another: JSON, Markdown and plots in one folder, and the tables in the documents.

Use::

    python -m simulations.benchmarks.all --mnist PATH --out FOLDER --into docs/performance.md

It takes hours. A table whose JSON is in the folder already is not measured again, so it can be stopped and started; a
table that fails leaves its log there, and the others are made all the same. A document gets the tables whose markers it
has (``simulations.benchmarks.table``), and the plots that it shows beside it.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedretrain import atomic
from fedretrain.errors import FedretrainError

from .environment import Environment
from .table import Table, insert, read

PIECES: dict[str, tuple[str, ...]] = {
    "updates": (),
    "sites": (),
    "codecs": ("--work", "{work}"),
    "mcmahan": ("--work", "{work}", "--plots", "{out}"),
    "aggregation": (),
    "site_memory": (),
}
"""The benchmarks with a table, and what they are given beside ``--json``, ``--mnist`` and ``--smoke``."""
_MNIST = {"updates", "sites", "codecs", "mcmahan"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Make all tables; 1 where one could not be made."""
    options = _parse(arguments)
    console = Console(stderr=True, soft_wrap=True)
    try:
        atomic.make_folder(options.out)
        failed = [name for name in options.only if not _made(name, options, console)]
        tables = [table for name in options.only if name not in failed for table in read(_json(name, options))]
        _write([_machine(), *tables], options)
    except FedretrainError as error:
        console.print(str(error), style="red", markup=False)
        return error.exit_code
    for name in failed:
        console.print(f"{name} failed; see {options.out / name}.log", style="red", markup=False)
    return 1 if failed else 0


def _json(name: str, options: argparse.Namespace) -> Path:
    file: Path = options.out / f"{name}.json"
    return file


def _made(name: str, options: argparse.Namespace, console: Console) -> bool:
    """Whether the piece's tables are there, which are made if need be."""
    if _json(name, options).exists():
        console.print(f"{name}: is there", style="dim", markup=False)
        return True
    work = options.out / "work" / name
    atomic.make_folder(work)
    call = [sys.executable, "-P", "-m", f"simulations.benchmarks.{name}", "--json", str(_json(name, options))]
    call += [part.format(work=work, out=options.out) for part in PIECES[name]]
    call += ["--mnist", str(options.mnist)] if options.mnist and name in _MNIST else []
    call += ["--smoke"] if options.smoke else []
    console.print(f"{name} ...", style="dim", markup=False)
    began = time.monotonic()
    code = _run(call, options.out / f"{name}.log")
    console.print(f"{name}: {(time.monotonic() - began) / 60:.1f} minutes", style="dim", markup=False)
    return code == 0 and _json(name, options).exists()


def _run(call: list[str], log: Path) -> int:
    with log.open("wb") as out:
        return subprocess.run(call, stdout=out, stderr=out, stdin=subprocess.DEVNULL, check=False).returncode


def _machine() -> Table:
    """What all tables have in common."""
    found = Environment.now()
    table = Table("environment", "The machine", ("", ""), environment=found)
    table.add("processor", f"{found.cpu}, {found.cores} cores")
    table.add("memory", f"{found.memory_gib:g} GiB")
    table.add("system", found.system)
    table.add("Python", found.python)
    for name, version in found.versions.items():
        table.add(name, version)
    return table


def _write(tables: Sequence[Table], options: argparse.Namespace) -> None:
    """Markdown of everything; each document gets the tables whose markers it has, and the plots that it shows."""
    text = "\n".join(table.markdown() for table in tables)
    atomic.write_bytes(options.out.resolve() / "benchmarks.md", text.encode())
    for document in options.into:
        marked = document.read_text(encoding="utf-8")
        for table in tables:
            if f"<!-- table {table.name} -->" in marked:
                insert(document, table)
        for plot in options.out.glob("*.png"):
            if f"]({plot.name})" in marked:
                atomic.write_bytes(document.resolve().parent / plot.name, plot.read_bytes())


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.all", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="takes everything that is made")
    parser.add_argument("--mnist", type=Path, metavar="PATH", help="mnist.npz; default: Keras downloads it")
    parser.add_argument("--only", nargs="+", choices=list(PIECES), default=list(PIECES), help="some of the tables")
    either = parser.add_mutually_exclusive_group()  # figures of made-up data are nobody's to read
    either.add_argument("--into", type=Path, metavar="FILE", action="append", default=[], help="documents with tables")
    either.add_argument("--smoke", action="store_true", help="little made-up data: shows only that it runs")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
