"""One more number from every site: a sum over their examples, asked, admitted and folded as updates are.

Invariants:

- One site can never stop it: whatever it sends or withholds costs its own answer, within the deadline.
- The result does not depend on the order in which answers arrive, nor on how many workers made them.
- Nothing of an answer that was refused is in the result.

Use::

    line = Line(plan, grid, folder.spool, emit, messenger)
    found = ask_sum(line, NamedConfig(name="fisher"), params, sites)
    found.arrays["00004"], found.examples, found.sites
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedretrain.contract import key, keys
from fedretrain.digest import weights_digest
from fedretrain.errors import RejectedUpdate, RunFailed
from fedretrain.job import NamedConfig
from fedretrain.messages import SUM, Declined, SumRequest, pack
from fedretrain.sums import sum_specs, unpacked
from strategies.base import Arrays
from strategies.weighted_mean import WeightedMean

from .admission import Expected, Update, admit_sum, judged, wire_bytes
from .combining import shown_refusal
from .events import EventLog
from .exchange import Arrival, Question, exchange
from .messenger import PLAIN, Messenger, limit_replies
from .norms import check_norm, norm_bound
from .plan import Plan
from .prepare import Site
from .spool import Spool

_LEAST = 1e-12
FURTHER = 10.0  # times as far apart as updates: means of squares, of sites whose data differ


@dataclass(frozen=True)
class Line:
    """How sites are reached in one run; ``spool`` is the folder where answers wait."""

    plan: Plan
    grid: Grid
    spool: Path
    emit: EventLog
    messenger: Messenger = PLAIN


@dataclass(frozen=True)
class Sum:
    """What the sites came to.

    Attributes:
        arrays: Means over all examples, by key, as ``fedretrain.sums`` says; times ``examples`` they are the sums.
        examples: How many examples are in them.
        sites: Whose, sorted.
        bytes_down: Of arrays that were sent.
        bytes_up: Of arrays that came.
    """

    arrays: Mapping[str, NDArray[Any]]
    examples: int
    sites: tuple[str, ...]
    bytes_down: int = 0
    bytes_up: int = 0


def ask_sum(
    line: Line, what: NamedConfig, params: Arrays, sites: Sequence[Site], *, at_least: int | None = None
) -> Sum:
    """Ask every one of ``sites`` and combine what they answer.

    Args:
        line: How they are reached.
        what: The sum, with its settings; the run's prepare requests have named it.
        params: Values of ``contract.changing``, at which it is asked.
        sites: Who is asked.
        at_least: How many answers are needed; default: the job's ``participation.min_sites``.

    Raises:
        ConfigurationError: No such sum, or it does not fit the contract.
        RunFailed: Too few answers by the deadline.
        MachineError: The disk, or the way to the sites.
    """
    plan, contract = line.plan, line.plan.contract
    specs, digest = sum_specs(what, contract), weights_digest(params)
    request = SumRequest(run=plan.run, sum=what, contract=contract.digest, globals_digest=digest)
    asked = {site.node: site for site in sites if _declared(what.name, site)}
    content = pack(request, dict(zip(keys(contract.changing), params, strict=True)))
    question = Question(content, SUM, f"sum-{what.name}", plan.job.participation.deadline_s)
    limit_replies(line.grid, plan.variables.values(), specs.values())
    with Spool(line.spool, tuple(specs.values())) as spool:
        answers = _Answers(what.name, Expected(plan.run, 0, contract.digest, digest, specs), spool)
        for arrival in exchange(line.grid, list(asked), question, line.messenger):
            answers.take(arrival, asked[arrival.node])
        answers.judge()
        for site, refusal in sorted(answers.refused.items()):
            line.emit("sum-refused", sum=what.name, site=site, code=refusal.code, detail=refusal.detail)
        answers.require(plan.job.participation.min_sites if at_least is None else at_least)
        arrays, examples = answers.folded()
    counted = tuple(sorted(answers.admitted))
    line.emit("sum", sum=what.name, sites=list(counted), examples=examples)
    return Sum(arrays, examples, counted, wire_bytes(content) * len(asked), answers.bytes_up)


def _declared(name: str, site: Site) -> int:
    """How many examples a site's answer may stand for."""
    return site.validation_examples if name == "evaluation" else site.train_examples


