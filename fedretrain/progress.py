"""What a person sees while a run goes on: on standard error, from the first moment.

Invariants: on a terminal one live line says what is being done, and what stays behind are the steps that are finished
and what went wrong; elsewhere it is plain lines, without colours. Standard output is left to the result.

Use::

    with Progress(Console(stderr=True)) as progress:
        progress.say("training the base model")      # ends the step before
        execute(job, grid, folder, progress)         # takes the run's events
        progress.recall(folder.read_events())        # or: goes on from where a run stands
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from . import words
from .standing import Standing

_BAR_WIDTH = 20
_JUDGING = "measuring the candidate on the holdouts"


class Progress:
    """Takes steps by ``say`` and the events of a run by being called; a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._spinner = Spinner("dots", style="cyan")
        self._step = ""
        self._since = time.monotonic()
        self._standing = Standing()
        self._in_rounds = False
        self._told: set[tuple[str, str]] = set()
        self._sites = 0
        self._declined: list[tuple[str, str]] = []  # they come one after the other, and are told together

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._render, console=self._console, transient=True, refresh_per_second=10)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._tell_declined()
        if kind is None:
            self._end_step()
        if self._live is not None:
            self._live.stop()

    def say(self, step: str) -> None:
        """Begin a step; the one before is done."""
        self._tell_declined()
        self._end_step()
        self._step, self._since, self._in_rounds = step, time.monotonic(), False
        if self._live is None:
            self._print(f"  {escape(step)} ...")

    def warn(self, text: str) -> None:
        """Something a person should know, that stays on the screen."""
        self._print(f"[yellow]! {escape(text)}[/]")

    def recall(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Go on from a run's earlier events: they count, and are not told again."""
        for event in events:
            self._standing.take(event)
            if event["event"] == "quarantined":
                self._told.add((str(event["site"]), str(event["code"])))
        if self._standing.stage == "judging":
            self.say(_JUDGING)
        elif self._standing.stage in {"training", "between rounds"}:
            self._begin_rounds()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take an event of the run (``server.events``)."""
        self._standing.take(event)
        if event["event"] != "site-declined":
            self._tell_declined()
        handler = getattr(self, "_on_" + str(event["event"]).replace("-", "_"), None)
        if handler is not None:
            handler(event)

    def _on_run_started(self, event: Mapping[str, Any]) -> None:
        self._sites = len(event.get("sites", ()))
        self.say("asking the sites whether their data fit" if event["completed"] < event["rounds"] else "resuming")

    def _on_check_started(self, event: Mapping[str, Any]) -> None:
        self._sites = len(event.get("sites", ()))
        self.say("asking the sites what they count")

    def _on_check_refused(self, event: Mapping[str, Any]) -> None:
        self.warn(f"{event['site']} is not in the check: {words.quarantined(event)}")

    def _on_site_declined(self, event: Mapping[str, Any]) -> None:
        self._declined.append((str(event["site"]), words.declined(event)))

    def _tell_declined(self) -> None:
        reasons, self._declined = self._declined, []
        for who, why in words.together(reasons, self._sites):
            self.warn(f"{who} {'does not take' if (who, why) in reasons else 'take no'} part: {why}")

    def _on_sum_refused(self, event: Mapping[str, Any]) -> None:
        self.warn(f"{event['site']} is not in the sum {event['sum']}: {words.quarantined(event)}")

    def _on_round_started(self, _event: Mapping[str, Any]) -> None:
        if not self._in_rounds:
            self._begin_rounds()

    def _begin_rounds(self) -> None:
        self.say("training at the sites")
        self._in_rounds = True

    def _on_quarantined(self, event: Mapping[str, Any]) -> None:
        reason = (str(event["site"]), str(event["code"]))
        if reason not in self._told:  # it may well be so in every round; the table says it each time
            self._told.add(reason)
            self.warn(f"round {event['round']}: {event['site']} is quarantined: {words.quarantined(event)}")

    def _on_round_finished(self, event: Mapping[str, Any]) -> None:
        if self._live is None:
            admitted = f"{len(event['admitted'])} of {len(event['sites'])} sites"
            claim = self._claim()
            note = f", {claim}" if claim else ""
            rounds = self._standing.rounds
            self._print(f"    round {event['round']} of {rounds}: {admitted}{note}, {event['seconds']:.1f} s")
        if event["round"] == self._standing.rounds:
            self.say(_JUDGING)

    def _on_monitored(self, event: Mapping[str, Any]) -> None:
        if self._live is None:
            self._print(f"    monitor: {escape(words.reading(event))}")

    def _on_target_reached(self, event: Mapping[str, Any]) -> None:
        self._print(
            f"  {escape(event['metric'])} {event['value']:.4g} {words.when(event['round'])}: "
            f"the target of {event['target']:g} is reached"
        )
        if self._step != _JUDGING:
            self.say(_JUDGING)

    def _claim(self) -> str:
        """What the sites say about the model they received in the last round."""
        metrics = self._standing.metrics
        kind = "accuracy" if "val-accuracy" in metrics else "loss"
        claim = metrics.get(f"val-{kind}")
        return "" if claim is None else f"{kind} {claim:.3f}"

    def _on_round_abandoned(self, event: Mapping[str, Any]) -> None:
        self.warn(f"round {event['round']} is given up: {event['reason']}")

    def _on_checkpoint_corrupt(self, event: Mapping[str, Any]) -> None:
        self.warn(f"checkpoint {event['file']} is damaged; going on after round {event['used']}")

    def _on_warning(self, event: Mapping[str, Any]) -> None:
        self.warn(str(event["text"]))

    def _on_gate(self, event: Mapping[str, Any]) -> None:
        self.say("signing the release" if event["passed"] else "writing down the verdict")

    def _on_segment_finished(self, event: Mapping[str, Any]) -> None:
        fate = "released" if event["outcome"] == "released" else "rejected, the model in use stays"
        self._print(f"  segment {event['segment']}: {fate}")

    def _on_delivery_failed(self, event: Mapping[str, Any]) -> None:
        self.warn(f"{event['site']} has not taken the release: {words.declined(event)}")

    def _end_step(self) -> None:
        if self._step and self._live is not None:
            took = time.monotonic() - self._since
            self._print(f"[green]✓[/] {escape(self._step)}  [dim]{words.seconds(took)}[/]")
        self._step = ""

    def _render(self) -> RenderableType:
        if not self._step:
            return ""
        line = Table.grid(padding=(0, 1))
        cells: list[RenderableType] = [self._spinner]
        if self._in_rounds:
            standing = self._standing
            bar = ProgressBar(total=standing.rounds, completed=standing.share, width=_BAR_WIDTH)
            where = Text(f"round {max(1, standing.round)} of {standing.rounds}", no_wrap=True)
            cells += [where, bar, Text(", ".join(self._facts()), no_wrap=True, overflow="ellipsis")]
        else:
            cells += [self._step, f"[dim]{words.seconds(time.monotonic() - self._since)}[/]"]
        line.add_row(*cells)
        return line

    def _facts(self) -> list[str]:
        """Of the round in progress, the most important first: a narrow terminal shows as many as fit."""
        standing = self._standing
        facts = [f"{len(standing.answered)}/{len(standing.asked)} sites"]
        if standing.quarantined:
            facts.append(f"{len(standing.quarantined)} quarantined")
        left = standing.seconds_left(time.time())
        if left is not None:
            facts.append(f"{words.seconds(left)} left")
        if standing.monitored is not None:
            facts.append(words.reading(standing.monitored))
        facts.append(words.size(standing.nbytes))
        return [*facts, self._claim()] if self._claim() else facts

    def _print(self, markup: str) -> None:
        self._console.print(markup, highlight=False, soft_wrap=not self._console.is_terminal)
