"""What a person reads: progress and the tables at the end."""

import copy
import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedretrain import words
from fedretrain.errors import DataMismatch, DeclinedRequest, RejectedUpdate
from fedretrain.progress import Progress
from fedretrain.report import MOST_ROWS, show_result, show_rounds

OUT = Path("/data/out")


def admitted(site: str, **fields: Any) -> dict[str, Any]:
    entry = {"site": site, "examples": 97, "norm": 0.0649, "bytes": 68392, "seconds": 0.31, "flags": []}
    return {**entry, "metrics": {"val-accuracy": 0.625, "val-loss": 1.2, "train-loss": 1.0}, **fields}


def record(number: int, sites: int = 2, quarantined: tuple[dict[str, str], ...] = ()) -> dict[str, Any]:
    names = [f"hospital-{i:02d}" for i in range(sites)]
    out = {entry["site"] for entry in quarantined}
    return {
        "round": number,
        "sites": names,
        "admitted": [admitted(name) for name in names if name not in out],
        "quarantined": list(quarantined),
        "metrics": {"val-accuracy": 0.625},
        "seconds": 1.25,
        "bytes_down": 0,
        "bytes_up": 0,
        "bytes_base": 0,
    }


def verdict(name: str, **fields: Any) -> dict[str, Any]:
    entry = {"name": name, "metric": "accuracy", "must": "improve", "margin": 0.0, "n": 400, "passed": True}
    numbers = {"incumbent": 0.84, "candidate": 0.95, "difference": 0.11, "lower_bound": 0.084}
    return {**entry, **numbers, "decided": "passed", "reason": "", "uses": 1, "slices": [], **fields}


RESULT: dict[str, Any] = {
    "run_id": "20260131-120000-a1b2",
    "outcome": "released",
    "release": "c" * 64,
    "parent": "d" * 64,
    "rounds": [record(1), record(2)],
    "gate": {
        "passed": True,
        "confidence": 0.95,
        "reasons": [],
        "holdouts": [verdict("old", must="not-worse", margin=0.03), verdict("new", uses=3)],
    },
    "bytes": {
        "down": 2_760_000,
        "up": 2_760_000,
        "base": 1_480_000,
        "total": 7_000_000,
        "whole_model_total": 23_500_000,
    },
    "seconds": {"total": 9.0, "rounds": 4.6, "prepare": 1.8, "gate": 1.1, "release": 0.7, "demo": 9.5, "command": 21.0},
}


def shown(result: dict[str, Any] = RESULT, width: int = 80, **settings: Any) -> str:
    stream = io.StringIO()
    show_result(Console(file=stream, width=width, **settings), result, OUT)
    return stream.getvalue()


def changed(**fields: Any) -> dict[str, Any]:
    return {**copy.deepcopy(RESULT), **fields}


def test_everything_a_person_asks_is_there() -> None:
    """Sites by round, holdouts with bound, bytes against the whole model, seconds, verdict, release, next commands."""
    text = shown()
    assert re.search(r"1 +hospital-00 +97 +0\.625 +0\.0649 +0\.3", text)
    assert re.search(r"old +400 +0\.840 +0\.950 +\+0\.110 +\+0\.084 +> -0\.030 +passed", text)
    assert "by accuracy" in text
    assert "used so far, this run included: old once, new 3 times" in text
    assert "7 MB: 2.76 MB to the sites, 2.76 MB back, base model once 1.48 MB" in text
    assert "23.5 MB, 3.4 times as much" in text
    assert f"{OUT}/registry/releases/{'c' * 64}\n" in text
    assert f"fedretrain server releases verify --out {OUT}\n" in text
    assert f"fedretrain server releases rollback {'d' * 16} --out {OUT}\n" in text


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (
            {"command": 21.0, "demo": 9.5, "total": 9.0, "open": 0.5, "prepare": 1.8, "rounds": 4.6},
            "21.0 s: demo 9.5 s, starting 3.0 s, prepare 1.8 s, rounds 4.6 s, gate 1.0 s, release 0.5 s, other 0.6 s V",
        ),
        (
            {"command": 8.0, "total": 3.0, "open": 0.5, "prepare": 0.0, "rounds": 20.4, "earlier": 19.4},
            ": starting 5.5 s, prepare 0.0 s, rounds 1.0 s, gate 1.0 s, release 0.5 s; rounds 20.4 s of all starts",
        ),
        (
            {"command": 8.0, "total": 30.0, "open": 0.5, "prepare": 2.0, "rounds": 20.4, "earlier": 0.0},
            "8.0 s; of all starts: prepare 2.0 s, rounds 20.4 s, gate 1.0 s, release 0.5 s V",
        ),
    ],
)
def test_seconds_add_up(seconds: dict[str, float], said: str) -> None:
    """Every second of a start has a name; rounds that other starts made are told apart, as are their segments."""
    text = shown(changed(seconds={**seconds, "gate": 1.0, "release": 0.5}), 160)
    assert said in " ".join(text.split()).replace("Verdict", "V")


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_terminal(width: int) -> None:
    """No line of a table is broken or longer than the terminal; a path may be, to be copied."""
    refused = {"site": "hospital-01", "code": "not-finite", "detail": "expected finite values"}
    part = verdict("dim-room", decided="too small", passed=False)
    gate = {**RESULT["gate"], "holdouts": [verdict("a-longer-name", slices=[part])]}
    text = shown(changed(rounds=[record(1, quarantined=(refused,))], gate=gate), width)
    lines = [line for line in text.splitlines() if str(OUT) not in line]
    assert max(map(len, lines)) <= width
    assert any(line.rstrip().endswith("NaN or infinity") for line in lines)
    assert any(re.search(r"dim-room .* too small", line) for line in lines)


