"""Arrays that a run's objectives need at every site: made once of a sum, kept with the run, brought once to each site.

Invariants:

- They are made at the values of the model the run was given, before the first round, so that making them again, where
  the file was lost, asks the same question.
- A run that is resumed goes on with the arrays it began with.
- A site without them is not asked to train; it costs nothing but itself.

Layout: ``state/companion-NAME.safetensors`` in the run's folder, arrays by ``fedretrain.contract.key``, and as metadata
their weights digest and how many examples the run trains on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedretrain import atomic
from fedretrain.digest import weights_digest
from fedretrain.errors import MachineError, RunFailed
from fedretrain.job import NamedConfig
from fedretrain.messages import COMPANION, CompanionReply, CompanionRequest, Declined, pack
from fedretrain.sums import companion_specs
from strategies.base import Arrays
from strategies.ewc import EWC
from strategies.posterior import Posterior

from . import prior
from .admission import admit_companion, judged, wire_bytes
from .combining import shown_refusal
from .exchange import Question, exchange
from .prepare import Site
from .prior import InUse
from .sums import Line, Sum, ask_sum
from .wanted import companions_of

STIFF = 2.0


@dataclass(frozen=True)
class Made:
    """A companion: its arrays, and how many examples the run trains on at all its sites."""

    arrays: Arrays
    examples: int


class Companions:
    """Those of one run; nothing is asked, read or sent where its objectives need none.

    Args:
        line: How sites are reached.
        folder: Where they are kept.
        in_use: Gives what the release in use knows of its certainty (``server.prior``); asked where that is needed.
    """

    def __init__(self, line: Line, folder: Path, in_use: InUse = dict) -> None:
        self._line = line
        self._folder = folder
        self.in_use = in_use
        self._wanted = companions_of(line.plan.job)
        self._made: dict[str, Made] = {}
        self._held: dict[str, int] = {}  # nodes that have them all, by name
        self.digests: dict[str, str] = {}
        self.bytes_down = 0
        self.bytes_up = 0

    def __getitem__(self, name: str) -> Made:
        """A companion that was made, in this start or an earlier one; raises RunFailed where its file was lost."""
        made = self._made.get(name) or self._read(name)
        if made is None:
            raise RunFailed(f"{self._path(name)}: expected what the run began with, it is missing or damaged")
        return made

    def make(self, sites: Iterable[Site]) -> None:
        """Read those that were made before, and have the sites make the others.

        Raises:
            RunFailed: Too few answers.
            MachineError: The disk, or the way to the sites.
        """
        asked = list(sites)
        for name, objective in self._wanted.items():
            if name not in self._made:
                made = self._read(name) or self._ask(name, objective, asked)
                self._made[name], self.digests[name] = made, weights_digest(made.arrays)

    def bring(self, sites: Mapping[str, Site], forgetful: Iterable[int] = ()) -> dict[str, Site]:
        """The sites that have all companions, after those that lacked some were sent them.

        Args:
            sites: Who is to train, by name.
            forgetful: Nodes that lost what they were given.
        """
        if not self._wanted:
            return dict(sites)
        self.make(sites.values())
        lost = set(forgetful)
        self._held = {name: node for name, node in self._held.items() if node not in lost}
        without = {s.node: s.name for s in sites.values() if self._held.get(s.name) != s.node}
        if without:
            got = set(without)
            for name in self._made:
                got &= self._send(name, {node: without[node] for node in got})
            self._held |= {without[node]: node for node in got}
        return {name: site for name, site in sites.items() if self._held.get(name) == site.node}

    def take_bytes(self) -> tuple[int, int]:
        """Bytes of arrays sent and received since the last call."""
        taken = self.bytes_down, self.bytes_up
        self.bytes_down = self.bytes_up = 0
        return taken

    def _send(self, name: str, nodes: Mapping[int, str]) -> set[int]:
        """The nodes that stored it; why others did not is said."""
        plan, digest = self._line.plan, self.digests[name]
        specs = companion_specs(plan.contract)
        content = pack(
            CompanionRequest(run=plan.run, companion=digest), dict(zip(specs, self._made[name].arrays, strict=True))
        )
        self.bytes_down += wire_bytes(content) * len(nodes)
        question = Question(content, COMPANION, f"companion-{name}", plan.job.participation.deadline_s)
        stored = set()
        for arrival in exchange(self._line.grid, sorted(nodes), question, self._line.messenger):
            site = nodes[arrival.node]
            answer = judged(arrival.outcome, partial(admit_companion, run=plan.run, site=site, companion=digest))
            if isinstance(answer, CompanionReply):
                stored.add(arrival.node)
                continue
            refusal = shown_refusal(answer) if isinstance(answer, Declined) else answer
            told = {"site": site, "code": refusal.code, "where": f"companion {name}", "expected": refusal.detail}
            self._line.emit("site-declined", **told)
        return stored

    def _ask(self, name: str, objective: EWC | Posterior, sites: list[Site]) -> Made:
        """Make a companion, and keep it."""
        examples = sum(site.train_examples for site in sites)
        if isinstance(objective, EWC):
            arrays = list(self._sum(objective.sum, sites).arrays.values())
            _check_any(arrays, objective)
        else:
            specs = companion_specs(self._line.plan.contract)
            known = prior.kept(self.in_use(), specs, objective.prior_precision)
            if known is None:
                found = self._sum(objective.sum("old"), sites)
                known = prior.begun(list(found.arrays.values()), found.examples, objective.prior_precision)
            arrays = [(precision / examples).astype(np.float32) for precision in known]
        self._tell_stiff(objective, arrays)
        self._write(name, Made(arrays, examples))
        return Made(arrays, examples)

    def _tell_stiff(self, objective: EWC | Posterior, arrays: Arrays) -> None:
        """A step of gradient descent on (a/2) x² grows without end where the rate times a is 2 or more."""
        optimizer = self._line.plan.train.optimizer
        rate = optimizer.settings.get("learning_rate") if optimizer and optimizer.name.lower() == "sgd" else None
        largest = max((float(array.max()) for array in arrays if array.size), default=0.0)
        if isinstance(rate, int | float) and rate * objective.strength * largest >= STIFF:
            most = STIFF / 2 / (rate * largest)
            self._line.emit(
                "warning",
                text=f"objective {objective.name}: strength {objective.strength:g} is too much for the learning rate "
                f"{rate:g}: the values that matter most will swing, or training diverges. A strength of at most "
                f"{most:.2g} is safe, or another optimizer, such as adam",
            )

    def _sum(self, what: NamedConfig, sites: list[Site]) -> Sum:
        """At the values of the model the run was given."""
        plan = self._line.plan
        found = ask_sum(self._line, what, [plan.base.weights[i] for i in plan.contract.changing], sites)
        self.bytes_down, self.bytes_up = self.bytes_down + found.bytes_down, self.bytes_up + found.bytes_up
        return found

    def _path(self, name: str) -> Path:
        return self._folder / f"companion-{name}.safetensors"

    def _write(self, name: str, made: Made) -> None:
        tensors = dict(zip(companion_specs(self._line.plan.contract), made.arrays, strict=True))
        about = {"digest": weights_digest(made.arrays), "examples": str(made.examples)}
        with atomic.replacing(self._path(name)) as temporary:
            try:
                save_file(tensors, temporary, about)
            except SafetensorError as error:
                raise MachineError(f"{self._path(name)}: cannot write: {error}; free some space and resume") from error

    def _read(self, name: str) -> Made | None:
        """What an earlier start made, None where there is nothing, or nothing whole."""
        specs = companion_specs(self._line.plan.contract)
        try:
            with safe_open(self._path(name), framework="numpy") as file:  # type: ignore[no-untyped-call]  # no types
                arrays = [file.get_tensor(key) for key in specs]
                about = file.metadata() or {}
            made = Made(arrays, int(about["examples"]))
        except (SafetensorError, OSError, KeyError, ValueError):
            return None
        fits = [array.shape for array in arrays] == [spec.shape for spec in specs.values()]
        return made if fits and weights_digest(arrays) == about.get("digest") else None


def _check_any(arrays: Arrays, objective: EWC) -> None:
    if not any(np.any(array) for array in arrays):
        raise RunFailed(
            f"objective {objective.name}: the Fisher information is 0 everywhere, so that nothing would be held; a "
            'model that is certain of everything has none: take labels = "data", or another objective such as l2sp'
        )
