"""The gate in front of a site's data: what passes, and what leaves.

Invariants:

- No data are read, no model is built and nothing is stored for a message that is not signed by the coordinator of the
  site's kit, for this federation, this site, this type and this time, or that was answered before; nor for one that
  the policy refuses or, where the policy wants that, no person has approved.
- What is asked is in the site's record before it is looked at further, what is sent before it leaves. Where the record
  cannot be written, nothing is done and nothing is sent.
- Every message has an answer, sealed with the site's key; nothing raises, and no text of an exception leaves.
"""

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedretrain.arrays import plain
from fedretrain.errors import ConfigurationError, DataMismatch, DeclinedRequest
from fedretrain.membership import Kit, public_key
from fedretrain.messages import (
    BASE,
    COMPANION,
    PREPARE,
    RELEASE,
    SUM,
    TRAIN,
    BaseRequest,
    CompanionRequest,
    Declined,
    PrepareRequest,
    ReleaseRequest,
    SumRequest,
    TrainRequest,
    pack,
    unpack_request,
)
from fedretrain.messages import record as record_in
from fedretrain.seal import RECORD, BrokenSeal, Claims, sealed, unsealed

from . import approvals, record
from .checking.business import reader as metrics_reader
from .failures import log_without_text
from .home import Home
from .identity import load_signing_key
from .incoming import release_files
from .layers import trained_layers
from .leaving import reviewed
from .nonces import Nonces
from .policy import check_layers, check_prepare, check_train, check_watch
from .refusals import Quiet, claims_of_refusal
from .site import Site
from .sitefile import SiteFile, load_site, reader
from .store import SiteStore

log = logging.getLogger(__name__)

Request = PrepareRequest | BaseRequest | TrainRequest | ReleaseRequest | SumRequest | CompanionRequest

_KINDS: dict[str, type[Request]] = {
    PREPARE: PrepareRequest,
    BASE: BaseRequest,
    TRAIN: TrainRequest,
    RELEASE: ReleaseRequest,
    SUM: SumRequest,
    COMPANION: CompanionRequest,
}


