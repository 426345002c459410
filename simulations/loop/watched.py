"""What a person sees while worlds pass: on a terminal a bar over all of them, else a line for each that is over."""

from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .outcome import Course, Record


class Watched:
    """A context manager; is told what is being done, and what each world came to."""

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

    def done(self, course: Course) -> Course:
        """A world is over; the same again."""
        self._bar.advance(self._task)
        said = f"accuracy {course.accuracy:.1%}, retrained {course.retrainings}, released {course.releases}"
        self._line(f"  {course.scenario}, seed {course.seed}, {course.policy}: {said}")
        return course

    def step(self, record: Record) -> None:
        """A step is over; for who watches one world only."""
        self._bar.advance(self._task)
        self._line("  " + told(record))

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def told(record: Record) -> str:
    """One line about a step."""
    released = ", released" if record.released else ""
    why = f": {record.why}" if record.why else ""
    return f"step {record.step:2d}, to {record.at}: accuracy {record.accuracy:.1%}; {record.action}{released}{why}"
