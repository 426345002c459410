"""The end of a run for a person: what happened in the rounds, what the gate found, what it cost, what to do.

Everything here turns a run's result (``server.run``) into tables for a console of 80 columns or more. What sites
say about themselves are claims, and are called so; the gate does not use them.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import words

MOST_ROWS = 80
"""Rows of rounds and sites up to which each is shown; beyond, a round is one row, and what went wrong another."""

Record = Mapping[str, Any]
_NONE = "-"


def show_result(
    console: Console, result: Record, out: Path, refused: Sequence[Record] = (), option: str = "--out"
) -> None:
    """Everything about a run that ended with a verdict.

    Args:
        console: Where to.
        result: The run's result.
        out: Its output folder, with the registry in it.
        refused: The ``site-declined`` events of the run.
        option: By which the commands to type next are told the folder.
    """
    show_rounds(console, result["rounds"], refused)
    _show_segments(console, result.get("segments", ()))
    _show_gate(console, result["gate"])
    _show_certainty(console, result["gate"].get("uncertainty"))
    _show_facts(console, result, out)
    _show_next(console, result, out, option)


def show_rounds(console: Console, rounds: Sequence[Record], refused: Sequence[Record] = ()) -> None:
    """Rounds and sites, and who did not take part at all."""
    claim, label = _claim(rounds)
    table = _table("Rounds")
    notes = "quarantined" if any(record["quarantined"] for record in rounds) else ""
    for name in ("round", "site", "examples", label, "norm", "seconds", notes):
        table.add_column(name, justify="left" if name in {"site", notes} else "right")
    brief = sum(len(record["sites"]) for record in rounds) > MOST_ROWS
    for record in rounds:
        first = str(record["round"])
        for row in _brief_rows(record, claim) if brief else _rows(record, claim):
            table.add_row(first, *row)
            first = ""
    if rounds:
        console.print(table)
        console.print(f"[dim]  {label}: a site's claim about the model it received; norm: of its update[/]")
    last = {str(event["site"]): words.declined(event) for event in refused}
    for who, why in words.together(last.items()):
        console.print(f"[yellow]! {escape(who)} took no part: {escape(why)}[/]")


def _rows(record: Record, claim: str) -> Iterator[tuple[str, ...]]:
    """One row for each site that was asked; a quarantined one has its reason."""
    admitted = {entry["site"]: entry for entry in record["admitted"]}
    refused = {entry["site"]: entry for entry in record["quarantined"]}
    for site in record["sites"]:
        entry = admitted.get(site)
        notes = []
        if site in refused:
            notes.append(f"[yellow]{escape(words.quarantined(refused[site]))}[/]")
        if entry is None:
            yield escape(site), _NONE, _NONE, _NONE, _NONE, *(notes or [_NONE])
            continue
        notes += [f"[yellow]{escape(words.flag(name))}[/]" for name in entry["flags"]]
        value = entry["metrics"].get(claim)
        yield (
            escape(site),
            str(entry["examples"]),
            _NONE if value is None else f"{value:.3f}",
            words.norm(entry["norm"]),
            f"{entry['seconds']:.1f}",
            ", ".join(notes),
        )


def _brief_rows(record: Record, claim: str) -> Iterator[tuple[str, ...]]:
    """The round as a whole, then the sites that did not count."""
    admitted = record["admitted"]
    value = record["metrics"].get(claim)
    norms = sorted(entry["norm"] for entry in admitted)
    yield (
        f"{len(admitted)} of {len(record['sites'])}",
        str(sum(entry["examples"] for entry in admitted)),
        _NONE if value is None else f"{value:.3f}",
        words.norm(norms[len(norms) // 2]) if norms else _NONE,
        f"{record['seconds']:.1f}",
        "",
    )
    for entry in record["quarantined"]:
        note = f"[yellow]{escape(words.quarantined(entry))}[/]"
        yield escape(entry["site"]), _NONE, _NONE, _NONE, _NONE, note


def _claim(rounds: Sequence[Record]) -> tuple[str, str]:
    """The claim to show, and what it is called: accuracy where sites have it, else loss."""
    has_accuracy = any("val-accuracy" in entry["metrics"] for record in rounds for entry in record["admitted"])
    return ("val-accuracy", "accuracy") if has_accuracy else ("val-loss", "loss")


def _show_segments(console: Console, segments: Sequence[Record]) -> None:
    """What the gate said after each segment of an online job; its last verdict is shown in full."""
    if not segments:
        return
    table = _table("Segments")
    for name in ("run", "rounds", "verdict", "release"):
        table.add_column(name, justify="right" if name == "rounds" else "left")
    for segment in segments:
        style = "green" if segment["outcome"] == "released" else "red"
        verdict = f"[{style}]{segment['outcome']}[/]"
        table.add_row(escape(segment["run_id"]), str(segment["rounds"]), verdict, (segment["release"] or _NONE)[:16])
    console.print(table)


def _show_gate(console: Console, gate: Record) -> None:
    """In use against candidate on each holdout and slice."""
    metrics = {holdout["metric"] for holdout in gate["holdouts"]}
    alike = len(metrics) == 1
    table = _table("Candidate against the model in use" + (f", by {next(iter(metrics))}" if alike else ""))
    names = ("holdout", "n", "in use", "candidate", "change", "at least", "asked", "verdict")
    for name in names:
        table.add_column(name, justify="left" if name in {"holdout", "verdict"} else "right")
    for holdout in gate["holdouts"]:
        name = escape(holdout["name"])
        table.add_row(name if alike else f"{name}, {holdout['metric']}", *_verdict(holdout))
        for part in holdout["slices"]:
            table.add_row(f"[dim]  {escape(part['name'])}[/]", *_verdict(part))
    console.print(table)
    uses = ", ".join(f"{escape(h['name'])} {_times(h['uses'])}" for h in gate["holdouts"])
    console.print(
        f"[dim]  at least: one-sided {gate['confidence']:.0%} bound on the change, on the same examples\n"
        f"  used so far, this run included: {uses}[/]",
        highlight=False,
    )
    for reason in gate["reasons"]:
        console.print(f"[red]✗[/] {escape(reason)}", highlight=False)


_FITS = {
    "ece": "calibr. error",
    "nll": "-log chance",
    "coverage": "in the 95 %",
    "set_size": "labels in it",
    "width": "width of it",
}


def _show_certainty(console: Console, found: Record | None) -> None:
    """How well the candidate's certainty fits what happens, as it is and with its posterior."""
    if found is None:
        return
    if "missing" in found:
        console.print(f"[yellow]! how certain the candidate is could not be found out: {escape(found['missing'])}[/]")
        return
    table = _table("How certain the candidate is: as it is → with its posterior")
    measures = [name for name in _FITS if any(name in holdout["before"] for holdout in found["holdouts"])]
    for name in ("holdout", "n", *(_FITS[name] for name in measures)):
        table.add_column(name, justify="left" if name == "holdout" else "right")
    for holdout in found["holdouts"]:
        before, after = holdout["before"], holdout["after"]
        cells = [f"{before[name]:.3f} → {after[name]:.3f}" if name in before else _NONE for name in measures]
        table.add_row(escape(holdout["name"]), str(holdout["n"]), *cells)
    console.print(table)
    about = (
        f"{found['parameters']} values of the last layer, {found['examples']} examples at {len(found['sites'])} sites"
    )
    console.print(f"[dim]  posterior: of {about}; prior precision {found['prior_precision']:.3g}[/]", highlight=False)


