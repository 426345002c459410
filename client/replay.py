"""Old examples that a site keeps for later runs, to be mixed in with new ones in the mode "replay".

Invariants:

- A site keeps nothing unless its policy says how many examples (``[policy.replay]``). What was kept is removed at the
  first request about data after that was taken back; what became too old or too much, when the next run is prepared. No
  example leaves the site, and every one lies encrypted (``client.vault``).
- What a run could train on, old examples among the data too, enters after the site's first update in it: what is new
  then is old for the next run, never for its own.
- A run draws its sample once, when it is prepared, and every round uses that, also one that is asked for again.
- A file that was changed, or whose key is gone, counts as empty; the log and the site's record say so.
- What is kept follows from what was offered, in whatever order, and however often the same was: an example has a
  random number, its id, and the lowest are kept (``client.kept.sample``). That is a draw without replacement, as a
  reservoir has it, which may see an example again.

J. S. Vitter: Random Sampling with a Reservoir. ACM Transactions on Mathematical Software 11(1), 1985,
https://doi.org/10.1145/3147.3165. E. Cohen, H. Kaplan: Summarizing Data using Bottom-k Sketches. PODC 2007,
https://doi.org/10.1145/1281100.1281133. A. Chaudhry et al.: On Tiny Episodic Memories in Continual Learning. 2019,
https://arxiv.org/abs/1902.10486, has both samples; there a balanced one is a ring buffer for each label, here it is the
lowest ids of each, and replayed examples are mixed into an epoch instead of making half of each batch.

Layout of a site's folder, 0700, files 0600::

    key                                  32 bytes, of this site alone
    memory-<SHA-256 of the form>.vault   what is kept of data of one form: inputs, outputs, preprocessing
    run-<SHA-256 of the run's id>.vault  what a run drew; of the last runs, for a month at most
"""

import logging
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from fedretrain import atomic
from fedretrain.contract import Contract
from fedretrain.dataset import Dataset
from fedretrain.digest import json_digest, sha256
from fedretrain.errors import DataMismatch

from .kept import Kept, form, identities, labels_of, packed, sample, together, unpacked
from .policy import ReplayRules
from .sampling import Indices
from .vault import Arrays, DamagedVault, Vault

log = logging.getLogger(__name__)

RUNS, FORMS = 4, 4  # files of either kind in a site's folder
RUN_DAYS = 30.0
_DAY_S = 86_400.0
_MB = 1 << 20


