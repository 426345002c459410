"""Disks that fill up are told once each, and so is that there is room again."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from server.federation import Federation, Settings
from server.room import LEAST_BYTES, Room

Usage = namedtuple("Usage", "total used free")


def test_a_disk_is_told_when_it_is_full_and_when_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for all folders on it; a little room more is no news."""
    federation = Federation(tmp_path, Settings(name="f", address="localhost:1234"))
    room = Room(federation)
    assert room.look() == []  # neither folder is there yet
    for folder in (federation.state, federation.runs):
        folder.mkdir()

    def look(free: int) -> list[str]:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free))
        return room.look()

    assert look(LEAST_BYTES) == []
    (news,) = look(LEAST_BYTES - 1)
    assert news.startswith(f"! {federation.state}: the disk is full, 63 MB are left; free some space there")
    assert look(0) == look(LEAST_BYTES + 1) == []
    assert list(room.problems) == [federation.state]
    assert look(2 * LEAST_BYTES) == [f"{federation.state}: there is room again"]
    assert room.problems == {}
