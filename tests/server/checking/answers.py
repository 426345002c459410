"""Sites that answer a check from numbers of their own, and what is asked of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import RecordDict

from fedretrain.checks import AGE_EDGES_DAYS, GIVEN, NO_TIMES, Answer, CheckSettings
from fedretrain.contract import Contract, Feature
from fedretrain.digest import weights_digest
from fedretrain.messages import SumReply, SumRequest, pack
from fedretrain.sums import settings_of, sum_specs
from tests.server.grid import CONTRACT, NumpySite

WATCHED = CONTRACT.model_copy(
    update={"features": (Feature(name="column 0", kind="column", input="x", edges=(0.0, 1.0)),)}
)
SETTINGS = CheckSettings(since=100.0, labels=("2",), metrics=("revenue",))


def honest(contract: Contract = WATCHED, settings: CheckSettings = SETTINGS, examples: int = 10) -> Answer:
    """An answer that can be true: 4 examples before, the others since, of two labels."""
    answer = Answer.blank(contract, settings, 1, None)
    for section in answer.reasons:
        answer.reasons[section] = GIVEN
    answer.reasons["age"] = NO_TIMES
    output = contract.outputs[0].name
    for window, n in (("reference", 4), ("recent", examples - 4)):
        answer.examples[window] = n
        fields = answer.windows[window]
        for field in fields.values():
            for cells in field.values():
                cells[...] = 0
        for feature in contract.features:
            fields["histograms"][feature.name][0] = n
        fields["labels"][output][:2] = 1, n - 1
        fields["predicted"][output][:] = 2, n - 2
        fields["confusion"][output][:] = [[1, 0], [1, n - 2]]
        fields["confidence"][output][9] = fields["labelled"][output][9] = n
        fields["right"][output][9] = n - 1
        fields["confidence_sum"][output][9] = 950 * n
        fields["age"][""] = np.full(len(AGE_EDGES_DAYS) + 1, -1)
    if "revenue" in settings.metrics:
        answer.business["revenue"] = 7.5, "EUR"
    return answer


class CheckSite(NumpySite):
    """Answers a check honestly, but for what ``change`` does to its answer, and ``spoil`` to the arrays of it."""

    def __init__(
        self,
        *args: Any,
        change: Callable[[Answer], Any] = lambda _: None,
        spoil: Callable[[list[Any]], Any] = lambda _: None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.change, self.spoil = change, spoil

    def _summed(self, request: SumRequest) -> RecordDict:
        self.summed.append(request.sum)
        settings = settings_of(request.sum)
        assert isinstance(settings, CheckSettings)
        answer = honest(self.contract, settings, self.examples + self.examples // 10)
        arrays = (self.change(answer) or answer).to_arrays(settings)
        self.spoil(arrays)
        body = SumReply(
            run=request.run,
            site=self.name,
            sum=request.sum.name,
            contract=request.contract,
            globals_digest=request.globals_digest,
            sum_digest=weights_digest(arrays),
        )
        named = dict(zip(sum_specs(request.sum, self.contract), arrays, strict=True))
        return pack(body, named, {"num-examples": self.examples})
