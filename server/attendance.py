"""Which sites take part in the next round: those that are ready, and in a federation also connected and still members.

Invariants:

- In a simulation every node is asked once, at the start, and again only when it has lost what it was given.
- In a federation nobody waits for a site that is not connected while there are enough others. One that connects later,
  or may have changed its mind, is invited between rounds, and less and less often while it does not come.
- A site that was revoked is out from the next round on.
- Too few sites are waited for ``NODE_WAIT_S`` seconds, and no longer.
"""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flwr.serverapp import Grid

from fedretrain.errors import RunFailed

from .events import EventLog
from .exchange import transport_errors
from .messenger import PLAIN, Messenger
from .plan import Plan
from .prepare import LEAST_WAIT_S, NODE_WAIT_S, Preparation, Prepared, Site, await_nodes, capped

OTHERS_WAIT_S = 5.0  # how long a run waits for the rest of its sites once enough of them are connected
LOOK_S = 0.25  # how often it looks who is connected
INVITED_WAIT_S = 30.0  # for the answer to an invitation between rounds; a later one is answered the sooner
INVITE_AGAIN_S = 60.0  # after a refusal or no answer; twice as long after each further one


@dataclass(frozen=True)
class Invitation:
    """When a node was last asked to take part in vain, in monotonic seconds, and for the how manieth time."""

    at: float
    times: int

    @property
    def due(self) -> float:
        """When it may be asked again."""
        return self.at + INVITE_AGAIN_S * 2.0 ** (self.times - 1)


class Attendance:
    """Keeps the sites of one run.

    Args:
        plan: What is fixed.
        grid: Where the sites are.
        emit: Takes the events.
        messenger: How messages go out and come back.
    """

    def __init__(self, plan: Plan, grid: Grid, emit: EventLog, messenger: Messenger = PLAIN) -> None:
        self._preparation = Preparation(plan, grid, emit, messenger)
        self._expected = len(plan.expected)
        self._at_least = plan.job.participation.min_sites
        self._patience = max(plan.job.participation.deadline_s, LEAST_WAIT_S)
        self._grid = grid
        self._emit = emit
        self._messenger = messenger
        self._sites: dict[str, Site] = {}  # that are ready, connected or not
        self._away: set[str] = set()
        self._refused: dict[int, Invitation] = {}
        self._base_bytes = 0

    def gather(self) -> None:
        """Prepare the sites at the start of a run; raises RunFailed where too few are connected or can train."""
        names = self._await_members()
        nodes = await_nodes(self._grid, self._expected or self._at_least, self._at_least) if names is None else names
        prepared = self._invite(nodes, self._patience)
        if len(self._sites) < self._at_least:
            raise RunFailed(
                f"expected at least {self._at_least} sites that can train (participation.min_sites), "
                f"got {len(self._sites)}; declined: {'; '.join(prepared.refusals)}"
            )

    @property
    def gathered(self) -> bool:
        """Whether any site is ready."""
        return bool(self._sites)

    def next_round(self, forgetful: Iterable[int] = ()) -> dict[str, Site]:
        """The sites that can be asked, by name; ``forgetful`` are nodes that lost what they were given.

        Raises:
            RunFailed: Too few of a federation's sites are connected.
            MachineError: The network, or the disk.
        """
        lost = set(forgetful)
        self._sites = {name: site for name, site in self._sites.items() if site.node not in lost}
        names = self._online()
        if names is not None:
            self._refused = {n: i for n, i in self._refused.items() if n in names}  # who went and came back is new
            return self._present(names)
        if lost:
            self._invite(lost, self._patience)
        return self._sites

    @property
    def examples(self) -> int:
        """Training examples of all sites that are ready, asked or not."""
        return sum(site.train_examples for site in self._sites.values())

    def take_base_bytes(self) -> int:
        """Bytes of base models sent since the last call."""
        taken, self._base_bytes = self._base_bytes, 0
        return taken

    def _present(self, names: Mapping[int, str] | None) -> dict[str, Site]:
        """The ready sites among the members that are connected, waited for while they are too few."""
        end = time.monotonic() + NODE_WAIT_S
        while names is not None:
            now = time.monotonic()
            ready = {name: site for name, site in self._sites.items() if names.get(site.node) == name}
            others = [node for node, name in names.items() if name not in ready and self._may_ask(node, now)]
            if others and now < end:
                replaced = {names[node] for node in others}  # whoever bore the name has another node by now
                self._sites = {name: site for name, site in self._sites.items() if name not in replaced}
                self._invite(others, INVITED_WAIT_S if len(ready) >= self._at_least else self._patience)
            elif len(ready) >= self._at_least or now >= end:
                self._tell_absent(set(ready))
                return self._enough(ready)
            else:
                self._tell_absent(set(ready))
                time.sleep(LOOK_S)
            names = self._online()
        return self._sites

    def _enough(self, ready: dict[str, Site]) -> dict[str, Site]:
        if len(ready) < self._at_least:
            raise RunFailed(
                f"expected at least {self._at_least} sites that can train to be connected within "
                f"{NODE_WAIT_S:g} s (participation.min_sites), got {len(ready)} ({', '.join(ready) or 'none'})"
            )
        return ready

    def _may_ask(self, node: int, now: float) -> bool:
        return node not in self._refused or now >= self._refused[node].due

    def _invite(self, nodes: Iterable[int], limit_s: float) -> Prepared:
        nodes = sorted(nodes)
        prepared = self._preparation.ask(nodes, self._sites, limit_s)
        self._sites = capped(self._sites | prepared.sites, self._emit)
        self._base_bytes += prepared.base_bytes
        ready, now = {site.node for site in prepared.sites.values()}, time.monotonic()
        for node in nodes:
            before = self._refused.pop(node, Invitation(now, 0))
            if node not in ready:
                self._refused[node] = Invitation(now, before.times + 1)
        return prepared

    def _tell_absent(self, present: set[str]) -> None:
        """Say which ready sites went or came back since the last round."""
        absent = set(self._sites) - present
        for name in sorted(absent - self._away):
            self._emit("site-away", site=name)
        for name in sorted(self._away & present):
            self._emit("site-back", site=name)
        self._away = absent

    def _online(self) -> dict[int, str] | None:
        with transport_errors("ask which sites are connected"):
            return self._messenger.online()

    def _await_members(self) -> dict[int, str] | None:
        """The members that are connected, soon after there are enough; None where nodes have no names beforehand."""
        start, enough = time.monotonic(), math.inf
        while (names := self._online()) is not None and len(names) < self._expected:
            now = time.monotonic()
            enough = min(enough, now) if len(names) >= self._at_least else math.inf
            if now - enough > OTHERS_WAIT_S or now - start > NODE_WAIT_S:
                break
            time.sleep(LOOK_S)
        if names is not None and len(names) < self._at_least:
            raise RunFailed(
                f"expected at least {self._at_least} members of the federation to be connected within "
                f"{NODE_WAIT_S:g} s, got {len(names)} ({', '.join(sorted(names.values())) or 'none'}); start "
                "the missing ones, or lower participation.min_sites, and resume"
            )
        return names
