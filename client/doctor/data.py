"""What a site is asked to do: its data, a step of training, what its policy allows, and what waits for a person."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

from client.home import Home
from client.sitefile import SiteFile, load_site
from fedretrain.errors import FedretrainError
from fedretrain.processes import clean_environment, module_command

from .finding import Finding, problem

_TIMEOUT_S = 300


def examine_data(home: Home, *, step: bool = True) -> Iterator[Finding]:
    """Data, policy, approvals, and a step of training unless told otherwise."""
    try:
        site = load_site(home.site)
    except FedretrainError as error:
        yield problem(
            "site.toml",
            "site-file",
            str(error),
            "it says where the data lie and what may be done with them; without it nothing is answered",
            f"correct {home.site}; 'fedretrain client join' writes one to begin with where there is none",
        )
        return
    yield from _trial(home, step=step)
    yield from _policy(home, site)


def _trial(home: Home, *, step: bool) -> Iterator[Finding]:
    """What ``trial`` finds, and how it ended if it did not end well."""
    command = module_command("client.doctor.trial", "--home", home.root, *([] if step else ["--no-step"]))
    found: list[Finding] = []
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=clean_environment(), timeout=_TIMEOUT_S, check=False
        )
        output, ended, said = done.stdout, done.returncode, done.stderr
    except subprocess.TimeoutExpired as error:
        output, ended, said = _text(error.stdout), None, ""
    for line in output.splitlines():
        if finding := _parsed(line):
            found.append(finding)
            yield finding
    if ended == 0:
        return
    subject = "step" if found else "data"
    if ended is None:
        how = f"it was not done after {_TIMEOUT_S} s"
    elif ended < 0:
        how = f"its process was ended by signal {-ended}" + (", as when memory runs out" if ended == -9 else "")
    else:
        how = said.strip().splitlines()[-1][:300] if said.strip() else f"its process ended with code {ended}"
    what = {"data": "reading the data", "step": "a step of training"}[subject]
    yield problem(
        subject,
        "trainer-failure",
        f"{what} did not come to its end: {how}",
        "the trainer will fail the same way when the server asks for training",
        "look at the line above; where memory ran out, use less data at a time or a machine with more memory",
    )


def _policy(home: Home, site: SiteFile) -> Iterator[Finding]:
    from client import approvals, policy

    for sentence in policy.describe(site.policy):
        yield Finding("policy", "ok", sentence)
    try:
        waiting = [one for one in approvals.listed(home) if one.approved is None]
    except FedretrainError as error:
        yield Finding("approval", "note", str(error))
        return
    for one in waiting if site.policy.approval else []:
        yield Finding(
            "approval",
            "note",
            f"job {one.id} of run {one.run} waits since {one.asked}",
            "this site takes no part in it before a person has said yes",
            f"look at it with 'fedretrain client approve' and say yes with 'fedretrain client approve {one.id}'",
        )


def _parsed(line: str) -> Finding | None:
    try:
        value: Any = json.loads(line)
        return Finding(**value)
    except (ValueError, TypeError):
        return None  # what a library printed


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
