"""A check is asked of every site that is there, and each answer is taken or refused by itself.

Invariants:

- One site can never stop it: whatever it sends or withholds costs its own answer, within the deadline.
- No site is asked twice, and none is waited for longer than the deadline.
- What comes out does not depend on the order in which answers arrive.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from flwr.app import RecordDict
from flwr.serverapp import Grid

from fedretrain.checks import SUM, Answer
from fedretrain.contract import keys
from fedretrain.digest import weights_digest
from fedretrain.errors import RejectedUpdate, RunFailed
from fedretrain.messages import SUM as QUERY
from fedretrain.messages import Declined, SumRequest, pack
from fedretrain.sums import sum_specs
from server.admission import Expected, Update, admit_sum, judged, wire_bytes
from server.attendance import LOOK_S, OTHERS_WAIT_S
from server.combining import shown_refusal
from server.events import EventLog
from server.exchange import Question, exchange, transport_errors
from server.messenger import Messenger, limit_replies
from server.prepare import LEAST_WAIT_S, NODE_WAIT_S, Preparation, Site, await_nodes

from .admit import site_check
from .document import SiteCheck
from .watched import Watched


@dataclass
class Answers:
    """What came of one check; ``declined`` says of each site that is not in ``sites`` why, ``bytes`` is of arrays."""

    sites: dict[str, SiteCheck] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)
    bytes: int = 0


def ask_check(what: Watched, grid: Grid, emit: EventLog, messenger: Messenger) -> Answers:
    """Prepare the sites that are connected and ask each of them.

    Raises:
        RunFailed: None is connected, or none could answer.
        MachineError: The way to the sites.
    """
    plan = what.plan
    limit_replies(grid, plan.variables.values(), sum_specs(what.settings.config, plan.contract).values())
    preparation = Preparation(plan, grid, emit, messenger, sums=(SUM,), check=True)
    limit_s = max(plan.job.participation.deadline_s, LEAST_WAIT_S)
    prepared = preparation.ask(_connected(what, grid, messenger), (), limit_s)
    found = Answers(declined=dict(prepared.declined), bytes=prepared.base_bytes)
    if prepared.sites:
        _ask(what, grid, emit, messenger, prepared.sites, found)
    if not found.sites:
        reasons = "; ".join(f"{site}: {why}" for site, why in sorted(found.declined.items()))
        raise RunFailed(f"check: expected the answer of at least one site, got none ({reasons})")
    return found


def _ask(  # noqa: PLR0913, PLR0917 - how sites are reached, and what is asked
    what: Watched, grid: Grid, emit: EventLog, messenger: Messenger, sites: Mapping[str, Site], found: Answers
) -> None:
    plan, config = what.plan, what.settings.config
    contract, params = plan.contract, [plan.base.weights[i] for i in plan.contract.changing]
    digest = weights_digest(params)
    request = SumRequest(run=plan.run, sum=config, contract=contract.digest, globals_digest=digest)
    content = pack(request, dict(zip(keys(contract.changing), params, strict=True)))
    deadline_s = max(plan.job.participation.deadline_s, LEAST_WAIT_S)
    question = Question(content, QUERY, "check", deadline_s)
    expected = Expected(plan.run, 0, contract.digest, digest, sum_specs(config, contract))
    by_node = {site.node: site for site in sites.values()}
    found.bytes += wire_bytes(content) * len(by_node)
    for arrival in exchange(grid, sorted(by_node), question, messenger):
        site = by_node[arrival.node]
        if not isinstance(arrival.outcome, RejectedUpdate):
            found.bytes += wire_bytes(arrival.outcome)
        if site.name in found.sites or site.name in found.declined:
            continue  # what comes after a first answer changes nothing
        answer = judged(arrival.outcome, partial(_admitted, what=what, site=site, expected=expected))
        if isinstance(answer, RejectedUpdate):
            found.declined[site.name] = str(answer)
            emit("check-refused", site=site.name, code=answer.code, detail=answer.detail)
        else:
            found.sites[site.name] = answer
            counts = {"reference": answer.reference.examples, "recent": answer.recent.examples}
            emit("check-answer", site=site.name, **counts, withheld=dict(sorted(answer.withheld.items())))


def _admitted(content: RecordDict, what: Watched, site: Site, expected: Expected) -> SiteCheck:
    """One site's answer; raises RejectedUpdate, also where the site declined."""
    declared = site.train_examples + site.validation_examples
    answer: Update | Declined = admit_sum(content, site.name, declared, SUM, expected)
    if isinstance(answer, Declined):
        raise shown_refusal(answer)
    contract, settings = what.plan.contract, what.settings
    try:
        told = Answer.from_arrays(answer.arrays, contract, settings)
    except (ValueError, OverflowError) as error:
        raise RejectedUpdate("malformed", f"an answer to a check that cannot be one ({type(error).__name__})") from None
    return replace(site_check(told, site.name, declared, contract, settings), declines=site.declines)


def _connected(what: Watched, grid: Grid, messenger: Messenger) -> list[int]:
    """Nodes, ascending: all that are expected, or those that are there soon after the first one is."""
    expected = len(what.plan.expected)
    names = _online(messenger)
    if names is None:
        return await_nodes(grid, expected or 1, 1)
    start, first = time.monotonic(), None
    while len(names) < expected:
        now = time.monotonic()
        first = first or (now if names else None)
        if now - start > NODE_WAIT_S or (first is not None and now - first > OTHERS_WAIT_S):
            break
        time.sleep(LOOK_S)
        names = _online(messenger) or {}
    if not names:
        raise RunFailed(
            f"check: expected at least one member of the federation to be connected within {NODE_WAIT_S:g} s, got "
            "none; start the sites (fedretrain client up)"
        )
    return sorted(names)


def _online(messenger: Messenger) -> dict[int, str] | None:
    with transport_errors("ask which sites are connected"):
        return messenger.online()