def test_colours_are_for_terminals() -> None:
    """Into a file nothing but text is written; on a terminal verdicts are coloured."""
    assert "\x1b" not in shown()
    assert "\x1b[" in shown(force_terminal=True, color_system="standard")


def test_a_rejection_says_why_and_what_stays() -> None:
    """The gate's reasons are shown, no release is, and the evidence is what to read next."""
    reason = "holdout 'old': accuracy 0.98 -> 0.9 on 450 examples; lower bound -0.1, expected above -0.03"
    gate = {**RESULT["gate"], "passed": False, "reasons": [reason]}
    text = shown(changed(outcome="rejected", release=None, gate=gate), 120)
    assert reason in text
    assert "rejected: the model in use stays" in text
    assert "rollback" not in text
    assert f"{OUT}/runs/20260131-120000-a1b2/gate.json" in text


def test_a_quarantined_site_has_its_reason_in_words() -> None:
    """A refusal of the site itself is told with what it is about."""
    declined = {"site": "hospital-01", "code": "declined", "detail": "label-unknown at digit: expected 0 to 9"}
    text = shown(changed(rounds=[record(1, quarantined=(declined,))]), 120)
    assert re.search(r"hospital-01 +- +- +- +- +declined: a label the model does not know \(digit\)", text)


def test_markup_in_names_is_text() -> None:
    """A name with brackets is shown as it is and changes nothing."""
    assert "hospital-[red]" in shown(changed(rounds=[{**record(1), "sites": ["hospital-[red]"], "admitted": []}]))


def test_many_sites_are_shown_as_rounds() -> None:
    """Beyond a screenful a round is one row; a quarantined site keeps its own."""
    late = {"site": "hospital-07", "code": "late", "detail": ""}
    rounds = [record(n, sites=MOST_ROWS, quarantined=(late,) if n == 2 else ()) for n in (1, 2)]
    stream = io.StringIO()
    show_rounds(Console(file=stream, width=80), rounds)
    text = stream.getvalue()
    assert f"{MOST_ROWS} of {MOST_ROWS} " in text
    assert f"{MOST_ROWS - 1} of {MOST_ROWS} " in text
    assert re.search(r"hospital-07 .* no answer in time", text)
    assert "hospital-08" not in text


def test_metrics_other_than_accuracy_are_shown() -> None:
    """Sites without accuracy show their loss; a holdout's metric stands beside its name where they differ."""
    rounds = [{**record(1, 1), "admitted": [admitted("hospital-00", metrics={"val-loss": 1.234})]}]
    gate = {**RESULT["gate"], "holdouts": [verdict("old", metric="loss"), verdict("new", metric="auc")]}
    text = shown(changed(rounds=rounds, gate=gate))
    assert "1.234" in text
    assert "old, loss" in text
    assert "new, auc" in text


def test_numbers_that_are_not_there_are_dashes() -> None:
    """A holdout without a bound, and a site without a validation part, show that."""
    gate = {**RESULT["gate"], "holdouts": [verdict("old", lower_bound=None, candidate=None, difference=None)]}
    text = shown(changed(rounds=[{**record(1, 1), "admitted": [admitted("hospital-00", metrics={})]}], gate=gate))
    assert re.search(r"old +400 +0\.840 +- +- +-", text)
    assert re.search(r"hospital-00 +97 +- +0\.0649", text)


def test_every_code_has_words() -> None:
    """Whatever code a reply or a site can get is told in words."""
    assert set(words.QUARANTINED) == RejectedUpdate.CODES
    assert set(words.DECLINED) == DataMismatch.CODES | DeclinedRequest.CODES


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (68392, "68.4 kB"), (999_600, "1 MB"), (1.5e12, "1.5 TB")],
)
def test_sizes_have_three_digits(count: float, text: str) -> None:
    """Decimal units, and no 1000 kB."""
    assert words.size(count) == text


