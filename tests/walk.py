"""Runs a document's commands as the people it names: what stands under a command is what it has to print.

In a Markdown file, ```` ```sh PERSON ```` is typed by that person in their home folder; for ``sites``, by each of the
sites in turn, whose name takes the place of the first one's. A ```` ```text ```` block is what the commands just above
print: its lines in this order, others may stand between them, ``…`` stands for anything. ``<!-- carry FILE from PERSON
to PERSON -->`` takes a file from one home folder to another, where ``sites`` is each site and its own name.
``<!-- wait SECONDS for: COMMAND -->`` repeats a command as the next block's first person until it succeeds.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(
    r"^```(?P<kind>sh|text)(?: (?P<who>[a-z-]+))?\n(?P<body>.*?)^```$"
    r"|^<!-- carry (?P<file>\S+) from (?P<source>\S+) to (?P<target>\S+) -->$"
    r"|^<!-- wait (?P<seconds>\d+) s at (?P<where>\S+) for: (?P<until>[^\n]+) -->$",
    re.MULTILINE | re.DOTALL,
)
LIMIT_S = 300.0


@dataclass(frozen=True)
class Person:
    """Somebody at a machine: a home folder, and what to put in front of a command to run it there."""

    name: str
    home: Path
    inside: Sequence[str] = ()


class Walk:
    """The people, and the processes they left running."""

    def __init__(self, people: Sequence[Person], sites: Sequence[str], spoken: Callable[[str], str] = str) -> None:
        self.people = {person.name: person for person in people}
        self.sites = list(sites)
        self._spoken = spoken
        self._output = ""
        self._sessions: list[subprocess.Popen[str]] = []

    def through(self, document: str) -> int:
        """Do all that the document says; the number of commands' blocks."""
        count = 0
        for step in BLOCK.finditer(document):
            if step["file"]:
                self._carry(step["file"], step["source"], step["target"])
            elif step["until"]:
                self._wait(step["until"], step["where"], float(step["seconds"]))
            elif step["kind"] == "text":
                _compare(step["body"], self._output)
            elif step["who"]:
                count += 1
                self._output = "".join(self.type(name, text) for name, text in self._each(step["who"], step["body"]))
        return count

    def type(self, name: str, commands: str, limit_s: float = LIMIT_S) -> str:
        """What a person's commands print, standard error included; a command that fails ends the walk."""
        shell = self._start(name, commands)
        try:
            output, _ = shell.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            raise AssertionError(f"{name}: {commands}: not done in {limit_s:g} s: {shell.communicate()[0]}") from None
        assert shell.returncode == 0, f"{name}: {commands}\nended with {shell.returncode}:\n{output}"
        return output

    def end(self) -> None:
        """End what the people left running."""
        for shell in reversed(self._sessions):
            for sent in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(shell.pid, sent)
                except ProcessLookupError:
                    break
                time.sleep(3)

    def _start(self, name: str, commands: str) -> "subprocess.Popen[str]":
        person = self.people[name]
        scripts = str(Path(sys.executable).parent)
        environment = {
            "HOME": str(person.home),
            "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]),
            "LANG": "C.UTF-8",
            "COLUMNS": "120",
        }
        shell = subprocess.Popen(
            [*person.inside, "bash", "-e", "-o", "pipefail", "-c", self._spoken(commands)],
            cwd=person.home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._sessions.append(shell)
        return shell

    def _each(self, who: str, text: str) -> Iterator[tuple[str, str]]:
        if who != "sites":
            yield who, text
            return
        for site in self.sites:
            yield site, text.replace(self.sites[0], site)

    def _carry(self, file: str, source: str, target: str) -> None:
        for site in self.sites if "sites" in {source, target} else [""]:
            one = file.replace(self.sites[0], site) if site else file
            there = self.people[site if target == "sites" else target].home
            shutil.copy(self.people[site if source == "sites" else source].home / one, there)

    def _wait(self, command: str, who: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        for name, text in self._each(who, command):
            while self._start(name, text).wait(LIMIT_S):
                assert time.monotonic() < end, f"{name}: {text}: not so within {seconds:g} s"
                time.sleep(1)


def _compare(expected: str, output: str) -> None:
    """The lines of ``expected`` are among those of ``output``, in this order."""
    lines = iter(" ".join(line.split()) for line in output.splitlines())
    for wanted in expected.splitlines():
        pattern = ".*".join(re.escape(part) for part in " ".join(wanted.split()).split("…"))
        if pattern not in {"", ".*"}:
            assert any(re.fullmatch(pattern, line) for line in lines), f"expected {wanted!r} in its place in:\n{output}"
