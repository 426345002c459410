"""What a person sees of many runs: on a terminal a bar over all of them, and a line for each that has ended."""

from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Bar:
    """A context manager.

    Args:
        stream: Where a person looks; a bar is shown where it is a terminal.
        total: How many there will be.
    """

    def __init__(self, stream: TextIO, total: int) -> None:
        console = Console(file=stream)
        columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("starting the workers", total=total)
        self._console = console

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, what: str) -> None:
        """What is being done from here on."""
        self._bar.update(self._task, description=what)

    def ended(self, line: str) -> None:
        """One has ended, with what came of it."""
        self._bar.advance(self._task)
        self._console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
