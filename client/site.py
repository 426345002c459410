"""A partner site: answers the server's requests with counts, numbers and arrays.

Invariants:

- Every request has an answer; nothing raises. What goes wrong becomes a ``Declined`` with a code.
- No row, value or file name of the site's data, and no text of an exception, is in an answer or in the log. The log
  has where an unexpected error arose and its class; its text only at level DEBUG, for such texts quote data. A
  simulation's sites name the file that they cannot read: it is their operator's.
- Nothing is stored, built or trained before what it comes from is checked.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import RecordDict
from numpy.typing import NDArray

from fedretrain.architecture import fingerprint
from fedretrain.checks import SUM as CHECK
from fedretrain.checks import CheckSettings
from fedretrain.contract import Contract
from fedretrain.dataset import Dataset
from fedretrain.digest import weights_digest
from fedretrain.errors import DataMismatch, DeclinedRequest
from fedretrain.job import NamedConfig
from fedretrain.messages import (
    BASE,
    COMPANION,
    PREPARE,
    SUM,
    TRAIN,
    BaseReply,
    BaseRequest,
    CompanionReply,
    CompanionRequest,
    Declined,
    PrepareReply,
    PrepareRequest,
    SumReply,
    SumRequest,
    TrainReply,
    TrainRequest,
    pack,
    unpack_request,
)
from fedretrain.sums import settings_of, sum_specs
from fedretrain.travel import travelling_variables
from strategies.ditto import Ditto

from . import sums
from .bulk import Bulk
from .checker import Checker
from .checking.business import Metrics
from .chooser import Chooser
from .coding import Encoder, codec_of
from .failures import log_without_text
from .incoming import all_arrays, changing_arrays, companion_arrays, travelling_arrays
from .keeping import Keeping, last_layers
from .outgoing import packed, written
from .policy import Policy, check_sum, declined_modes
from .store import SiteStore
from .trainer import Order, Result, Trainer

log = logging.getLogger(__name__)

Request = PrepareRequest | BaseRequest | TrainRequest | SumRequest | CompanionRequest

_NONE: Mapping[str, str] = {}
_BODIES: dict[str, type[Request]] = {
    PREPARE: PrepareRequest,
    BASE: BaseRequest,
    TRAIN: TrainRequest,
    SUM: SumRequest,
    COMPANION: CompanionRequest,
}


class Site:
    """One site.

    Args:
        name: The site's name; its random choices follow from it.
        load: Reads the site's data as the contract names them; raises DataMismatch. Called once per contract.
        store: What the site keeps.
        trainer: What trains; may be shared with other sites in this process.
        allow_modules: Modules of this site whose layer classes a model may use.
        policy: How many examples are needed and how long training may take; None asks nothing.
        spool: A folder where updates lie until they are sent, instead of in memory.
        names_files: Whether a refusal may name a data file: in a simulation, whose operator they belong to.
        metrics: Gives the site's business metrics, for checks that ask for some.
    """

    def __init__(  # noqa: PLR0913 - each is another part of a site
        self,
        name: str,
        load: Callable[[Contract], Dataset],
        store: SiteStore,
        trainer: Trainer,
        allow_modules: Sequence[str] = (),
        *,
        policy: Policy | None = None,
        spool: Path | None = None,
        names_files: bool = False,
        metrics: Metrics | None = None,
    ) -> None:
        self.name = name
        self._load = load
        self._store = store
        self._trainer = trainer
        self._allow_modules = tuple(allow_modules)
        self._policy = policy
        self._spool = spool
        self._names_files = names_files
        self._chooser = Chooser(name, store.replay, policy)
        self._checker = Checker(name, self._read, store.checking, trainer, policy, metrics=metrics)
        self._data: tuple[str, Dataset] | None = None
        self._contract: Contract | None = None  # the object the data were last asked for with: no digest to compare

    def handle(self, message_type: str, content: RecordDict) -> RecordDict:
        """The answer to one request, whatever is in it; see ``fedretrain.messages`` for both."""
        run = ""
        try:
            body = _body(message_type, content)
            run = body.run
            if isinstance(body, PrepareRequest):
                return self._prepare(body)
            if isinstance(body, BaseRequest):
                return self._keep_base(body, content)
            if isinstance(body, CompanionRequest):
                return self._keep_companion(body, content)
            if isinstance(body, SumRequest):
                return self._sum(body, content)
            return self._train(body, content)
        except Exception as error:  # noqa: BLE001 - this is the boundary: whatever happens here must become an answer
            return pack(self._declined(run, message_type, error))

    def update(
        self,
        request: PrepareRequest,
        round_: int,
        received: list[NDArray[Any]],
        companions: Mapping[str, str] = _NONE,
    ) -> Result | Declined:
        """What ``handle`` makes of a train request, without the records it would travel in; never raises.

        Args:
            request: What this site was asked to prepare; the same object for as long as nothing changed.
            round_: The round.
            received: The global values of all that travels (``fedretrain.travel``).
            companions: As ``TrainRequest`` has them.
        """
        try:
            return self._update(request, round_, received, companions)
        except Exception as error:  # noqa: BLE001 - as in ``handle``
            return self._declined(request.run, TRAIN, error)

    def _prepare(self, request: PrepareRequest) -> RecordDict:
        contract = request.contract
        if fingerprint(request.architecture) != contract.architecture:
            raise DeclinedRequest("model-mismatch", "architecture", "the one the contract names")
        codec_of(request.codec)
        if request.check:
            train, validation = self._checker.prepare(request), 0
            self._trainer.prepare(request, self._allow_modules)
        else:
            self._chooser.begin()
            data = self._examples(request, fresh=True)
            self._trainer.prepare(request, self._allow_modules)
            train, validation = self._chooser.counts(request, data)
        self._store.put_run(request.run, request)
        reply = PrepareReply(
            run=request.run,
            site=self.name,
            contract=contract.digest,
            train_examples=train,
            validation_examples=validation,
            needs_base=self._store.base(contract.base) is None,
            declines=declined_modes(self._policy) if request.check and self._policy else (),
        )
        return pack(reply)

    def _keep_base(self, body: BaseRequest, content: RecordDict) -> RecordDict:
        contract = self._prepared(body.run).contract
        if body.base != contract.base:
            raise DeclinedRequest("model-mismatch", "base", "the base model that this run's contract names")
        self._store.put_base(body.base, all_arrays(content, contract))
        return pack(BaseReply(run=body.run, site=self.name, base=body.base))

    def _keep_companion(self, body: CompanionRequest, content: RecordDict) -> RecordDict:
        contract = self._prepared(body.run).contract
        self._store.put_companion(body.companion, companion_arrays(content, contract))
        return pack(CompanionReply(run=body.run, site=self.name, companion=body.companion))

    def _sum(self, body: SumRequest, content: RecordDict) -> RecordDict:
        """A mean over examples of this site (``client.sums``), where the policy lets it leave."""
        request = self._prepared(body.run)
        contract = request.contract
        if body.contract != contract.digest:
            raise DeclinedRequest("request-invalid", "contract", "the one this run was prepared with")
        sums.check(body.sum, request)
        received = changing_arrays(content, contract)
        if weights_digest(received) != body.globals_digest:
            raise DeclinedRequest("request-invalid", "arrays", "arrays with the digest that the request names")
        policy = self._policy or Policy()
        check_sum(policy, body.sum.name)
        own = last_layers(self._store.memory(request.run, self.name), contract)
        order = Order(request, self.name, 0, self._allow_modules, policy.max_seconds, personal=own)
        found = self._total(order, body.sum, received)
        check_sum(policy, body.sum.name, found.examples)
        reply = SumReply(
            run=body.run,
            site=self.name,
            sum=body.sum.name,
            contract=contract.digest,
            globals_digest=body.globals_digest,
            sum_digest=weights_digest(found.arrays),
        )
        arrays = dict(zip(sum_specs(body.sum, contract), found.arrays, strict=True))
        return pack(reply, arrays, {"num-examples": found.examples})

    def _total(self, order: Order, what: NamedConfig, received: list[NDArray[Any]]) -> sums.Total:
        base = partial(self._base, order.request.contract)
        if what.name == CHECK:
            settings: CheckSettings = settings_of(what)  # type: ignore[assignment]  # those of this name
            return self._checker.total(order, settings, base, received)
        if not hasattr(self._trainer, "sum"):  # a backend of the site's own
            raise DeclinedRequest("request-invalid", "sum", "none: this site's trainer makes no sums")
        return self._trainer.sum(order, what, base, received, self._examples(order.request))

    def _train(self, body: TrainRequest, content: RecordDict) -> RecordDict:
        request = self._prepared(body.run)
        contract = request.contract
        if body.contract != contract.digest:
            raise DeclinedRequest("request-invalid", "contract", "the one this run was prepared with")
        received = travelling_arrays(content, contract, request.strategy)
        if weights_digest(received) != body.globals_digest:
            raise DeclinedRequest("request-invalid", "arrays", "arrays with the digest that the request names")
        result = self._update(request, body.round, received, body.companions)
        encoder = Encoder(request, self.name, body.round, self._store.residuals)
        names = travelling_variables(contract, request.strategy)
        payloads = zip(names, map(encoder.encode, result.update), strict=True)
        update, digest = written(payloads, Bulk(self._spool)) if self._spool else packed(payloads)
        encoder.finish()
        reply = TrainReply(
            run=body.run,
            round=body.round,
            site=self.name,
            contract=contract.digest,
            globals_digest=body.globals_digest,
            update_digest=digest,
        )
        content = pack(reply, metrics={**result.metrics, "num-examples": result.examples})
        content["arrays"] = update
        return content

    def _update(
        self, request: PrepareRequest, round_: int, received: list[NDArray[Any]], companions: Mapping[str, str]
    ) -> Result:
        if request.check:
            raise DeclinedRequest("request-invalid", "run", "one that was prepared for training, not for a check")
        seconds = self._policy.max_seconds if self._policy else None
        keeping = Keeping(self._store.memory(request.run, self.name), request, round_, received)
        order = Order(
            request,
            self.name,
            round_,
            self._allow_modules,
            seconds,
            later=self._spool is not None,
            given={**keeping.given, **{f"companion:{name}": self._companion(d) for name, d in companions.items()}},
            personal=keeping.personal,
        )
        data = self._examples(request)
        selection = self._chooser.selection(request, data)
        if selection is not None:
            order = replace(order, selection=selection)
        used = data if selection is None else selection.data
        started = time.monotonic()
        base = partial(self._base, request.contract)
        result = self._trainer.train(order, base, keeping.received, used)
        if request.strategy.name == Ditto.name:
            left = None if seconds is None else max(0.0, seconds - (time.monotonic() - started))
            beside = self._trainer.beside
            train = partial(keeping.with_own_model, replace(order, seconds=left), result)
            result = train(lambda again, own: beside.train(again, base, own, used))
        if seconds is not None and time.monotonic() - started > seconds:  # a backend may not look at the order's limit
            raise DeclinedRequest("policy", "max_seconds", f"at most {seconds:g} seconds of training in a round")
        self._chooser.trained(request, data)
        return replace(result, update=keeping.put_down(result))

    def _prepared(self, run: str) -> PrepareRequest:
        request = self._store.run(run)
        if request is None:
            raise DeclinedRequest("model-missing", "run", "a request to prepare this run before")
        return request

    def _base(self, contract: Contract) -> list[NDArray[Any]]:
        arrays = self._store.base(contract.base)
        if arrays is None:
            raise DeclinedRequest("model-missing", "base", "the base model before training is asked for")
        return arrays

    def _companion(self, digest: str) -> list[NDArray[Any]]:
        arrays = self._store.companion(digest)
        if arrays is None:
            raise DeclinedRequest("model-missing", "companion", "what the run's objectives need before training")
        return arrays

    def counts(self, run: str) -> tuple[int, int]:
        """How many examples the data in memory have for training and for validation; zeros where none are there."""
        request = self._store.run(run)
        if request is None or request.check or self._data is None or self._data[0] != request.contract.digest:
            return 0, 0
        return self._chooser.counts(request, self._data[1])

    def kept(self) -> int:
        """How many examples are kept here for later runs, where that has changed since this was last asked; else 0."""
        return self._chooser.kept()

    def damaged(self) -> int:
        """How many files of kept examples were found changed, or without their key, since this was last asked."""
        return self._chooser.damaged()

    def left_out(self) -> Mapping[str, int]:
        """How many examples the policy had training leave out when the data were last read, by reason; told once."""
        return self._checker.left_out()

    @property
    def data_bytes(self) -> int:
        """Bytes of the data in memory."""
        return self._checker.nbytes + (0 if self._data is None else self._data[1].nbytes + self._chooser.nbytes)

    def _examples(self, request: PrepareRequest, *, fresh: bool = False) -> Dataset:
        """The site's data, checked; in memory from the last request unless ``fresh`` asks for reading them again."""
        contract = request.contract
        known = contract is self._contract or (self._data is not None and self._data[0] == contract.digest)
        if fresh or self._data is None or not known:
            self._data = None
            self._data = (contract.digest, self._checker.trainable(contract, self._read(contract)))
        self._contract = contract
        self._chooser.check(request, self._data[1])
        return self._data[1]

    def _read(self, contract: Contract) -> Dataset:
        try:
            return self._load(contract)
        except DataMismatch as mismatch:
            if self._names_files or mismatch.code != "data-unreadable":
                raise
            raise DataMismatch(mismatch.code, "the site's data file", mismatch.expected) from None  # not its name

    def _declined(self, run: str, doing: str, error: Exception) -> Declined:
        """The refusal that an error becomes, and a line in the log."""
        if isinstance(error, DataMismatch | DeclinedRequest):
            log.warning("site %s, run %s, %s: declined: %s", self.name, run, doing, error)
            where, expected = error.where, error.expected
            return Declined(run=run, site=self.name, code=error.code, where=where, expected=expected)
        log_without_text(f"site {self.name}, run {run}, {doing}", error)
        return Declined(run=run, site=self.name, code="site-failure", expected="see the site's log")


def _body(message_type: str, content: RecordDict) -> Request:
    kind = _BODIES.get(message_type)
    if kind is None:
        raise DeclinedRequest("request-invalid", "message type", f"one of {', '.join(_BODIES)}")
    body: Request = unpack_request(content, kind)  # type: ignore[type-var]  # each of them is one
    return body
