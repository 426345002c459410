"""The walk through a federation that ``docs/walkthrough.md`` describes, on machines of their own or on this one."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from .network import Network, reason_against
from .walk import Person, Walk

DOCUMENT = Path(__file__).parent.parent / "docs" / "walkthrough.md"
HOST = "fedserver.example"
SITES = ("hospital-a", "hospital-b", "hospital-c")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def walk() -> Iterator[Walk]:
    """Four people with four home folders, on a network of their own where that is possible."""
    machines = ("server", *SITES)
    with ExitStack() as stack:
        homes = Path(stack.enter_context(TemporaryDirectory(prefix="fr-")))  # short: there is a Unix socket in each
        for name in machines:
            (homes / name).mkdir()
        if reason_against() is None:
            network = stack.enter_context(Network(machines, HOST))
            people = [Person(name, homes / name, network.inside(name)) for name in machines]
            walk = Walk(people, SITES)
        else:
            people = [Person(name, homes / name) for name in machines]
            walk = Walk(people, SITES, lambda text: text.replace(HOST, "localhost"))
        stack.callback(walk.end)
        yield walk


def test_the_documented_walk_works_to_the_letter(walk: Walk) -> None:
    """Every command of the document runs, and prints what the document says."""
    assert walk.through(DOCUMENT.read_text(encoding="utf-8")) > 15
