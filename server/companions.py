"""Arrays that a run's objectives need at every site: made once of a sum, kept with the run, brought once to each site.

Invariants:

- They are made at the values of the model the run was given, before the first round, so that making them again, where
  the file was lost, asks the same question.
- A run that is resumed goes on with the arrays it began with.
- A site without them is not asked to train; it costs nothing but itself.

Layout: ``state/companion-NAME.safetensors`` in the run's folder, arrays by ``fedretrain.contract.key``, and as metadata
their weights digest.
"""

from collections.abc import Iterable, Mapping
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

from .admission import admit_companion, judged, wire_bytes
from .combining import shown_refusal
from .exchange import Question, exchange
from .prepare import Site
from .sums import Line, ask_sum
from .wanted import companion_sums


class Companions:
    """Those of one run; nothing is asked, read or sent where its objectives need none.

    Args:
        line: How sites are reached.
        folder: Where they are kept.
    """

    def __init__(self, line: Line, folder: Path) -> None:
        self._line = line
        self._folder = folder
        self._sums = companion_sums(line.plan.job)
        self._made: dict[str, Arrays] = {}
        self._held: dict[str, int] = {}  # nodes that have them all, by name
        self.digests: dict[str, str] = {}
        self.bytes_down = 0
        self.bytes_up = 0

    def make(self, sites: Iterable[Site]) -> None:
        """Read those that were made before, and have the sites make the others.

        Raises:
            RunFailed: Too few answers.
            MachineError: The disk, or the way to the sites.
        """
        asked = list(sites)
        for name, what in self._sums.items():
            if name not in self._made:
                arrays = self._read(name) or self._ask(name, what, asked)
                self._made[name], self.digests[name] = arrays, weights_digest(arrays)

    def bring(self, sites: Mapping[str, Site], forgetful: Iterable[int] = ()) -> dict[str, Site]:
        """The sites that have all companions, after those that lacked some were sent them.

        Args:
            sites: Who is to train, by name.
            forgetful: Nodes that lost what they were given.
        """
        if not self._sums:
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
            CompanionRequest(run=plan.run, companion=digest), dict(zip(specs, self._made[name], strict=True))
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

    def _ask(self, name: str, what: NamedConfig, sites: list[Site]) -> Arrays:
        plan = self._line.plan
        params = [plan.base.weights[i] for i in plan.contract.changing]
        found = ask_sum(self._line, what, params, sites)
        self.bytes_down, self.bytes_up = self.bytes_down + found.bytes_down, self.bytes_up + found.bytes_up
        arrays = list(found.arrays.values())
        if not any(np.any(array) for array in arrays):
            raise RunFailed(
                f"objective {name}: the sum over all sites is 0 everywhere, so that it would hold nothing; expected a "
                'model that is not certain of everything, or labels = "data"'
            )
        self._write(name, arrays)
        return arrays

    def _path(self, name: str) -> Path:
        return self._folder / f"companion-{name}.safetensors"

    def _write(self, name: str, arrays: Arrays) -> None:
        tensors = dict(zip(companion_specs(self._line.plan.contract), arrays, strict=True))
        with atomic.replacing(self._path(name)) as temporary:
            try:
                save_file(tensors, temporary, {"digest": weights_digest(arrays)})
            except SafetensorError as error:
                raise MachineError(f"{self._path(name)}: cannot write: {error}; free some space and resume") from error

    def _read(self, name: str) -> Arrays | None:
        """What an earlier start made, None where there is nothing, or nothing whole."""
        specs = companion_specs(self._line.plan.contract)
        try:
            with safe_open(self._path(name), framework="numpy") as file:  # type: ignore[no-untyped-call]  # no types
                arrays = [file.get_tensor(key) for key in specs]
                digest = (file.metadata() or {}).get("digest")
        except (SafetensorError, OSError):
            return None
        fits = [array.shape for array in arrays] == [spec.shape for spec in specs.values()]
        return arrays if fits and weights_digest(arrays) == digest else None