def _verdict(part: Record) -> tuple[str, ...]:
    sign = "-" if part["must"] == "not-worse" else ""
    style = "green" if part["passed"] else "red"
    return (
        str(part["n"]),
        _number(part["incumbent"]),
        _number(part["candidate"]),
        _number(part["difference"], "+"),
        _number(part["lower_bound"], "+"),
        f"> {sign}{part['margin']:.3f}",
        f"[{style}]{part['decided']}[/]",
    )


def _show_facts(console: Console, result: Record, out: Path) -> None:
    """Bytes, seconds and the verdict."""
    sent, seconds = result["bytes"], result["seconds"]
    whole, total = sent["whole_model_total"], sent["total"]
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    parts = f"{words.size(sent['down'])} to the sites, {words.size(sent['up'])} back"
    facts.add_row("Sent", f"{words.size(total)}: {parts}, base model once {words.size(sent['base'])}")
    if whole:
        facts.add_row("", f"the whole model every time: {words.size(whole)}, {whole / max(1, total):.1f} times as much")
    for name, text in _watched(result.get("monitor", ())):
        facts.add_row(name, text)
    facts.add_row("Time", _time(seconds))
    facts.add_row("Verdict", _outcome(result))
    console.print()
    console.print(facts, highlight=False)
    if result["release"]:  # on one line however long, to be copied
        path = words.path(out / "registry" / "releases" / result["release"])
        console.print(f"[bold]Release[/]  {escape(path)}", highlight=False, soft_wrap=True)


