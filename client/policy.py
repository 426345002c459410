"""What a site lets be done with its data: pure rules over a request, asked before any data are read."""

from collections.abc import Sequence
from datetime import datetime

from fedretrain.messages import PrepareRequest, TrainRequest
from fedretrain.tomlfile import Section


class Policy(Section):
    """The ``[policy]`` of ``site.toml``."""

    approval: bool = False
    bundles: tuple[str, ...] = ()


def check_prepare(policy: Policy, federation: str, request: PrepareRequest, now: datetime) -> None:
    """Whether the site takes part in this job at this time; raises DeclinedRequest ``policy`` naming the rule."""


def check_train(policy: Policy, federation: str, request: PrepareRequest, order: TrainRequest, now: datetime) -> None:
    """Whether it trains this round at this time; raises DeclinedRequest ``policy`` naming the rule."""


def bundle_accepted(policy: Policy, pinned: str, bundle: str) -> bool:
    """Whether tasks of the app bundle with this SHA-256 are passed on; ``pinned`` is the kit's."""
    return bundle == pinned or bundle in policy.bundles


def describe(policy: Policy) -> Sequence[str]:
    """The policy in plain words, a sentence per rule."""
    raise NotImplementedError
