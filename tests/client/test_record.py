"""The site's record: whole, chained, safe among processes, and readable by a person."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from client import record
from fedretrain.errors import MachineError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A record of four entries."""
    path = tmp_path / "record.jsonl"
    for number in range(4):
        record.append(path, "sent", run=f"run-{number}", type="train", round=number)
    return path


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_entries_come_back_in_order_and_the_chain_holds(path: Path) -> None:
    """What was appended is what is read, and its head is another after each entry."""
    assert [entry["run"] for entry in record.read(path)] == ["run-0", "run-1", "run-2", "run-3"]
    before = record.verify(path)
    assert (before.entries, before.problems) == (4, ())
    record.append(path, "sent", run="run-4")
    assert record.verify(path).head != before.head


def test_no_record_is_an_empty_one(tmp_path: Path) -> None:
    """Before the first entry there is nothing to read and nothing wrong."""
    assert list(record.read(tmp_path / "none")) == []
    assert record.verify(tmp_path / "none") == record.Chain(0, record.START, ())


TAMPERED = {
    "a word changed": lambda rows: [rows[0], rows[1].replace(b"run-1", b"run-9"), *rows[2:]],
    "a line removed": lambda rows: [rows[0], *rows[2:]],
    "the first removed": lambda rows: rows[1:],
    "two exchanged": lambda rows: [rows[0], rows[2], rows[1], rows[3]],
    "one put in": lambda rows: [*rows[:2], rows[1], *rows[2:]],
    "no JSON": lambda rows: [rows[0], b"x\n", *rows[2:]],
    "spaces added": lambda rows: [rows[0], rows[1].replace(b",", b", "), *rows[2:]],
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_changed_record_is_noticed(path: Path, how: str) -> None:
    """Each kind of tampering before the last line breaks the chain, and the line is named."""
    path.write_bytes(b"".join(TAMPERED[how](lines(path))))
    found = record.verify(path)
    assert found.problems
    assert found.problems[0].startswith("line ")


def test_a_cut_at_the_end_shows_in_the_head(path: Path) -> None:
    """The chain alone cannot tell; the head that somebody kept can."""
    head = record.verify(path).head
    path.write_bytes(b"".join(lines(path)[:-1]))
    assert record.verify(path).problems == ()
    assert record.verify(path).head != head


@pytest.mark.parametrize("keep", [1, 40])
def test_a_line_cut_by_a_power_failure_is_taken_away_and_said(path: Path, keep: int) -> None:
    """The chain holds afterwards, and an entry tells what happened."""
    whole = lines(path)
    path.write_bytes(b"".join(whole[:-1]) + whole[-1][:keep])
    assert record.verify(path).problems
    record.append(path, "sent", run="after")
    assert [entry["kind"] for entry in record.read(path)] == ["sent"] * 3 + ["mended", "sent"]
    assert record.verify(path).problems == ()


def test_a_long_line_is_found_from_the_end(path: Path) -> None:
    """A line longer than the block that is read from the end still counts as one."""
    record.append(path, "sent", text="x" * 200_000)
    record.append(path, "sent", text="y")
    assert record.verify(path).problems == ()


def _append_many(path: Path, who: int) -> None:
    for number in range(25):
        record.append(path, "sent", who=who, number=number)


def test_several_that_add_at_once_keep_one_chain(tmp_path: Path) -> None:
    """Nothing is lost and nothing overlaps; the lock is between open files, whoever has opened them."""
    path = tmp_path / "record.jsonl"
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda who: _append_many(path, who), range(3)))
    assert record.verify(path).entries == 75
    assert record.verify(path).problems == ()


def test_a_full_disk_leaves_the_record_whole() -> None:
    """A MachineError that says what to do, and no half line."""
    with pytest.raises(MachineError, match="free some space"):
        record.append(Path("/dev/full"), "sent", run="r")


ENTRIES: dict[str, dict[str, Any]] = {
    "the coordinator of clinics asked (signature verified): training [run r, round 2], 1.5 kB came with it": {
        "kind": "asked", "federation": "clinics", "type": "train", "run": "r", "round": 2, "bytes": 1500,
    },
    "sent in answer to a check and count of the data [run r]: training examples 90": {
        "kind": "sent", "type": "query.prepare", "run": "r", "round": 0, "counts": {"training examples": 90},
    },
    "sent in answer to training [run r, round 2]: 4 arrays of changes to the model, 2.0 MB; statistics val-loss; "
    "kept back by policy: train-loss": {
        "kind": "sent", "type": "train", "run": "r", "round": 2, "arrays": 4, "bytes": 2_000_000,
        "statistics": ["val-loss"], "withheld": ["train-loss"],
    },
    "refused training [run r, round 2]: policy at hours (expected 22:00-06:00); no data were sent": {
        "kind": "refused", "type": "train", "run": "r", "round": 2, "code": "policy", "where": "hours",
        "expected": "22:00-06:00",
    },
    "ada allowed job 0123456789ab, which run r asked for": {
        "kind": "approved", "by": "ada", "job": "0123456789abcdef", "run": "r",
    },
    "ada took back the permission for job 0123456789ab, which run r asked for": {
        "kind": "withdrawn", "by": "ada", "job": "0123456789abcdef", "run": "r",
    },
    "ada chose release 0123456789abcdef (run r) to be used here": {
        "kind": "chosen", "by": "ada", "release": "0123456789abcdef0123", "run": "r",
    },
    "20 examples are kept here for later runs, encrypted, as the policy allows; the last ones after training "
    "[run r, round 1]": {"kind": "kept", "type": "train", "run": "r", "round": 1, "examples": 20},
    "files of examples kept here for later runs that are not as this site wrote them: 1; nothing in them is used, "
    "they are removed or written anew; noticed at a check and count of the data [run r]": {
        "kind": "kept", "type": "query.prepare", "run": "r", "round": 0, "damaged": 1,
    },
    "the beginning of a line (12 bytes) from when the machine stopped is gone": {"kind": "mended", "bytes": 12},
    "release-used: release abc": {"kind": "release-used", "release": "abc"},
}  # fmt: skip


@pytest.mark.parametrize("text", ENTRIES)
def test_an_entry_reads_as_a_sentence(text: str) -> None:
    """What a person who is responsible for the data gets to see; unknown kinds are shown as they are."""
    assert record.words({"at": "2026-01-01T00:00:00+00:00", **ENTRIES[text]}) == f"2026-01-01T00:00:00+00:00  {text}"


def test_every_kind_has_a_sentence() -> None:
    """Each that the module describes; of other versions' kinds everything is shown."""
    described = set(re.findall(r"``(\w+)``", str(record.__doc__).partition("Kinds written by")[2]))
    assert described == set(record._TELL)


def test_entries_are_json_lines_of_one_form(path: Path) -> None:
    """The format is written down: sorted keys, no white space, previous hash, time in UTC."""
    first = json.loads(lines(path)[0])
    assert set(first) == {"at", "kind", "previous", "run", "type", "round"}
    assert first["previous"] == record.START
    assert first["at"].endswith("+00:00")
