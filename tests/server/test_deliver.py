"""Releases reach the sites: each verifies with its own installer, and what fails at one costs no other."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from client.home import Home
from client.installer import Installer
from fedretrain.errors import ConfigurationError, DeclinedRequest, RejectedUpdate, UntrustedRelease
from fedretrain.membership import Kit, public_text
from fedretrain.messages import (
    RELEASE,
    Declined,
    ReleaseReply,
    ReleaseRequest,
    TrainReply,
    pack,
    request_arrays,
    unpack_request,
)
from fedretrain.parcel import opened
from fedretrain.release import IDENTIFYING
from server.admission import admit_release
from server.app import app
from server.deliver import behind, deliver
from server.installed import Installed, installed
from server.registry import Registry
from tests import drafts

from .grid import Answer
from .sealed import Hospitals, SealedSite


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, unflushed: None) -> None:
    monkeypatch.setattr("server.exchange.POLL_S", 0.005)


class Clinic(SealedSite):
    """A site that receives releases only, with a home and an installer."""

    def __init__(self, name: str, folder: Path, **settings: Any) -> None:
        super().__init__(name, **settings)
        self.home = Home(folder / name)
        self.home.make()
        self.installer: Installer
        self.received: list[int] = []

    def join(self, root: bytes) -> None:
        kit = Kit(
            federation="clinics",
            site=self.name,
            address="server.example:8443",
            ca="",
            coordinator=public_text(self.coordinator),
            root=root.decode(),
            node_key=self.node_key,
            signing_key=public_text(self.signing),
            bundle="0" * 64,
        )
        self.installer = Installer(self.home, kit, check=lambda _: None)

    def reply(self, message_type: str, content: RecordDict) -> Answer:
        assert message_type == RELEASE
        request = unpack_request(content, ReleaseRequest)
        files = {name: array.tobytes() for name, array in request_arrays(content).items()}
        self.received.append(len([name for name in files if name.startswith("releases/")]))
        try:
            return pack(self.installer.receive(request, files))
        except DeclinedRequest as refusal:
            body = Declined(run=request.run, site=self.name, code=refusal.code, where=refusal.where)
            return pack(body.model_copy(update={"expected": refusal.expected}))


class Field:
    """A federation with one release in its registry."""

    def __init__(self, folder: Path, n: int = 3) -> None:
        self.sites = [Clinic(name, folder / "sites") for name in "abcdef"[:n]]
        self.grid = Hospitals(folder / "server", self.sites)
        self.federation = self.grid.federation
        self.registry = Registry.open(self.federation.folder)
        self.release = self.registry.publish(drafts.draft("run-1"), None).id
        for site in self.sites:
            site.join(self.federation.anchor.read_bytes())
        self.events: list[tuple[str, str, str]] = []

    def deliver(self) -> dict[str, Installed]:
        self.events.clear()
        return deliver(self.federation, self.grid, self._emit, "r1")

    def _emit(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields["site"], fields.get("code", fields["release"])))

    def has(self) -> dict[str, str]:
        return {name: entry.installed for name, entry in installed(self.federation).items()}


@pytest.fixture
def field(tmp_path: Path) -> Field:
    return Field(tmp_path)


def test_every_connected_site_gets_the_release_once(field: Field) -> None:
    """Metadata first, the files only where they are missing; the second time metadata alone, and nothing is news."""
    assert behind(field.federation) == ["a", "b", "c"]
    field.deliver()
    assert field.has() == dict.fromkeys("abc", field.release)
    assert sorted(field.events) == [("delivered", name, field.release) for name in "abc"]
    assert behind(field.federation) == []
    assert [site.received for site in field.sites] == [[0, len(IDENTIFYING)]] * 3
    field.deliver()
    assert field.events == []
    assert [site.received for site in field.sites] == [[0, len(IDENTIFYING), 0]] * 3


def test_a_copy_for_people_does_not_travel(field: Field) -> None:
    """Neither model.keras, nor superseded metadata."""
    field.deliver()
    names = {name for m in field.grid.sent for name in opened(m.content)["arrays"]}
    assert not [name for name in names if name.endswith(".keras")]
    assert {name for name in names if name.startswith("metadata/")} == {
        "metadata/1.root.json", "metadata/1.snapshot.json", "metadata/1.targets.json", "metadata/timestamp.json"
    }  # fmt: skip


def test_a_site_that_was_away_catches_up(field: Field) -> None:
    """It is not waited for; it stays behind until it is connected."""
    field.grid.offline.add("c")
    assert set(field.deliver()) == {"a", "b"}
    assert behind(field.federation) == ["c"]
    field.registry.publish(drafts.draft("run-2", 2))
    field.grid.offline.clear()
    field.deliver()
    newest = field.registry.incumbent()
    assert newest is not None
    assert field.has() == dict.fromkeys("abc", newest.id)


def test_after_a_rollback_no_release_travels_twice(field: Field) -> None:
    """The sites have the older one: the new metadata are enough."""
    field.deliver()
    field.registry.publish(drafts.draft("run-2", 2))
    field.deliver()
    field.registry.rollback(field.release)
    for site in field.sites:
        site.received.clear()
    field.deliver()
    assert [site.received for site in field.sites] == [[0]] * 3
    assert field.has() == dict.fromkeys("abc", field.release)


def test_a_site_follows_new_keys(field: Field) -> None:
    """Every root version comes along, so a site that missed one can follow the chain from its kit's."""
    field.registry.rotate(with_root=True)
    field.registry.rotate()
    field.deliver()
    assert field.has() == dict.fromkeys("abc", field.release)


