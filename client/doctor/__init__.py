"""``fedretrain client check``: looks at everything a site needs, and names the cause of what is wrong.

Invariants: nothing is changed and nothing of the data leaves or is shown; one fault is found as one problem, what
depends on it is skipped and said to be; every problem says what is wrong, why that matters and what to do.

The parts are ``server`` (from the address to the roster), ``machine`` (keys, disk, memory) and ``data`` (data, policy,
a step of training).
"""

import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from client.home import Home
from client.policy import Policy
from client.runfiles import read_problem
from client.sitefile import load_site
from fedretrain.errors import FedretrainError

from .data import examine_data
from .finding import Finding
from .machine import examine_machine
from .server import examine_server

_WIDTH = 100


def examine(home: Home, clock: Callable[[], float] = time.time, *, step: bool = True) -> Iterator[Finding]:
    """Every finding, as it is made.

    Args:
        home: The site.
        clock: This machine's, seconds since 1970.
        step: Whether a step of training is tried, which may take a minute.
    """
    found = False
    for finding in examine_machine(home):
        found = found or finding.cause == "no-home"
        yield finding
    if found:
        return
    yield from examine_server(home, clock, _policy(home))
    yield from _running(home)
    yield from examine_data(home, step=step)


def lines(finding: Finding) -> Iterator[str]:
    """A finding for a person."""
    mark = "PROBLEM" if finding.state == "problem" else finding.state
    head = f"{mark:<8} {finding.subject:<12} "
    yield from _wrapped(head, finding.what)
    for title, text in (("why", finding.why), ("do", finding.do)):
        if text:
            yield from _wrapped(f"{'':<21}{title + ':':<5}", text)


def summary(findings: Sequence[Finding]) -> str:
    """The last line: whether anything stands in the way."""
    problems = [finding.subject for finding in findings if finding.state == "problem"]
    if not problems:
        return "ok: nothing stands in the way."
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{count}: {', '.join(dict.fromkeys(problems))}."


def value(findings: Sequence[Finding]) -> dict[str, Any]:
    """All findings as JSON values."""
    return {"ok": all(f.state != "problem" for f in findings), "findings": [f.value() for f in findings]}


def _policy(home: Home) -> Policy | None:
    """The site's policy where it can be read; ``examine_data`` says so where it cannot."""
    with suppress(FedretrainError):
        return load_site(home.site).policy
    return None


def _running(home: Home) -> Iterator[Finding]:
    """What the running processes say keeps the site from taking part."""
    if said := read_problem(home):
        why = "the SuperNode wrote this down while it ran"
        yield Finding("SuperNode", "note", said, why, f"if nothing above explains it, look into {home.log}")


def _wrapped(head: str, text: str) -> list[str]:
    indent = " " * len(head)
    return textwrap.wrap(
        text, _WIDTH, initial_indent=head, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or [head.rstrip()]
