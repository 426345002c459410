"""What a person sees while a simulation works: on standard error, from the first moment.

Invariants: on a terminal one live line says what is being done, and what stays behind are the steps that are finished
and what went wrong; elsewhere it is plain lines, without colours. Standard output is left to the result.

Use::

    with Progress(Console(stderr=True)) as progress:
        progress.say("training the base model")      # ends the step before
        execute(job, grid, folder, progress)         # takes the run's events
"""

import time
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table

from . import words

_BAR_WIDTH = 30


class Progress:
    """Takes steps by ``say`` and the events of a run by being called; a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._spinner = Spinner("dots", style="cyan")
        self._step = ""
        self._since = time.monotonic()
        self._rounds = self._round = self._asked = self._answered = 0
        self._note = ""
        self._told: set[tuple[str, str]] = set()

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._render, console=self._console, transient=True, refresh_per_second=10)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._end_step()
        if self._live is not None:
            self._live.stop()

    def say(self, step: str) -> None:
        """Begin a step; the one before is done."""
        self._end_step()
        self._step, self._since, self._rounds = step, time.monotonic(), 0
        if self._live is None:
            self._print(f"  {escape(step)} ...")

    def warn(self, text: str) -> None:
        """Something a person should know, that stays on the screen."""
        self._print(f"[yellow]! {escape(text)}[/]")

    def __call__(self, event: dict[str, Any]) -> None:
        """Take an event of the run (``server.events``)."""
        handler = getattr(self, "_on_" + str(event["event"]).replace("-", "_"), None)
        if handler is not None:
            handler(event)

    def _on_run_started(self, event: dict[str, Any]) -> None:
        self.say("asking the sites whether their data fit" if event["completed"] < event["rounds"] else "resuming")
        self._planned = event["rounds"]

    def _on_site_declined(self, event: dict[str, Any]) -> None:
        self.warn(f"{event['site']} does not take part: {words.declined(event)}")

    def _on_round_started(self, event: dict[str, Any]) -> None:
        if not self._rounds:
            self.say("training at the sites")
            self._rounds = self._planned
        self._round, self._asked, self._answered = event["round"], len(event["sites"]), 0

    def _on_reply(self, _event: dict[str, Any]) -> None:
        self._answered += 1

    def _on_quarantined(self, event: dict[str, Any]) -> None:
        self._answered = min(self._asked, self._answered + 1)
        reason = (str(event["site"]), str(event["code"]))
        if reason not in self._told:  # it may well be so in every round; the table says it each time
            self._told.add(reason)
            self.warn(f"round {event['round']}: {event['site']} is quarantined: {words.quarantined(event)}")

    def _on_round_finished(self, event: dict[str, Any]) -> None:
        claim = event["metrics"].get("val-accuracy", event["metrics"].get("val-loss"))
        kind = "accuracy" if "val-accuracy" in event["metrics"] else "loss"
        self._note = "" if claim is None else f"{kind} {claim:.3f}"
        self._answered = self._asked
        if self._live is None:
            admitted = f"{len(event['admitted'])} of {len(event['sites'])} sites"
            note = f", {self._note}" if self._note else ""
            self._print(f"    round {event['round']} of {self._planned}: {admitted}{note}, {event['seconds']:.1f} s")
        if event["round"] == self._planned:
            self.say("measuring the candidate on the holdouts")

    def _on_round_abandoned(self, event: dict[str, Any]) -> None:
        self.warn(f"round {event['round']} is given up: {event['reason']}")

    def _on_checkpoint_corrupt(self, event: dict[str, Any]) -> None:
        self.warn(f"checkpoint {event['file']} is damaged; going on after round {event['used']}")

    def _on_warning(self, event: dict[str, Any]) -> None:
        self.warn(str(event["text"]))

    def _on_gate(self, event: dict[str, Any]) -> None:
        self.say("signing the release" if event["passed"] else "writing down the verdict")

    def _end_step(self) -> None:
        if self._step and self._live is not None:
            took = time.monotonic() - self._since
            self._print(f"[green]✓[/] {escape(self._step)}  [dim]{words.seconds(took)}[/]")
        self._step = ""

    def _render(self) -> RenderableType:
        if not self._step:
            return ""
        line = Table.grid(padding=(0, 1))
        cells: list[RenderableType] = [self._spinner, self._step]
        if self._rounds:
            done = self._round - 1 + self._answered / max(1, self._asked)
            bar = ProgressBar(total=self._rounds, completed=done, width=_BAR_WIDTH)
            where = f"round {self._round} of {self._rounds}"
            cells = [self._spinner, where, bar, f"{self._answered}/{self._asked} sites", self._note]
        else:
            cells.append(f"[dim]{words.seconds(time.monotonic() - self._since)}[/]")
        line.add_row(*cells)
        return line

    def _print(self, markup: str) -> None:
        self._console.print(markup, highlight=False, soft_wrap=not self._console.is_terminal)
