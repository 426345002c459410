"""What travels between server and site, as values, and their form inside a Flower ``RecordDict``.

Message types (Flower's, with our actions): ``query.prepare``, ``query.base``, ``train``, ``query.release``, and where
the job asks for them ``query.sum`` and ``query.companion``. Every request and every reply has these records::

    "body"     ConfigRecord {"json": canonical JSON of the value below, "format": "fedretrain.message/1"}
    "arrays"   ArrayRecord, numpy serialisation; keys are variable positions (``fedretrain.contract.key``);
               ``query.release``: uint8 [bytes] by file name; ``query.sum``: replies as ``fedretrain.sums`` says
    "metrics"  MetricRecord, replies to train and ``query.sum``: "num-examples" and, of train, the site's claims

An update is a difference, site minus global, in the form of the codec that the run's prepare request names
(``fedretrain.codecs``); global values travel as they are. Frozen variables are in no message but ``query.base``, which
a site receives once. In a deployment every message is signed (``fedretrain.seal``); replies are
decoded by ``server.admission`` alone, never by the helpers here.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from .contract import Contract
from .digest import canonical_json
from .errors import DeclinedRequest
from .job import NamedConfig, TrainSection

FORMAT = "fedretrain.message/1"
PREPARE = "query.prepare"
BASE = "query.base"
TRAIN = "train"
RELEASE = "query.release"
SUM = "query.sum"
COMPANION = "query.companion"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    BRIEF: ClassVar[tuple[str, ...]] = ()
    """Fields that are left out of the JSON where they are empty."""

    @model_serializer(mode="wrap")
    def _briefly(self, complete: SerializerFunctionWrapHandler) -> dict[str, Any]:
        value: dict[str, Any] = complete(self)
        return {name: item for name, item in value.items() if item or name not in self.BRIEF}


class PrepareRequest(_Body):
    """Asks a site whether its data fit.

    ``architecture`` is the base model's JSON config (``fedretrain.architecture``), ``freeze`` the job's patterns, and
    ``train`` is resolved: optimizer, loss and metrics are all given, and ``codec`` is how updates travel
    (``fedretrain.codecs``). ``sums`` names the sums the run will ask for (``fedretrain.sums``); but for an evaluation
    no other is answered. With ``check`` the run trains nothing: the site reads its data leniently, and the counts of
    the reply are together those of the complete examples before and since ``train.since``, each as it may be told. The
    site keeps the request under the run's id and looks it up there when it is asked to train.
    """

    BRIEF: ClassVar[tuple[str, ...]] = ("sums", "check")
    kind: Literal["prepare"] = "prepare"
    run: str
    contract: Contract
    architecture: str
    freeze: tuple[str, ...] = ()
    train: TrainSection
    strategy: NamedConfig
    codec: NamedConfig = NamedConfig(name="float32")
    sums: tuple[str, ...] = ()
    check: bool = False


class PrepareReply(_Body):
    """Counts and problems, never rows. ``needs_base``: the site's store lacks the base model.

    ``declines``, in answer to a check alone: the modes (``fedretrain.planning.MODES``) that the site's policy does not
    allow, whatever else a job is.
    """

    BRIEF: ClassVar[tuple[str, ...]] = ("declines",)
    kind: Literal["prepare"] = "prepare"
    run: str
    site: str
    contract: str
    train_examples: int
    validation_examples: int
    needs_base: bool
    declines: tuple[str, ...] = ()


class BaseRequest(_Body):
    """Carries every variable of the base model, once per site, stored there by digest."""

    kind: Literal["base"] = "base"
    run: str
    base: str


class BaseReply(_Body):
    """The digest of what the site stored."""

    kind: Literal["base"] = "base"
    run: str
    site: str
    base: str


class TrainRequest(_Body):
    """One round's order. ``globals_digest`` is the weights digest of the arrays that come with it.

    ``companions`` has the digest of each companion that training needs, by name; the site holds them already.
    """

    BRIEF: ClassVar[tuple[str, ...]] = ("companions",)
    kind: Literal["train"] = "train"
    run: str
    round: int
    contract: str
    globals_digest: str
    companions: dict[str, str] = {}


class TrainReply(_Body):
    """What the update belongs to; the numbers are in the metrics record, the arrays are the update.

    ``update_digest`` is the weights digest of the arrays as they travel, coded: it is compared with what arrived.
    """

    kind: Literal["train"] = "train"
    run: str
    round: int
    site: str
    contract: str
    globals_digest: str
    update_digest: str


class ReleaseRequest(_Body):
    """Brings a release, or asks which one a site has installed when ``files`` is empty.

    ``files`` has the SHA-256 of each array that comes along, by name: ``metadata/...`` and ``releases/ID/...`` as they
    lie in a registry (``fedretrain.ledger``, ``fedretrain.release``). ``incumbent`` is the release the server has in
    use; only what the metadata say counts.
    """

    kind: Literal["release"] = "release"
    run: str
    incumbent: str
    files: dict[str, str] = {}


class ReleaseReply(_Body):
    """Which release is installed and which is in use at the site; ids, empty where there is none."""

    kind: Literal["release"] = "release"
    run: str
    site: str
    installed: str
    used: str


class SumRequest(_Body):
    """Asks for a sum over a site's examples at the values that come with it (``fedretrain.sums``).

    ``sum`` names it, with its settings; ``globals_digest`` is the weights digest of the arrays, which are the values of
    the variables that travel.
    """

    kind: Literal["sum"] = "sum"
    run: str
    sum: NamedConfig
    contract: str
    globals_digest: str


class SumReply(_Body):
    """What a site's sum belongs to; ``sum_digest`` is the weights digest of the arrays that come with it.

    "num-examples" in the metrics record is how many examples it stands for.
    """

    kind: Literal["sum"] = "sum"
    run: str
    site: str
    sum: str
    contract: str
    globals_digest: str
    sum_digest: str


class CompanionRequest(_Body):
    """Brings a companion, once per site and run; kept there by ``companion``, the weights digest of the arrays."""

    kind: Literal["companion"] = "companion"
    run: str
    companion: str


class CompanionReply(_Body):
    """The digest of what the site stored."""

    kind: Literal["companion"] = "companion"
    run: str
    site: str
    companion: str


class Declined(_Body):
    """A site's refusal: a code and where, never a value."""

    kind: Literal["declined"] = "declined"
    run: str
    site: str
    code: str
    where: str = ""
    expected: str = ""