class Replay:
    """One site's memory.

    Args:
        folder: Of this site alone.
        site: Its name.
        clock: Seconds since 1970.
    """

    def __init__(self, folder: Path, site: str, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._site = site
        self._clock = clock
        self._vault = Vault(folder / "key")
        self._damaged = 0

    def drawn(self, run: str, contract: Contract, rules: ReplayRules, data: Dataset, old: Indices) -> Dataset:
        """What a run replays: drawn when it first asks, the same from then on.

        Args:
            run: The run's id.
            contract: What its data look like.
            rules: How many examples, of what age, and which sample.
            data: The site's examples. What is kept of them from earlier runs is not drawn: it is here as it is.
            old: Positions in them of examples to draw from as well.

        Raises:
            MachineError: The disk does not take it.
        """
        path, bound = (
            self._folder / f"run-{sha256(run.encode())}.vault",
            json_digest([run, self._site, contract.digest]),
        )
        found = self._read(path, bound, contract)
        if found is None or found.data.unlabelled != data.unlabelled:
            current, now = identities(data, contract), self._clock()
            sources = [Kept(data.take(old), current[old], np.full(len(old), now))]
            kept = self._memory(contract)
            if kept is not None and kept.data.unlabelled == data.unlabelled:
                sources.append(kept.take(~kept.among(current)))
            found = _within(together(sources), rules, contract, now)
            self._write(path, found, bound, contract)
            self._tidy(rules)
        return found.data

    def keep(self, contract: Contract, rules: ReplayRules, data: Dataset, rows: Indices) -> int:
        """Take in what a run could train on: the ``rows`` of the site's ``data``.

        Returns:
            How many examples of this form are kept now.

        Raises:
            MachineError: The disk does not take it.
        """
        now = self._clock()
        whole = Kept(data.take(rows), identities(data, contract)[rows], np.full(len(rows), now))
        kept = self._memory(contract)
        if kept is not None and kept.data.unlabelled == data.unlabelled:
            whole = together([whole.entered_as(kept), kept.take(~kept.among(whole.id))])
        whole = _within(whole, rules, contract, now)
        self._write(self._memory_path(contract), whole, self._of(contract), contract)
        self._tidy(rules)
        return len(whole)

    def enforce(self, rules: ReplayRules) -> None:
        """Remove what the rules do not allow any more: everything, or what is too old or too much.

        Raises:
            MachineError: The disk does not take it.
        """
        if not rules.examples:
            self.forget()
            return
        for path in self._folder.glob("memory-*.vault"):
            bound = path.stem.partition("-")[2]
            try:
                arrays = self._vault.get(path, bound)
            except DamagedVault as damaged:
                log.warning("site %s: examples kept for replay are removed: %s", self._site, damaged)
                self._damaged += 1
                path.unlink(missing_ok=True)
                continue
            if arrays is not None and (kept := _fewer(arrays, rules, self._clock())) is not None:
                self._vault.put(path, kept, bound)
        self._tidy(rules)

    def forget(self) -> None:
        """Remove everything that was kept, and the key; raises MachineError."""
        if self._folder.exists():
            log.warning("site %s: the examples kept for later runs are removed, the policy allows none", self._site)
            with atomic.disk_errors(self._folder, "remove the examples kept there"):
                shutil.rmtree(self._folder)

    def damaged(self) -> int:
        """How many files were found changed, or without their key, since this was last asked."""
        count, self._damaged = self._damaged, 0
        return count

    def _memory(self, contract: Contract) -> Kept | None:
        return self._read(self._memory_path(contract), self._of(contract), contract)

    def _memory_path(self, contract: Contract) -> Path:
        return self._folder / f"memory-{self._of(contract)}.vault"

    def _of(self, contract: Contract) -> str:
        return json_digest([self._site, form(contract)])

    def _read(self, path: Path, bound: str, contract: Contract) -> Kept | None:
        """The examples of a file, None where there are none to be had."""
        try:
            arrays = self._vault.get(path, bound)
            return None if arrays is None else unpacked(arrays, contract)
        except DamagedVault as damaged:
            log.warning("site %s: examples kept for replay are as good as gone: %s", self._site, damaged)
            self._damaged += 1
        except (DataMismatch, KeyError, ValueError):
            log.warning("site %s: examples kept for replay do not fit this model and are left out", self._site)
        return None

    def _write(self, path: Path, kept: Kept, bound: str, contract: Contract) -> None:
        atomic.make_folder(self._folder, mode=0o700)
        self._vault.put(path, packed(kept, contract), bound)

    def _tidy(self, rules: ReplayRules) -> None:
        """Remove what was not used lately; a file too many is found the next time."""
        oldest = self._clock() - min(RUN_DAYS, rules.days or RUN_DAYS) * _DAY_S
        with suppress(OSError):
            runs, memories = (sorted(self._folder.glob(f"{kind}-*.vault"), key=_age) for kind in ("run", "memory"))
            for file in [*runs[RUNS:], *memories[FORMS:], *(file for file in runs[:RUNS] if -_age(file) < oldest)]:
                file.unlink()


def _fewer(arrays: Arrays, rules: ReplayRules, now: float) -> Arrays | None:
    """The arrays of a memory with the rows that may stay; None where all may."""
    about = {"about": arrays["about"]}
    by_row = {name: array for name, array in arrays.items() if name not in about}
    count = len(by_row["id"])
    rows = np.arange(count)
    if rules.days is not None:
        rows = rows[by_row.get("time", by_row["entered"]) >= now - rules.days * _DAY_S]
    size = sum(array.nbytes for array in by_row.values()) // max(1, count)
    rows = rows[sample(by_row["id"][rows], None, min(rules.examples, rules.max_mb * _MB // max(1, size)))]
    return None if len(rows) == count else about | {name: array[rows] for name, array in by_row.items()}


def _age(file: Path) -> float:
    return -file.stat().st_mtime


def _within(kept: Kept, rules: ReplayRules, contract: Contract, now: float) -> Kept:
    """What may stay: young enough, and of these the sample, as many as number and size allow."""
    if rules.days is not None:
        made = kept.entered if kept.data.time is None else kept.data.time
        kept = kept.take(made >= now - rules.days * _DAY_S)
    size = kept.data.nbytes // max(1, len(kept)) + kept.id.shape[1] + kept.entered.itemsize
    labels = labels_of(kept.data, contract) if rules.sample == "balanced" else None
    return kept.take(sample(kept.id, labels, min(rules.examples, rules.max_mb * _MB // size)))
