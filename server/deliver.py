"""Brings the release in use to the sites, and remembers which one each of them has.

Invariants: a site decides itself what it takes, from signed metadata alone; what goes wrong at one site, or on the way
to it, is written down for that site and stops nothing; a site that has the release is not sent it again.

Each connected site is first sent the registry's metadata (every root version, and the present timestamp, snapshot and
targets), and answers which release it has. To a site that has the one in use this is all. The others are sent the
metadata once more and with them the release's identifying files, in one message, read from verified bytes. What
is known of each site stands in ``state/installed.json`` (``server.installed``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Final

import numpy as np
from flwr.serverapp import Grid

from fedretrain import atomic
from fedretrain.crashpoint import crash_point
from fedretrain.digest import sha256
from fedretrain.errors import RejectedUpdate
from fedretrain.ledger import files_of
from fedretrain.messages import RELEASE, Declined, ReleaseReply, ReleaseRequest, pack
from fedretrain.release import IDENTIFYING
from fedretrain.trust import SignedState, read_bounded, read_signed

from .admission import admit_release, judged
from .exchange import Question, exchange, transport_errors
from .federation import Federation
from .installed import Installed, installed, is_due, remember
from .messenger import messenger_of
from .registry import Registry

ASK_S: Final = 60.0  # how long a site may take to say what it has
BRING_S: Final = 300.0  # and to receive and verify a release
RUN: Final = "deliver"  # the run that requests name where a delivery is not part of one

Emit = Callable[..., None]
Answer = ReleaseReply | Declined | RejectedUpdate


def behind(federation: Federation, at: datetime | None = None) -> list[str]:
    """Active members that lack the release in use and were not offered it a short while ago, whether connected or not.

    Args:
        federation: Whose registry and members.
        at: The time; default is the clock's.

    Raises:
        UntrustedRelease: The registry does not verify.
        ConfigurationError: The roster is damaged.
    """
    state = Registry.open(federation.folder).state()
    incumbent = state.ledger.incumbent if state else None
    if incumbent is None:
        return []
    known, now = installed(federation), at or datetime.now(UTC)
    members = federation.active()
    return [name for name in sorted(members) if is_due(known.get(name), members[name].admitted, incumbent, now)]


def deliver(federation: Federation, grid: Grid, emit: Emit, run: str = RUN) -> dict[str, Installed]:
    """Bring the release in use to every connected member that lacks it.

    Args:
        federation: Whose registry and members.
        grid: Where the sites are.
        emit: Takes ``delivered`` and ``delivery-failed`` (``server.events``).
        run: The run's id.

    Returns:
        What is known of the sites that were asked.

    Raises:
        UntrustedRelease: The registry does not verify.
        ConfigurationError: The federation's roster or the coordinator's key cannot be used.
        MachineError: Disk or network failed; what had arrived is remembered.
    """
    registry = Registry.open(federation.folder)
    state = registry.state()
    incumbent = state.ledger.incumbent if state else None
    if state is None or incumbent is None:
        return {}
    delivery = _Delivery(federation, grid, emit, run, incumbent)
    metadata = metadata_files(registry, state)
    lacking = delivery.bring(delivery.connected(), metadata, ASK_S)
    if lacking:
        delivery.bring(lacking, metadata | release_files(registry, state, incumbent), BRING_S, last=True)
    crash_point("delivered")
    return delivery.outcome


def metadata_files(registry: Registry, state: SignedState) -> dict[str, bytes]:
    """The metadata that lead from any root version to ``state``, by name in the registry; raises MachineError."""
    folder = registry.folder / "metadata"
    with atomic.disk_errors(folder, "read"):
        roots = {path.name: read_bounded(path) or b"" for path in sorted(folder.glob("*.root.json"))}
    return {f"metadata/{name}": data for name, data in sorted({**roots, **state.files}.items())}


def release_files(registry: Registry, state: SignedState, identity: str) -> dict[str, bytes]:
    """The identifying files of a release by name in the registry, each verified.

    Raises:
        UntrustedRelease: A file is not the one that was signed.
        MachineError: The disk failed.
    """
    signed = files_of(state.targets, identity)
    folder = registry.folder / "releases" / identity
    read = {name: read_signed(folder / name, signed[name], signed[name].length) for name in IDENTIFYING}
    return {f"releases/{identity}/{name}": data for name, data in read.items()}


class _Delivery:
    """One delivery: ``outcome`` grows as sites answer, and is on the disk as it grows."""

    def __init__(self, federation: Federation, grid: Grid, emit: Emit, run: str, incumbent: str) -> None:
        self.outcome: dict[str, Installed] = {}
        self._federation = federation
        self._grid = grid
        self._messenger = messenger_of(federation, grid, run)
        self._emit = emit
        self._run = run
        self._incumbent = incumbent
        self._before = installed(federation)

    def connected(self) -> list[int]:
        """The members' nodes."""
        with transport_errors("ask which sites are connected"):
            return sorted(self._messenger.online() or {})

    def bring(
        self, nodes: Sequence[int], files: Mapping[str, bytes], limit_s: float, *, last: bool = False
    ) -> list[int]:
        """Send the files; the nodes that answer without having the release in use, unless this was the ``last`` try."""
        hashes = {name: sha256(data) for name, data in files.items()}
        request = ReleaseRequest(run=self._run, incumbent=self._incumbent, files=hashes)
        content = pack(request, {name: np.frombuffer(data, np.uint8) for name, data in files.items()})
        names = self._messenger.names(nodes)
        lacking = []
        for arrival in exchange(self._grid, nodes, Question(content, RELEASE, RUN, limit_s), self._messenger):
            name = names[arrival.node]
            answer = judged(arrival.outcome, partial(admit_release, run=self._run, site=name))
            if isinstance(answer, ReleaseReply) and answer.installed != self._incumbent and not last:
                lacking.append(arrival.node)
            else:
                self._settle(name, answer)
        return sorted(lacking)

    def _settle(self, site: str, answer: Answer) -> None:
        """Remember what a site answered, and tell it where it is news."""
        trouble = _trouble(answer, self._incumbent)
        before = self._before.get(site, Installed())
        entry = replace(before, offered=self._incumbent, code=trouble.get("code", ""), at=_utc())
        if isinstance(answer, ReleaseReply):
            entry = replace(entry, installed=answer.installed, used=answer.used)
        self.outcome[site] = entry
        remember(self._federation, site, entry)
        if trouble:
            self._emit("delivery-failed", site=site, release=self._incumbent, **trouble)
        elif before.installed != self._incumbent:
            self._emit("delivered", site=site, release=self._incumbent)


def _trouble(answer: Answer, incumbent: str) -> dict[str, str]:
    """Code, where and expected of an answer that does not say that the release in use is installed; else empty."""
    if isinstance(answer, RejectedUpdate):
        return {"code": answer.code, "where": "", "expected": answer.detail.removeprefix("expected ")}
    if isinstance(answer, Declined):
        return {"code": answer.code, "where": answer.where, "expected": answer.expected}
    if answer.installed != incumbent:
        return {"code": "release-refused", "where": "", "expected": f"{incumbent[:16]}, has {answer.installed[:16]}"}
    return {}


def _utc() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
