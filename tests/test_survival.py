"""``docs/survival.md`` speaks of tests that are there, and leaves no case out."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
DOCUMENT = TESTS.parent / "docs" / "survival.md"
CASES = set(range(1, 52)) - {40}  # the document says why


def test_the_tests_it_names_are_there() -> None:
    """By their paths below this folder."""
    named = set(re.findall(r"`([\w/]+\.py)`", DOCUMENT.read_text(encoding="utf-8")))
    assert len(named) > 20
    assert [name for name in sorted(named) if not (TESTS / name).is_file()] == []


def test_every_case_has_a_test_of_its_number_and_a_line() -> None:
    """A test is called after its case; a line of a table names it, in a column or in brackets."""
    tested: set[int] = set()
    for path in TESTS.rglob("test_*.py"):
        for name in re.findall(r"^def test_faults?_((?:\d\d_(?:to_|and_)?)+)", path.read_text(encoding="utf-8"), re.M):
            numbers = [int(number) for number in re.findall(r"\d\d", name)]
            tested.update(range(numbers[0], numbers[-1] + 1) if "_to_" in name else numbers)
    assert tested == CASES
    lines = re.findall(r"^\| (\d+) \||\((\d\d)\)", DOCUMENT.read_text(encoding="utf-8"), re.M)
    assert {int(column or brackets) for column, brackets in lines} == CASES