EVENTS: list[dict[str, Any]] = [
    {"event": "run-started", "rounds": 2, "completed": 0, "sites": ["a", "b"]},
    {"event": "site-declined", "site": "c", "code": "data-empty", "where": "x", "expected": "at least one example"},
    {"event": "site-prepared", "site": "a"},
    *(
        event
        for number in (1, 2)
        for event in (
            {"event": "round-started", "round": number, "sites": ["a", "b"]},
            {"event": "reply", "round": number, "site": "a"},
            {"event": "quarantined", "round": number, "site": "b", "code": "norm", "detail": ""},
            {"event": "checkpoint", "round": number},
            {"event": "round-finished", **record(number)},
        )
    ),
    {"event": "gate", "passed": True},
    {"event": "released", "release": "c"},
]


def watched(**settings: Any) -> str:
    stream = io.StringIO()
    with Progress(Console(file=stream, width=80, **settings)) as progress:
        progress.say("opening the model")
        for event in EVENTS:
            progress(event)
    return stream.getvalue()


def test_progress_in_a_log_is_plain_lines() -> None:
    """Without a terminal each step and each round is one line, and a site's fault is told once."""
    text = watched()
    assert "\x1b" not in text
    assert text.splitlines()[0] == "  opening the model ..."
    assert "round 2 of 2: 2 of 2 sites, accuracy 0.625, 1.2 s" in text
    assert text.count("b is quarantined: update far too large") == 1
    assert "c does not take part: no data at x; expected at least one example" in text
    assert text.splitlines()[-1] == "  signing the release ..."


def test_what_a_monitor_read_is_told_as_it_comes_and_at_the_end() -> None:
    """A line for each reading and for the target; in the end the first, the last and the best; a loss counts down."""
    stream = io.StringIO()
    read = [{"round": n, "loss": loss, "metrics": {"accuracy": a}} for n, loss, a in ((0, 2.0, 0.5), (1, 0.4, 0.91))]
    with Progress(Console(file=stream)) as progress:
        for entry in read:
            progress({"event": "monitored", **entry})
        progress({"event": "target-reached", "round": 1, "metric": "accuracy", "value": 0.91, "target": 0.9})
    assert "monitor: accuracy 0.5, loss 2 at the start\n" in stream.getvalue()
    assert "accuracy 0.91 after round 1: the target of 0.9 is reached" in stream.getvalue()
    assert "accuracy 0.5 at the start, 0.91 after round 1; best 0.91 after round 1" in shown(changed(monitor=read))
    losses = [{**entry, "metrics": {}} for entry in (*read, {"round": 2, "loss": 0.5})]
    told = " ".join(shown(changed(monitor=losses), width=120).split())
    assert "Watched loss 2 at the start, 0.5 after round 2; best 0.4 after round 1" in told


@pytest.mark.parametrize("ended", [{"event": "failed", "reason": "too few"}, None])
def test_sites_that_refuse_alike_are_one_line(ended: dict[str, Any] | None) -> None:
    """As soon as anything else happens, or the run ends."""
    stream = io.StringIO()
    with Progress(Console(file=stream, width=200)) as progress:
        progress({"event": "run-started", "sites": list("abc"), "rounds": 2, "completed": 0})
        for site in "abc":
            progress({"event": "site-declined", "site": site, "code": "data-empty", "where": "x", "expected": ""})
        if ended:
            progress(ended)
            assert "no data" in stream.getvalue()
    assert [line for line in stream.getvalue().splitlines() if "no data" in line] == [
        "! all 3 sites take no part: no data at x"
    ]


def test_progress_on_a_terminal_leaves_what_is_done() -> None:
    """On a terminal finished steps stay, with their seconds."""
    text = watched(force_terminal=True, color_system=None)
    for step in ("opening the model", "training at the sites", "signing the release"):
        assert re.search(rf"✓ {step}  \d", text)


def test_certainty_is_told_as_it_is_and_with_the_posterior() -> None:
    """Only what was measured has a column; where the sites made no sum, that stands there instead."""
    scores = {"ece": 0.1, "nll": 0.5, "coverage": 0.99, "set_size": 1.5}
    found = {"parameters": 650, "examples": 359, "sites": ["a", "b"], "prior_precision": 5.0}
    found["holdouts"] = [{"name": "old", "n": 450, "before": scores, "after": {**scores, "ece": 0.05}}]
    text = shown(changed(gate={**RESULT["gate"], "uncertainty": found}))
    assert re.search(r"old +450 +0\.100 → 0\.050 +0\.500 → 0\.500 +0\.990 → 0\.990 +1\.500 → 1\.500", text)
    assert "650 values of the last layer, 359 examples at 2 sites" in text
    assert "width" not in text
    assert max(map(len, [line for line in text.splitlines() if "→" in line])) <= 80
    missing = {"method": "laplace", "missing": "sum gauss-newton: too few"}
    assert "sum gauss-newton: too few" in shown(changed(gate={**RESULT["gate"], "uncertainty": missing}))
