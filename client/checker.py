"""A site's part in checks (``fedretrain.checks``): it reads, asks the model, and counts.

Invariant: a check changes nothing of what training does, but for the suspected labels that a site's policy has training
leave out.
"""

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fedretrain import atomic
from fedretrain.checks import CheckSettings
from fedretrain.contract import Contract
from fedretrain.dataset import Dataset
from fedretrain.digest import sha256
from fedretrain.errors import DeclinedRequest
from fedretrain.messages import PrepareRequest

from .checking import quality
from .checking.answer import Rules, answered
from .checking.business import Metrics
from .checking.predictions import Answers
from .checking.reading import Found, read
from .checking.suppress import Guard
from .checking.windows import windows
from .failures import log_without_text
from .policy import Policy, enough_for_check, may_leave
from .sums import Total
from .trainer import Order

log = logging.getLogger(__name__)

_ANSWERED = frozenset({"predictions", "confusion", "confidence", "calibration", "quality", "stream"})
_KEY_BYTES = 32
_OWN = 0o600


class Checker:
    """One site's.

    Args:
        site: The site's name.
        load: Reads its data as a contract names them; raises DataMismatch.
        folder: Where the key of the noise and suspected labels lie.
        trainer: What has the model; without ``answers``, sections about them have failed.
        policy: What may leave; None: everything, about at least the fewest examples.
        metrics: Gives the site's business metrics, where it has some.
    """

    def __init__(  # noqa: PLR0913 - each is another part of a site
        self,
        site: str,
        load: Callable[[Contract], Dataset],
        folder: Path,
        trainer: Any,
        policy: Policy | None,
        *,
        metrics: Metrics | None = None,
    ) -> None:
        self._site, self._load, self._folder, self._trainer = site, load, folder, trainer
        self._policy, self._own_policy = policy or Policy(), policy is not None
        self._metrics = metrics
        self._found: tuple[str, tuple[str, ...], Found] | None = None
        self._left: Mapping[str, int] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of data in memory."""
        return 0 if self._found is None else self._found[2].nbytes

    def prepare(self, request: PrepareRequest) -> int:
        """Read the data anew, and say how many complete examples there are, as the policy lets it be told.

        Each window (``request.train.since``) is told by itself: a small one could be found by subtraction from all.

        Raises:
            DataMismatch: The data have another form than the contract's.
            DeclinedRequest: ``policy`` where there are too few of them.
        """
        self._found = None
        found = self._read(request.contract, ())
        if self._own_policy:
            enough_for_check(self._policy, len(found.data))
        since, guard = request.train.since, self._guard()
        rows = windows(found.data.time, None if since is None else since.timestamp(), len(found.data))
        return sum(max(0, guard.count(int(of.sum()), "examples", window)) for window, of in rows.items())

    def total(
        self, order: Order, settings: CheckSettings, base: Callable[[], Any], received: list[NDArray[Any]]
    ) -> Total:
        """The answer's arrays, in the order of ``fedretrain.checks.layout``, and about how many examples they are.

        Args:
            order: Of the run; says whose model it is and how long it may take.
            settings: What is asked.
            base: Every variable of the base model.
            received: Values of the variables that travel.

        Raises:
            DataMismatch: As ``prepare``.
            DeclinedRequest: As ``prepare``, ``model-missing``, or ``data-too-few``.
        """
        contract = order.request.contract
        found = self._read(contract, settings.labels)
        self._found = None  # a check asks once
        if self._own_policy:
            enough_for_check(self._policy, len(found.data))
        self._check_some(len(found.data))
        answers = self._answers(order, settings, base, received, found.data)
        rules = Rules(self._guard(), self._may, self._metrics or (lambda *_: {}), self._failed, time.time())
        answer, suspected = answered(found, contract, settings, answers, rules)
        if suspected is not None and "label-noise" in self._policy.quality.leave_out:
            rows = quality.digests(found.data.take(suspected), contract)
            _suspects(self._folder, self._site).keep(rows)
        examples = sum(answer.examples.values())
        self._check_some(examples)
        return Total(answer.to_arrays(settings), examples)

    def trainable(self, contract: Contract, raw: Dataset) -> Dataset:
        """Data as training takes them, without what the policy leaves out; raises DataMismatch."""
        data, self._left = training_data(raw, contract, self._policy, self._folder, self._site)
        return data

    def left_out(self) -> Mapping[str, int]:
        """How many examples training left out when the data were last read, by reason; once, then nothing."""
        left, self._left = self._left, {}
        return left

    def _check_some(self, examples: int) -> None:
        least = self._policy.min_count
        if examples < least:
            raise DeclinedRequest("data-too-few", "examples", f"at least {least} complete ones")

    def _read(self, contract: Contract, labels: tuple[str, ...]) -> Found:
        if self._found is None or self._found[:2] != (contract.digest, labels):
            self._found = None
            self._found = contract.digest, labels, read(self._load, contract, labels)
        return self._found[2]

    def _answers(
        self, order: Order, settings: CheckSettings, base: Callable[[], Any], received: Any, data: Dataset
    ) -> Answers | None:
        """The model's answers; None where nothing asks for them, there is no example, or the model gives none."""
        projected = any(feature.kind == "projection" for feature in order.request.contract.features)
        wanted = _ANSWERED | ({"histogram"} if projected else set())
        if not len(data) or not any(self._may(name) for name in wanted & set(settings.statistics)):
            return None
        if not hasattr(self._trainer, "answers"):
            log.warning("site %s: its trainer backend gives no answers of the model: a check goes without", self._site)
            return None
        try:
            found: Answers = self._trainer.answers(order, base, received, data)
        except DeclinedRequest as refusal:
            if refusal.code not in ("training-diverged", "policy"):
                raise
            log.warning("site %s: a check goes without the model's answers: %s", self._site, refusal)
            return None
        return found

    def _may(self, section: str) -> bool:
        return may_leave(self._policy, f"check-{section}")

    def _failed(self, section: str, error: Exception) -> None:
        log_without_text(f"site {self._site}, check, {section}", error)

    def _guard(self) -> Guard:
        noise = self._policy.noise.epsilon
        return Guard(self._policy.min_count, noise, b"" if noise is None else self._key())

    def _key(self) -> bytes:
        """The secret that noise is drawn from, made when it is first needed; raises MachineError."""
        file = self._folder / "noise.key"
        with atomic.disk_errors(file, "read"):
            if file.is_file() and len(key := file.read_bytes()) == _KEY_BYTES:
                return key
        atomic.make_folder(self._folder)
        atomic.write_bytes(file, secrets.token_bytes(_KEY_BYTES), mode=_OWN)
        return file.read_bytes()


def training_data(
    raw: Dataset, contract: Contract, policy: Policy, folder: Path, site: str
) -> tuple[Dataset, Mapping[str, int]]:
    """Data as training takes them, and how many examples the policy leaves out, by reason; raises DataMismatch.

    Args:
        raw: As read.
        contract: What the model expects.
        policy: The site's.
        folder: Where suspected labels lie.
        site: The site's name.
    """
    leave_out = policy.quality.leave_out
    suspected = _suspects(folder, site).read() if "label-noise" in leave_out else frozenset()
    return quality.trainable(raw, contract, leave_out, suspected)


def _suspects(folder: Path, site: str) -> quality.Suspects:
    return quality.Suspects(folder / f"{sha256(site.encode())}.suspects")