class _Answers:
    """Those to one question; what passes waits on the disk until all are in."""

    def __init__(self, name: str, expected: Expected, spool: Spool) -> None:
        self.admitted: dict[str, Update] = {}  # without their arrays
        self.refused: dict[str, RejectedUpdate] = {}
        self.bytes_up = 0
        self._name, self._expected, self._spool = name, expected, spool

    def take(self, arrival: Arrival, site: Site) -> None:
        """Judge one by itself; what comes after a first answer changes nothing."""
        if not isinstance(arrival.outcome, RejectedUpdate):
            self.bytes_up += wire_bytes(arrival.outcome)
        if site.name in self.admitted or site.name in self.refused:
            return
        declared = _declared(self._name, site)
        admit = partial(admit_sum, site=site.name, declared=declared, what=self._name, expected=self._expected)
        answer = judged(arrival.outcome, admit)
        if isinstance(answer, Declined):
            self.refused[site.name] = shown_refusal(answer)
        elif isinstance(answer, RejectedUpdate):
            self.refused[site.name] = answer
        elif not _CHECKS[self._name](answer.arrays):
            self.refused[site.name] = RejectedUpdate("malformed", f"values that no sum {self._name} can have")
        else:
            self._spool.put(site.name, answer.arrays)
            self.admitted[site.name] = replace(answer, arrays=[])

    def judge(self) -> None:
        """Refuse what measures far more than the others' answers; of an evaluation everything may be true."""
        if self._name == "evaluation":
            return
        bound = FURTHER * norm_bound([answer.norm for answer in self.admitted.values()], 0.0, None)
        for site in sorted(self.admitted):
            try:
                check_norm(self.admitted[site].norm, bound)
            except RejectedUpdate as refusal:
                self.refused[site] = refusal.with_traceback(None)
                del self.admitted[site]

    def require(self, at_least: int) -> None:
        """Raise RunFailed where fewer count."""
        if len(self.admitted) < max(1, at_least):
            reasons = "; ".join(f"{site}: {refusal}" for site, refusal in sorted(self.refused.items()))
            raise RunFailed(
                f"sum {self._name}: expected answers of at least {max(1, at_least)} sites (participation.min_sites), "
                f"got {len(self.admitted)} ({reasons or 'no site has examples for it'})"
            )

    def folded(self) -> tuple[dict[str, NDArray[Any]], int]:
        """The means, and how many examples are in them."""
        mean, specs = WeightedMean(), self._expected.variables
        state = mean.init(tuple(specs.values()), sum(answer.examples for answer in self.admitted.values()))
        for site in sorted(self.admitted):
            state = mean.fold(state, self._spool.arrays(site), self.admitted[site].examples)
        means = dict(zip(specs, mean.finish(state), strict=True))
        if self._name == "evaluation":
            means[key(1)] = means[key(1)] / np.maximum(means[key(2)], _LEAST)[:, None]
        return means, state.weight


def _bounded(arrays: Arrays) -> bool:
    return all(np.all(np.abs(array) <= 2.0**20) for array in arrays)


def _is_fisher(arrays: Arrays) -> bool:
    return _bounded(arrays) and all(np.all(array >= 0) for array in arrays)


def _is_gauss_newton(arrays: Arrays) -> bool:
    return _bounded(arrays) and bool(np.all(np.diagonal(unpacked(arrays[0])) >= 0) and arrays[1] >= 0)


def _is_evaluation(arrays: Arrays) -> bool:
    right, labelled = arrays[1][:, 1], arrays[2]
    return _bounded(arrays) and bool(np.all((right >= 0) & (right <= labelled) & (labelled <= 1)))


_CHECKS: dict[str, Callable[[Arrays], bool]] = {
    "fisher": _is_fisher,
    "gauss-newton": _is_gauss_newton,
    "evaluation": _is_evaluation,
}
