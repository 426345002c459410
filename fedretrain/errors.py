"""Every error a person can meet, by who has to act.

    FedretrainError                     exit code
    ├── ConfigurationError              2    the operator: job, model or data is wrong
    │   └── ModelRefused                2    an architecture with a layer outside the allow-list, or unsafe content
    ├── DataMismatch                    2    data do not fit the contract; at a site it becomes a declined request
    ├── RunFailed                       4    too few sites, or a round that could not be completed
    ├── RunStopped                      1    the operator asked for it
    ├── RejectedUpdate                  -    a site sent something the server does not take; costs that reply alone
    ├── DeclinedRequest                 -    a site does not take part; carries a code, never a value of its data
    ├── UntrustedRelease                1    a release or its metadata does not verify; nothing of it was loaded
    └── MachineError                    1    disk, network, process; what was complete before stays as it was

A message says what happened and where (file, site, key, layer), what was expected against what was found, and what to
do next. Errors that cross the network or are counted carry a ``code`` from a fixed list.
"""

from typing import ClassVar


class FedretrainError(Exception):
    """Base of all our errors; ``exit_code`` is what a command ends with when it escapes."""

    exit_code: ClassVar[int] = 1


class ConfigurationError(FedretrainError):
    """The job, the model, a data file or an option is not what it has to be."""

    exit_code = 2


class ModelRefused(ConfigurationError):
    """A model with a layer class outside the allow-list, or a file with content that must not be opened."""


class RunFailed(FedretrainError):
    """Too few sites took part, or a round could not be completed; the checkpoint is kept and can be resumed."""

    exit_code = 4


class RunStopped(FedretrainError):
    """The run's operator asked it to stop; what was finished is kept, and it goes on when it is asked to."""


class MachineError(FedretrainError):
    """Disk, network or process failed underneath us."""


class UntrustedRelease(FedretrainError):
    """A release, or the metadata that vouches for it, does not verify."""


class RejectedUpdate(FedretrainError):
    """A reply that must not reach the aggregate.

    Args:
        code: One of ``CODES``; counted and shown per site.
        detail: One line for the server operator: expected against got.
    """

    CODES: ClassVar[frozenset[str]] = frozenset(
        {
            "malformed",  # cannot be decoded: metadata, serialisation, header, size
            "variables",  # a key too many or too few
            "shape",
            "dtype",
            "not-finite",
            "metrics",  # no metrics record, or not numbers
            "examples",  # an impossible example count
            "norm",  # far outside what the other sites' updates measure
            "stale",  # another run or round, or a second reply to the same request
            "base",  # trained from another global model
            "contract",  # another contract
            "site",  # signed or labelled as another site
            "late",  # nothing complete by the deadline
            "declined",  # the site answered with a code instead of an update
            "signature",  # not signed by the site's key, or signed for something else
        }
    )

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class _Refusal(FedretrainError):
    """Why a site cannot do what it was asked.

    Args:
        code: One of ``CODES``; it is what leaves the site.
        where: The column, label position, input or file the code is about, as the contract names it. Never a value.
        expected: What the contract asks for, so that the site operator can act on it.
    """

    CODES: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, code: str, where: str = "", expected: str = "") -> None:
        super().__init__(code + (f" at {where}" if where else "") + (f": expected {expected}" if expected else ""))
        self.code = code
        self.where = where
        self.expected = expected


class DataMismatch(_Refusal):
    """Data that do not fit the contract: a site's, or a holdout's."""

    exit_code = 2
    CODES: ClassVar[frozenset[str]] = frozenset(
        {
            "data-unreadable",
            "data-empty",
            "data-missing",  # an array the contract names is not there
            "data-shape",
            "data-dtype",
            "data-not-finite",
            "data-range",
            "data-preprocessing",
            "label-unknown",
            "label-shape",
        }
    )


class DeclinedRequest(_Refusal):
    """A site's refusal for another reason than its data."""

    CODES: ClassVar[frozenset[str]] = frozenset(
        {
            "model-refused",  # the architecture holds a layer the site does not allow
            "model-missing",  # the base model, or the contract, is not in the site's store
            "model-mismatch",  # base model and contract do not belong together
            "request-invalid",
            "request-unsigned",  # no valid signature of the coordinator, or for another site, run or time
            "request-replayed",
            "policy",  # outside what the site's policy allows; `where` names the rule
            "not-approved",  # waits for a person at the site
            "release-refused",  # a release that does not verify, or an older one
            "trainer-failure",  # the trainer ended or ran out of memory or time; it is started again
            "data-too-few",  # fewer examples than anything may be said about
            "no-new-data",  # the job trains on new examples alone, and the site has none
            "training-diverged",  # loss or weights became infinite
            "site-failure",  # anything else; the site's own log has the cause
        }
    )