def _watched(readings: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """First, best and last reading of the run's monitor."""
    if not readings:
        return
    metric = next(iter(readings[-1]["metrics"]), "loss")
    values = [(r["metrics"].get(metric) if metric != "loss" else r["loss"], r["round"]) for r in readings]
    known = [(value, number) for value, number in values if value is not None]
    if not known:
        yield "Watched", f"{metric} is no finite number in any measured round"
        return
    best = (min if metric == "loss" else max)(known, key=lambda pair: pair[0])
    told = [f"{value:.4g} {words.when(number)}" for value, number in dict.fromkeys((known[0], known[-1]))]
    yield "Watched", f"{metric} {', '.join(told)}; best {best[0]:.4g} {words.when(best[1])}"


_PHASES = ("demo", "starting", "prepare", "rounds", "gate", "release")


def _time(seconds: Mapping[str, float]) -> str:
    """What this start took, in parts that add up to it; of rounds that others made, apart."""
    whole, earlier = seconds.get("command", seconds["total"]), seconds.get("earlier", 0.0)
    loading = whole - seconds["total"] - seconds.get("demo", 0.0)  # workers, TensorFlow, the model
    parts = {**seconds, "starting": loading + seconds.get("open", 0.0), "rounds": seconds["rounds"] - earlier}
    told = {name: parts[name] for name in _PHASES if name in parts}
    left = whole - sum(told.values())
    if loading < -_TENTH or left < -_TENTH:  # segments of an online job, which earlier starts finished
        told = {name: seconds[name] for name in _PHASES if name in seconds}
        return f"{words.seconds(whole)}; of all starts: {_listed(told)}"
    others = {"other": left} if left >= _TENTH else {}
    return f"{words.seconds(whole)}: {_listed(told | others)}" + (
        f"; rounds {words.seconds(seconds['rounds'])} of all starts" if earlier else ""
    )


_TENTH = 0.1


def _listed(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {words.seconds(max(0.0, value))}" for name, value in parts.items())


def _outcome(result: Record) -> str:
    if result["outcome"] == "released":
        return "[bold green]released[/]: the candidate is the model in use"
    return "[bold red]rejected[/]: the model in use stays"


def _show_next(console: Console, result: Record, out: Path, option: str) -> None:
    """Commands to type next."""
    where = f"{option} {shlex.quote(words.path(out))}"
    releases = "fedretrain server releases"
    if result["outcome"] == "released":
        lines = [f"{releases} show {result['release'][:16]} {where}", f"{releases} verify {where}"]
        if result["parent"]:
            lines.append(f"{releases} rollback {result['parent'][:16]} {where}")
    else:
        judged = result["segments"][-1] if result.get("segments") else result
        evidence = shlex.quote(words.path(out / "runs" / judged["run_id"] / "gate.json"))
        lines = [f"cat {evidence}", f"{releases} list {where}"]
    console.print("\n[bold]Next[/]")
    for line in lines:
        console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)


def _table(title: str) -> Table:
    return Table(
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        header_style="dim",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def _number(value: float | None, sign: str = "") -> str:
    return _NONE if value is None else f"{value:{sign}.3f}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