def test_a_site_that_refuses_costs_no_other(field: Field, tmp_path: Path) -> None:
    """Its code and reason are told; it is left alone for an hour."""
    other = Field(tmp_path / "other", 1)
    field.sites[1].join(other.federation.anchor.read_bytes())
    outcome = field.deliver()
    assert ("delivery-failed", "b", "release-refused") in field.events
    assert (outcome["b"].installed, outcome["b"].offered) == ("", field.release)
    assert [name for name, entry in outcome.items() if entry.installed] == ["a", "c"]
    assert behind(field.federation) == []
    assert behind(field.federation, datetime.now(UTC) + timedelta(minutes=61)) == ["b"]


def test_a_site_that_does_not_answer_costs_no_other(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is late, and due again a minute later."""
    monkeypatch.setattr("server.deliver.ASK_S", 1.0)
    field.sites[0].delay_s = 60
    field.deliver()
    assert ("delivery-failed", "a", "late") in field.events
    assert behind(field.federation, datetime.now(UTC) + timedelta(seconds=61)) == ["a"]


def test_what_a_site_did_not_sign_says_nothing(field: Field) -> None:
    """A forged "I have it" does not count."""
    field.sites[0].forge = lambda *_: pack(
        ReleaseReply(run="r1", site="a", installed=field.release, used=field.release)
    )
    outcome = field.deliver()
    assert (outcome["a"].installed, outcome["a"].code) == ("", "signature")


def test_a_new_machine_under_an_old_name_gets_the_release(field: Field) -> None:
    """What is known of a site from before it was admitted is another's."""
    field.deliver()
    entry = json.loads(field.federation.installed.read_bytes())
    entry["sites"]["b"]["at"] = "2025-12-31T23:59:59+00:00"
    field.federation.installed.write_text(json.dumps(entry))
    assert behind(field.federation) == ["b"]


def test_revoked_sites_and_strangers_get_nothing(field: Field) -> None:
    """Nor do they count as behind."""
    field.grid.revoke("b")
    assert behind(field.federation) == ["a", "c"]
    assert set(field.deliver()) == {"a", "c"}
    assert field.sites[1].received == []


def test_a_damaged_memory_is_begun_anew(field: Field) -> None:
    """Asking again costs a message."""
    field.deliver()
    for damage in (b"", b"[]", b'{"sites": {"a": 1}}', b'{"sites": {"a": {"more": 1}}}'):
        field.federation.installed.write_bytes(damage)
        assert installed(field.federation) == {}
    field.deliver()
    assert field.has() == dict.fromkeys("abc", field.release)


def test_a_registry_that_does_not_verify_is_not_sent(field: Field) -> None:
    """A file that was changed on the server stays there."""
    drafts.flip(field.registry.folder / "releases" / field.release / "weights.safetensors", 300)
    with pytest.raises(UntrustedRelease, match="weights"):
        field.deliver()
    assert sum(sum(site.received) for site in field.sites) == 0


def test_nothing_to_deliver(tmp_path: Path) -> None:
    """Before the first release nobody is behind."""
    grid = Hospitals(tmp_path, [])
    assert behind(grid.federation) == []
    assert deliver(grid.federation, grid, lambda *_, **__: None) == {}


def test_the_flower_app_delivers(field: Field, caplog: pytest.LogCaptureFixture) -> None:
    """With task "deliver" and no run; the events go to the log."""
    config = {"task": "deliver", "run": "", "federation": str(field.federation.folder)}
    with caplog.at_level("INFO"):
        app(field.grid, Context(1, 0, {}, RecordDict(), config))
    assert field.has() == dict.fromkeys("abc", field.release)
    assert "delivered" in caplog.text


@pytest.mark.parametrize("config", [{"task": "deliver"}, {"task": "dance"}])
def test_the_flower_app_refuses_other_tasks(field: Field, config: dict[str, str]) -> None:
    """And a delivery without a federation."""
    with pytest.raises(ConfigurationError, match="task: expected 'run', or 'deliver' with a federation"):
        app(field.grid, Context(1, 0, {}, RecordDict(), {"run": "", "federation": "", **config}))


def _replies(**changes: Any) -> Iterable[RecordDict]:
    body = ReleaseReply(run="r1", site="a", installed="", used="")
    return [pack(body.model_copy(update=changes))]


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (*_replies(installed="../../etc"), "malformed"),
        (*_replies(used="A" * 64), "malformed"),
        (*_replies(site="b"), "site"),
        (*_replies(run="r0"), "stale"),
        (RecordDict(), "malformed"),
        (pack(ReleaseReply(run="r1", site="a", installed="", used=""), {}), "malformed"),
        (
            pack(TrainReply(run="r1", round=1, site="a", contract="", globals_digest="", update_digest="")),
            "malformed",
        ),
    ],
)
def test_what_is_no_answer_about_releases(reply: RecordDict, code: str) -> None:
    """Ids alone are taken, of this run and site."""
    with pytest.raises(RejectedUpdate) as caught:
        admit_release(reply, "r1", "a")
    assert caught.value.code == code
