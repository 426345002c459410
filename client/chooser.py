"""One site's choice of what to train on, kept from one round of a run to the next.

It ties together what the job selects (``client.selection``), what the site replays (``client.replay``) and what its
policy allows.
"""

import logging
from pathlib import Path

import numpy as np

from fedretrain.dataset import Dataset
from fedretrain.digest import json_digest, sha256
from fedretrain.errors import DeclinedRequest, MachineError
from fedretrain.job import ReplaySection
from fedretrain.messages import PrepareRequest

from .policy import Policy, ReplayRules, check_examples
from .replay import Replay
from .selection import Selection, parted, select, selects

log = logging.getLogger(__name__)

_NOTHING = ReplayRules()


class Chooser:
    """One site's.

    Args:
        site: The site's name.
        folder: Where sites keep examples for later runs.
        policy: How many examples are needed, and how many may be kept. None asks nothing and lets a job of the mode
            "replay" keep what it says, as a simulation does.
    """

    def __init__(self, site: str, folder: Path, policy: Policy | None) -> None:
        self._site = site
        self._policy = policy
        self._replay = Replay(folder / sha256(site.encode()), site)
        self._chosen: tuple[Dataset, str, Selection] | None = None
        self._asked: PrepareRequest | None = None  # for which that was: no digest to compare
        self._kept: tuple[str, int] | None = None
        self._untold = 0

    @property
    def nbytes(self) -> int:
        """Bytes in memory beside the site's data."""
        return self._chosen[2].data.nbytes if self._chosen is not None and self._chosen[2].drawn else 0

    def begin(self) -> None:
        """A run is prepared: what the policy does not let the site keep any longer is removed; raises MachineError."""
        if self._policy is not None:
            self._replay.enforce(self._policy.replay)

    def selection(self, request: PrepareRequest, data: Dataset) -> Selection | None:
        """What a run trains on; None for all training examples alike, split as ever.

        Raises:
            DataMismatch: As ``client.selection.select``.
            DeclinedRequest: As there; ``policy`` where nothing may be replayed.
            MachineError: The disk does not take what is replayed.
        """
        if not selects(request):
            self._chosen = None
            return None
        if self._chosen is not None and self._chosen[0] is data and self._asked is request:
            return self._chosen[2]
        about = request.model_dump(mode="json", include={"run", "train", "strategy"})
        key = json_digest([request.contract.digest, about])
        if self._chosen is None or self._chosen[0] is not data or self._chosen[1] != key:
            self._chosen = None
            self._chosen = data, key, select(request, data, self._site, self._drawn(request, data))
        self._asked = request
        return self._chosen[2]

    def counts(self, request: PrepareRequest, data: Dataset) -> tuple[int, int]:
        """How many examples a round trains on, and how many are validated on; raises as ``selection``."""
        chosen = self.selection(request, data)
        if chosen is not None:
            return chosen.examples, len(chosen.held)
        parts = parted(data, request.train, self._site)
        return len(parts.mine), len(parts.held)

    def check(self, request: PrepareRequest, data: Dataset) -> None:
        """Raises DeclinedRequest ``policy`` where there are too few examples for this site's policy, or ``counts``."""
        if self._policy is not None:
            if not self._policy.replay.examples:
                self._replay.forget()
            chosen = self.selection(request, data)
            check_examples(self._policy, request, len(chosen.train) if chosen else self.counts(request, data)[0])

    def trained(self, request: PrepareRequest, data: Dataset) -> None:
        """An update was made: what it could be trained on is kept as far as the policy allows, once for a run.

        In the mode "replay" that includes all old examples of the site's own data that its rounds draw from.

        Where the disk does not take it, the log says so; the update is none the worse.
        """
        rules = self._rules(request)
        if not rules.examples or (self._kept is not None and self._kept == (request.run, id(data))):
            return
        chosen, parts = self.selection(request, data), parted(data, request.train, self._site)
        rows = chosen.chosen if chosen is not None else parts.mine
        if request.train.mode == "replay":
            rows = np.union1d(rows, parts.old)
        self._kept = request.run, id(data)
        try:
            self._untold = self._replay.keep(request.contract, rules, data, rows)
        except MachineError as error:
            log.warning("site %s, run %s: nothing is kept for later runs: %s", self._site, request.run, error)

    def kept(self) -> int:
        """How many examples are kept for later runs, where that has changed since this was last asked; else 0."""
        count, self._untold = self._untold, 0
        return count

    def damaged(self) -> int:
        """How many files of kept examples were found changed, or without their key, since this was last asked."""
        return self._replay.damaged()

    def _drawn(self, request: PrepareRequest, data: Dataset) -> Dataset | None:
        if request.train.mode != "replay":
            return None
        wanted, rules = request.train.replay or ReplaySection(), self._rules(request)
        if not rules.examples:
            raise DeclinedRequest("policy", "replay", "a mode that keeps no examples; this site's policy keeps none")
        allowed = {"examples": min(wanted.examples, rules.examples), "sample": wanted.sample}
        old = parted(data, request.train, self._site).old
        found = self._replay.drawn(request.run, request.contract, rules.model_copy(update=allowed), data, old)
        if not len(found):
            log.warning("site %s, run %s: there are no old examples to replay yet", self._site, request.run)
        return found

    def _rules(self, request: PrepareRequest) -> ReplayRules:
        """What may be kept."""
        if self._policy is not None:
            return self._policy.replay
        if request.train.mode != "replay":
            return _NOTHING
        wanted = request.train.replay or ReplaySection()
        return ReplayRules(examples=wanted.examples, sample=wanted.sample)
