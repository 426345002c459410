"""Admission: what a site's reply must be before anything else touches it.

Everything here is pure: records in, a checked value or ``RejectedUpdate`` out. Invariants:

- Arrays are views of the bytes that arrived (``fedretrain.arrays``): nothing is copied, unpickled, evaluated or
  allocated at a site's word. What a codec wrote is decoded (``fedretrain.codecs``) once its size is the one that the
  contract asks for, into arrays whose size the contract decides too.
- An ``Update`` has exactly the variables that travel, finite, with a plausible example count, and belongs to
  this run, round, site, contract and global model.
- What a site says of itself (metrics) is kept as its claim and decides nothing.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ParamSpec, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from fedretrain.arrays import malformed, plain, shown, view
from fedretrain.codecs import Codec, Float32
from fedretrain.contract import VariableSpec
from fedretrain.digest import weights_digest
from fedretrain.errors import DataMismatch, DeclinedRequest, RejectedUpdate
from fedretrain.messages import (
    FORMAT,
    BaseReply,
    CompanionReply,
    Declined,
    PrepareReply,
    ReleaseReply,
    SumReply,
    TrainReply,
    record,
)
from fedretrain.planning import MODES
from fedretrain.release import RELEASE_ID

from .beside import Beside
from .norms import sum_of_squares

BODY_LIMIT = 16_384  # characters
EXAMPLES_LIMIT = 10**12  # more at one site is no count
CLAIMS_LIMIT = 64  # metrics per reply
CLAIM_LIMIT = 1e300  # beyond it a sum over sites could overflow

Reply = PrepareReply | BaseReply | TrainReply | ReleaseReply | SumReply | CompanionReply | Declined
_REPLY: TypeAdapter[Reply] = TypeAdapter(Annotated[Reply, Field(discriminator="kind")])
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Expected:
    """What every train reply of one round has to be; ``variables`` maps the keys that travel to their specs.

    ``codec`` is the form in which updates travel; ``beside`` judges what comes with them, where something does.
    """

    run: str
    round: int
    contract: str
    globals_digest: str
    variables: Mapping[str, VariableSpec]
    codec: Codec = field(default_factory=Float32)
    beside: Beside | None = None


@dataclass(frozen=True)
class Update:
    """An admitted reply: site minus global by position, all finite.

    ``norm`` is its L2 norm over the contract's variables; ``flags`` says what was put right; ``claims`` is what the
    site says of itself.
    """

    site: str
    arrays: list[NDArray[Any]]
    examples: int
    norm: float
    claims: Mapping[str, float]
    flags: tuple[str, ...] = ()


Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")


def _refusing(admit: Callable[Parameters, Value]) -> Callable[Parameters, Value]:
    """Whatever a peer's records make a check raise, even MemoryError, becomes a refusal of that reply."""

    @functools.wraps(admit)
    def guarded(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Value:
        try:
            return admit(*args, **kwargs)
        except RejectedUpdate:
            raise
        except Exception as error:
            raise RejectedUpdate("malformed", f"the reply cannot be decoded ({type(error).__name__})") from error

    return guarded


@_refusing
def admit_prepare(content: RecordDict, run: str, contract: str, site: str | None = None) -> PrepareReply | Declined:
    """The answer to a prepare request; ``site`` is the name it must bear, None where it may choose one.

    Raises:
        RejectedUpdate: It is not one, names another run, contract or site, counts examples that cannot be, or says that
            modes are declined that are none.
    """
    body = _body(content)
    if isinstance(body, Declined):
        return admit_declined(body, run, site)
    if not isinstance(body, PrepareReply) or set(content) != {"body"}:
        malformed("expected the answer to a prepare request alone")
    _belongs(body.run, run, body.site, site)
    if body.contract != contract:
        raise RejectedUpdate("contract", f"expected {contract[:12]}, got {shown(body.contract)}")
    if not 0 < body.train_examples <= EXAMPLES_LIMIT or not 0 <= body.validation_examples <= EXAMPLES_LIMIT:
        raise RejectedUpdate("examples", f"expected counts from 1 to {EXAMPLES_LIMIT}")
    if len(set(body.declines)) < len(body.declines) or not set(body.declines) <= set(MODES):
        malformed(f"declines: expected some of {', '.join(MODES)}, each once")
    return body


@_refusing
def admit_base(content: RecordDict, run: str, site: str, base: str) -> BaseReply | Declined:
    """The receipt for the base model; raises RejectedUpdate where it is not one or names another model."""
    body = _body(content)
    if isinstance(body, Declined):
        return admit_declined(body, run, site)
    if not isinstance(body, BaseReply) or set(content) != {"body"}:
        malformed("expected the receipt for the base model alone")
    _belongs(body.run, run, body.site, site)
    if body.base != base:
        raise RejectedUpdate("base", f"expected {base[:12]}, got {shown(body.base)}")
    return body


@_refusing
def admit_companion(content: RecordDict, run: str, site: str, companion: str) -> CompanionReply | Declined:
    """The receipt for a companion; raises RejectedUpdate where it is not one or names another companion."""
    body = _body(content)
    if isinstance(body, Declined):
        return admit_declined(body, run, site)
    if not isinstance(body, CompanionReply) or set(content) != {"body"}:
        malformed("expected the receipt for a companion alone")
    _belongs(body.run, run, body.site, site)
    if body.companion != companion:
        raise RejectedUpdate("base", f"expected companion {companion[:12]}, got {shown(body.companion)}")
    return body


@_refusing
def admit_sum(content: RecordDict, site: str, declared: int, what: str, expected: Expected) -> Update | Declined:
    """A site's sum: the mean over its examples, as an update whose arrays are those of ``expected.variables``.

    Args:
        content: The reply's records.
        site: The name it must bear.
        declared: Examples the site declared; more count for no more.
        what: The sum's name.
        expected: What the reply has to match; its round and codec are not asked.

    Raises:
        RejectedUpdate: With the code of the first thing that does not match.
    """
    body = _body(content)
    if isinstance(body, Declined):
        return admit_declined(body, expected.run, site)
    if not isinstance(body, SumReply) or body.sum != what:
        malformed(f"expected the answer to a request for the sum {what}")
    _belongs(body.run, expected.run, body.site, site)
    if body.contract != expected.contract:
        raise RejectedUpdate("contract", f"expected {expected.contract[:12]}, got {shown(body.contract)}")
    if body.globals_digest != expected.globals_digest:
        raise RejectedUpdate("base", f"expected {expected.globals_digest[:12]}, got {shown(body.globals_digest)}")
    examples, _, flags = _metrics(content, declared)
    arrays = _arrays(content, expected.variables)
    norm = finite_norm(arrays, expected.variables)
    if weights_digest(arrays) != body.sum_digest:
        malformed("the arrays do not have the digest that the reply names")
    return Update(site, arrays, examples, norm, {}, flags)


@_refusing
def admit_release(content: RecordDict, run: str, site: str) -> ReleaseReply | Declined:
    """What a site says of its releases; raises RejectedUpdate where it is not that, or holds no ids."""
    body = _body(content)
    if isinstance(body, Declined):
        return admit_declined(body, run, site)
    if not isinstance(body, ReleaseReply) or set(content) != {"body"}:
        malformed("expected the answer to a release request alone")
    _belongs(body.run, run, body.site, site)
    if not all(identity == "" or RELEASE_ID.fullmatch(identity) for identity in (body.installed, body.used)):
        malformed("expected ids of releases")
    return body


@_refusing
def admit_train(content: RecordDict, site: str, declared: int, expected: Expected) -> Update | Declined:
    """One round's update.

    Args:
        content: The reply's records.
        site: The site the request went to.
        declared: Training examples the site declared when it was prepared; more than these are capped and flagged.
        expected: What the reply has to match.

    Raises:
        RejectedUpdate: With the code of the first thing that does not match.
    """
    body = _body(content)
    if isinstance(body, Declined):
        return admit_declined(body, expected.run, site)
    if not isinstance(body, TrainReply):
        malformed("expected the answer to a train request")
    _check_train_body(body, site, expected)
    examples, claims, flags = _metrics(content, declared)
    codec, variables = expected.codec, expected.variables
    payloads = _arrays(content, {key: codec.travelling(spec) for key, spec in variables.items()})
    arrays = [codec.decode(payload, spec) for payload, spec in zip(payloads, variables.values(), strict=True)]
    norm = finite_norm(arrays, variables)
    if expected.beside is not None:
        expected.beside.check(arrays, norm)
    if weights_digest(payloads) != body.update_digest:
        malformed("the arrays do not have the update digest that the reply names")
    return Update(site, arrays, examples, norm, claims, flags)


def judged(outcome: RecordDict | RejectedUpdate, admit: Callable[[RecordDict], Value]) -> Value | RejectedUpdate:
    """What ``admit`` makes of a reply, its refusal as a value; what was refused on the way already stays so."""
    if isinstance(outcome, RejectedUpdate):
        return outcome
    try:
        return admit(outcome)
    except RejectedUpdate as refusal:
        return refusal.with_traceback(None)  # its frames hold the reply's arrays


def wire_bytes(content: RecordDict) -> int:
    """Bytes of all arrays in the records as they travel, npy headers included."""
    records = (found for found in content.values() if isinstance(found, ArrayRecord))
    arrays = (array for found in records for array in found.values())
    return sum(len(array.data) for array in arrays if isinstance(array.data, bytes))


def _body(content: RecordDict) -> Reply:
    """The typed body; strict, because a peer's "5" is not a number."""
    try:
        found = record(content, "body", ConfigRecord)
        if found is None:
            malformed("expected a body record")
        text = found["json"]
        if set(found) != {"format", "json"} or found["format"] != FORMAT:
            malformed(f"expected a {FORMAT} body; the site runs another version")
        if not isinstance(text, str) or len(text) > BODY_LIMIT:
            malformed(f"expected a body of at most {BODY_LIMIT} characters")
        body = _REPLY.validate_json(text, strict=True)
    except KeyError:
        malformed("expected a body record with format and json")
    except (ValidationError, UnicodeError, RecursionError):
        malformed("expected a body of one of our replies")
    anonymous = isinstance(body, Declined) and body.site == ""
    if not anonymous and not _SITE.fullmatch(body.site):
        raise RejectedUpdate("site", "expected a site name of letters, digits, '.', '_', '-'")
    return body


def admit_declined(body: Declined, run: str, site: str | None = None) -> Declined:
    """A refusal with a known code and texts that are safe to show. It may come from one that knows no run or name."""
    _belongs(body.run or run, run, body.site, site if body.site else None)
    if body.code not in DataMismatch.CODES | DeclinedRequest.CODES:
        malformed("declined with a code that does not exist")
    return body.model_copy(update={"where": plain(body.where), "expected": plain(body.expected)})


def _check_train_body(body: TrainReply, site: str, expected: Expected) -> None:
    _belongs(body.run, expected.run, body.site, site)
    if body.round != expected.round:
        raise RejectedUpdate("stale", f"expected round {expected.round}, got {shown(body.round)}")
    if body.contract != expected.contract:
        raise RejectedUpdate("contract", f"expected {expected.contract[:12]}, got {shown(body.contract)}")
    if body.globals_digest != expected.globals_digest:
        raise RejectedUpdate("base", f"expected {expected.globals_digest[:12]}, got {shown(body.globals_digest)}")


def _belongs(run: str, expected_run: str, site: str, expected_site: str | None) -> None:
    if expected_site is not None and site != expected_site:
        raise RejectedUpdate("site", f"expected the name {expected_site}, got {shown(site)}")
    if run != expected_run:
        raise RejectedUpdate("stale", f"expected run {expected_run}, got {shown(run)}")


def _metrics(content: RecordDict, declared: int) -> tuple[int, dict[str, float], tuple[str, ...]]:
    """Example count, claims and flags."""
    found = record(content, "metrics", MetricRecord)
    if found is None:
        raise RejectedUpdate("metrics", "expected a metrics record, got none")
    return counted(dict(found), declared)


def counted(metrics: Mapping[str, Any], declared: int) -> tuple[int, dict[str, float], tuple[str, ...]]:
    """Example count, claims and flags of a reply's metrics, for a site that declared so many examples.

    Raises:
        RejectedUpdate: ``metrics`` or ``examples``.
    """
    claims = dict(metrics)
    if "num-examples" not in claims:
        raise RejectedUpdate("metrics", "expected num-examples among the metrics")
    examples: Any = claims.pop("num-examples")
    if type(examples) is not int or examples <= 0:  # a bool is an int, and counts nothing
        raise RejectedUpdate("examples", f"expected a whole number above 0, got {shown(examples)}")
    flags = ("examples-capped",) if examples > declared else ()
    return min(examples, declared), _claims(claims), flags


def _claims(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The site's own numbers by name; what is no finite number is left out."""
    names = sorted(n for n in metrics if plain(n) == n and type(metrics[n]) in (int, float))
    return {n: float(metrics[n]) for n in names[:CLAIMS_LIMIT] if abs(metrics[n]) < CLAIM_LIMIT}  # False for NaN


def _arrays(content: RecordDict, variables: Mapping[str, VariableSpec]) -> list[NDArray[Any]]:
    """The arrays in the contract's order, as ``variables`` says that they travel."""
    found = record(content, "arrays", ArrayRecord)
    if found is None:
        raise RejectedUpdate("variables", f"expected {len(variables)} arrays, got none")
    if set(content) != {"body", "arrays", "metrics"}:
        malformed("expected the records body, arrays and metrics alone")
    missing, surplus = sorted(set(variables) - set(found)), sorted(set(found) - set(variables))
    if missing or surplus:
        first = f"missing {missing[0]}" if missing else f"not expected {shown(surplus[0])}"
        raise RejectedUpdate("variables", f"{len(missing)} missing, {len(surplus)} too many; {first}")
    return [view(key, found[key], spec) for key, spec in variables.items()]


def finite_norm(arrays: Sequence[NDArray[Any]], variables: Mapping[str, VariableSpec]) -> float:
    """The L2 norm of an update's variables, auxiliaries not counted; raises RejectedUpdate ``not-finite``."""
    squares = [sum_of_squares(a) for a in arrays]
    for key, value in zip(variables, squares, strict=True):
        if not math.isfinite(value):
            raise RejectedUpdate("not-finite", f"variable {key} holds NaN, infinity or numbers too large to measure")
    specs = variables.values()
    return math.sqrt(sum(s for s, spec in zip(squares, specs, strict=True) if spec.rule != "auxiliary"))