Request = PrepareRequest | BaseRequest | TrainRequest | ReleaseRequest | SumRequest | CompanionRequest
Reply = PrepareReply | BaseReply | TrainReply | ReleaseReply | SumReply | CompanionReply | Declined
RecordT = TypeVar("RecordT", ArrayRecord, ConfigRecord, MetricRecord)
RequestT = TypeVar("RequestT", PrepareRequest, BaseRequest, TrainRequest, ReleaseRequest, SumRequest, CompanionRequest)


def pack(
    body: Request | Reply,
    arrays: Mapping[str, NDArray[Any]] | None = None,
    metrics: Mapping[str, int | float] | None = None,
) -> RecordDict:
    """The records of one message; ``arrays`` by variable key, made contiguous."""
    records: dict[str, ArrayRecord | ConfigRecord | MetricRecord] = {
        "body": ConfigRecord({"format": FORMAT, "json": canonical_json(body.model_dump(mode="json")).decode()})
    }
    if arrays is not None:
        records["arrays"] = ArrayRecord({k: Array(np.asarray(v, order="C")) for k, v in arrays.items()})
    if metrics is not None:
        records["metrics"] = MetricRecord(dict(metrics))
    return RecordDict(records)


def record(content: RecordDict, name: str, kind: type[RecordT]) -> RecordT | None:
    """The record of that name, None where there is none of that kind.

    To be used in place of ``content.array_records`` and its like: these refer to the content from within a reference
    cycle, and so keep a whole model in memory until Python's collector comes by.
    """
    found = content.get(name)
    return found if isinstance(found, kind) else None


def unpack_request(content: RecordDict, expected: type[RequestT]) -> RequestT:
    """The typed body of a request, at a site.

    Raises:
        DeclinedRequest: ``request-invalid`` where it is not one of ours or of another version.
    """
    body = record(content, "body", ConfigRecord)
    if body is None or body.get("format") != FORMAT:
        raise DeclinedRequest("request-invalid", "body", f"a {FORMAT} message; server and site versions differ")
    try:
        return expected.model_validate_json(str(body["json"]))
    except (KeyError, ValidationError):
        raise DeclinedRequest("request-invalid", "body", f"a {expected.__name__}") from None


def request_arrays(content: RecordDict) -> dict[str, NDArray[Any]]:
    """The arrays of a request by key, at a site; empty where there are none."""
    arrays = record(content, "arrays", ArrayRecord)
    return {k: v.numpy() for k, v in arrays.items()} if arrays else {}
