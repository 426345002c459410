"""What a person sees of a comparison: on a terminal a bar over all runs, elsewhere one line for each that has ended."""

from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .outcome import Refused
from .run import Found


class Watched:
    """A context manager; is told what is being done, and what has come of each run."""

    def __init__(self, stream: TextIO, total: int) -> None:
        console = Console(file=stream)
        columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("starting the workers", total=total)
        self._console = console

    def __enter__(self) -> "Watched":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, what: str) -> None:
        """What is being done from here on."""
        self._bar.update(self._task, description=what)

    def done(self, found: Found) -> Found:
        """A run has ended; the same again."""
        self._bar.advance(self._task)
        way, seed, of = found
        if isinstance(of, Refused):
            told = f"refused: {of.why}"
        else:
            told = f"old {of.before.old:.1%} -> {of.after.old:.1%}, new {of.before.new:.1%} -> {of.after.new:.1%}"
            told += "" if of.released else ", not released"
        self._console.print(f"  {way}, seed {seed}: {told}", markup=False, highlight=False, soft_wrap=True)
        return found