class Gatekeeper:
    """One site's answer to every message, one at a time.

    Args:
        home: The site's folder.
        kit: Whom to believe.
        site: Data and policy; read again when ``site.toml`` changes.
        trainer: The backend, as ``client.trainer.Trainer``: ``prepare`` and ``train``; one that does not train with
            Keras has ``check_release(release)`` as well, see ``client.installer``.
        clock: Seconds since 1970.

    Raises:
        ConfigurationError: The signing key is not usable.
        MachineError: The site's folder is not.
    """

    def __init__(
        self, home: Home, kit: Kit, site: SiteFile, trainer: Any, clock: Callable[[], float] = time.time
    ) -> None:
        self._home = home
        self._kit = kit
        self._trainer = trainer
        self._clock = clock
        self._coordinator = public_key(kit.coordinator)
        self._key = load_signing_key(home)
        self._store = SiteStore(home.store)
        self._nonces = Nonces(home.store / "nonces", clock)
        self._quiet = Quiet()
        self._layers: dict[str, tuple[str, ...]] = {}
        self._one_at_a_time = threading.Lock()
        self._read = self._state_of_file()
        self._use(site)

    def handle(self, message_type: str, content: RecordDict) -> RecordDict:
        """The sealed answer to one message, whatever is in it; never raises."""
        message_type = plain(message_type)
        with self._one_at_a_time:
            try:
                return self._handle(message_type, content)
            except Exception as error:  # noqa: BLE001 - the boundary of the site: whatever happens must become an answer
                log_without_text(f"site {self._kit.site}, {message_type}", error)
                return self._refuse(message_type, content, DeclinedRequest("site-failure", "", "see the site's log"))

    def _handle(self, message_type: str, content: RecordDict) -> RecordDict:
        try:
            claims, message = unsealed(content, self._coordinator)
            self._check_claims(claims, message_type)
            self._nonces.begin(claims.nonce, claims.expires)
        except BrokenSeal as broken:
            log.warning("a message that is not the coordinator's: %s", broken)
            wanted = "one of the coordinator whose key is in this site's kit"
            return self._turned_away(message_type, content, DeclinedRequest("request-unsigned", "signature", wanted))
        except DeclinedRequest as refusal:
            log.warning("refused: %s", refusal)
            return self._turned_away(message_type, content, refusal)
        self._record_asked(claims, content)
        leaving = reviewed(self._answer(claims, message), self._site_file.policy, self._site.counts)
        self._record(leaving.kind, claims, **leaving.fields)
        if damaged := self._site.damaged():
            self._record("kept", claims, damaged=damaged)
        if kept := self._site.kept():
            self._record("kept", claims, examples=kept)
        if left := self._site.left_out():
            self._record("omitted", claims, counts=dict(left))
        self._nonces.answered(claims.nonce, claims.expires)
        return sealed(leaving.content, claims.answered(), self._key)

    def _check_claims(self, claims: Claims, message_type: str) -> None:
        """Whether the coordinator meant this message for this site and this moment."""
        for where, got, expected in (
            ("kind", claims.kind, "request"),
            ("federation", claims.federation, self._kit.federation),
            ("site", claims.site, self._kit.site),
            ("message type", claims.message_type, message_type),
        ):
            if got != expected:
                raise DeclinedRequest("request-unsigned", where, f"{expected}, as signed")
        now = self._clock()
        if not claims.timely(now):
            times = f"from {_utc(claims.issued)} to {_utc(claims.expires)}"
            wanted = f"{times} by the server's clock, {_utc(now)} by this site's"
            raise DeclinedRequest("request-unsigned", "time", wanted)

    def _answer(self, claims: Claims, message: RecordDict) -> RecordDict:
        """The answer to the coordinator's request."""
        doing = f"site {self._kit.site}, run {plain(claims.run)}, {claims.message_type}"
        try:
            self._refresh()
            return self._ask(claims, message)
        except (DataMismatch, DeclinedRequest) as refusal:
            log.warning("%s: declined: %s", doing, refusal)
            return self._declined(claims.run, refusal.code, refusal.where, refusal.expected)
        except Exception as error:  # noqa: BLE001 - whatever happens must become an answer, and a line in the record
            log_without_text(doing, error)
            return self._declined(claims.run, "site-failure", "", "see the site's log")

    def _ask(self, claims: Claims, message: RecordDict) -> RecordDict:
        """Pass the request on, if it says what was signed and the policy allows it."""
        kind = _KINDS.get(claims.message_type)
        if kind is None:
            raise DeclinedRequest("request-invalid", "message type", f"one of {', '.join(_KINDS)}")
        body: Request = unpack_request(message, kind)  # type: ignore[type-var]  # each of them is one
        round_ = body.round if isinstance(body, TrainRequest) else 0
        for where, got, signed in (("run", body.run, claims.run), ("round", round_, claims.round)):
            if got != signed:
                raise DeclinedRequest("request-unsigned", where, "the one that was signed")
        if isinstance(body, ReleaseRequest):
            return pack(self._installer().receive(body, release_files(message, body.files)))
        if isinstance(body, PrepareRequest):
            job = self._as_site_wants(body)
            self._check_job(job, 0)
            return self._site.handle(PREPARE, pack(job))
        prepared = self._store.run(body.run)
        if prepared is None:
            raise DeclinedRequest("model-missing", "run", "a request to prepare this run before")
        self._check_job(prepared, round_)
        return self._site.handle(claims.message_type, message)

    def _check_job(self, job: PrepareRequest, round_: int) -> None:
        """Policy and approval, at every message of a run: both may have changed since the one before."""
        rules, federation = self._site_file.policy, self._kit.federation
        now = datetime.fromtimestamp(self._clock(), UTC).astimezone()
        if job.check:
            check_watch(rules, federation, job, now)
        elif round_:
            check_train(rules, federation, job, round_, now)
        else:
            check_prepare(rules, federation, job, now)
        if "*" not in rules.layers and not job.check:
            check_layers(rules, self._layers_of(job))
        if rules.approval and not approvals.is_approved(self._home, job):
            id_ = approvals.job_digest(job)[:12]
            wanted = f"a person's yes at the site: fedretrain client approve {id_}"
            raise DeclinedRequest("not-approved", f"job {id_}", wanted)

    def _layers_of(self, job: PrepareRequest) -> tuple[str, ...]:
        id_ = approvals.job_digest(job)
        if id_ not in self._layers:
            self._layers = {id_: trained_layers(job, self._site_file.trainer.allow_modules)}
        return self._layers[id_]

    def _as_site_wants(self, job: PrepareRequest) -> PrepareRequest:
        """The request with the site's own validation share, where it has one."""
        share = self._site_file.data.validation_fraction
        if share is None:
            return job
        return job.model_copy(update={"train": job.train.model_copy(update={"validation_fraction": share})})

    def _installer(self) -> Any:
        from .installer import Installer, build

        check = getattr(self._trainer, "check_release", None)
        modules = self._site_file.trainer.allow_modules
        return Installer(self._home, self._kit, check or partial(build, allow_modules=modules))

    def _refresh(self) -> None:
        """Follow changes of ``site.toml``: a policy counts from the moment it is written."""
        state = self._state_of_file()
        if state == self._read:
            return
        try:
            site = load_site(self._home.site)
        except ConfigurationError as error:
            log.error("nothing is answered until this is mended: %s", error)  # noqa: TRY400 - its text says it all
            wanted = "one without mistakes; 'fedretrain client check' names them"
            raise DeclinedRequest("policy", "site.toml", wanted) from None
        if site.trainer != self._site_file.trainer:
            log.warning("[trainer] of site.toml has changed; restart 'fedretrain client up' for it")
        self._use(site)
        self._read = state

    def _use(self, site: SiteFile) -> None:
        self._site_file = site
        load = reader(site, self._home.root)
        modules = site.trainer.allow_modules
        self._site = Site(
            self._kit.site,
            load,
            self._store,
            self._trainer,
            modules,
            policy=site.policy,
            spool=self._home.store,
            metrics=metrics_reader(site.metrics, self._home.root),
        )

    def _state_of_file(self) -> tuple[int, int, int] | None:
        try:
            state = self._home.site.stat()
        except OSError:
            return None
        return state.st_mtime_ns, state.st_size, state.st_ino

    def _record_asked(self, claims: Claims, content: RecordDict) -> None:
        """The request with what proves that the coordinator made it."""
        seal = record_in(content, RECORD, ConfigRecord) or ConfigRecord()
        proof = {"claims": str(seal["json"]), "signature": bytes(seal["signature"]).hex()}  # type: ignore[arg-type]
        arrays = record_in(content, "arrays", ArrayRecord) or ArrayRecord()
        size = sum(len(array.data) for array in arrays.values())
        self._record("asked", claims, federation=claims.federation, bytes=size, **proof)

    def _record(self, kind: str, claims: Claims, /, **fields: Any) -> None:
        about = {"type": claims.message_type, "run": claims.run, "round": claims.round}
        record.append(self._home.record, kind, **about, **fields)

    def _turned_away(self, message_type: str, content: RecordDict, refusal: DeclinedRequest) -> RecordDict:
        """The answer to a message that is not for this site now; it is recorded, though not each of a flood."""
        count = self._quiet.like_it(refusal.code + refusal.where, self._clock())
        if count is not None:
            told = {"code": refusal.code, "where": refusal.where, "expected": refusal.expected, "unrecorded": count}
            record.append(self._home.record, "refused", unverified=True, **told)
        return self._refuse(message_type, content, refusal)

    def _refuse(self, message_type: str, content: RecordDict, refusal: DeclinedRequest) -> RecordDict:
        """A refusal without a look at what was asked, sealed so that the server can see whose it is."""
        claims = claims_of_refusal(content, self._kit, message_type if message_type in _KINDS else "", self._clock())
        answer = self._declined(claims.run, refusal.code, refusal.where, refusal.expected)
        return sealed(answer, claims, self._key)

    def _declined(self, run: str, code: str, where: str, expected: str) -> RecordDict:
        return pack(Declined(run=run, site=self._kit.site, code=code, where=where, expected=expected))


def _utc(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return "no time"
