"""Staged unfreezing: which layers train in a round, and how fast.

Invariants: what a stage freezes is frozen before anything is compiled, as all that is frozen; it travels all the same,
and its update is zero. The stage follows from the round alone, so a round that is asked for again is the same.

J. Howard, S. Ruder: Universal Language Model Fine-tuning for Text Classification. ACL 2018,
https://arxiv.org/abs/1801.06146: gradual unfreezing from the last layer, and learning rates of their own. There each
epoch unfreezes one layer more, and layers have rates; here a stage is said by the job, and has one rate for all.
"""

from itertools import accumulate

from fedretrain.job import NamedConfig, TrainSection
from fedretrain.messages import PrepareRequest


def stage_of(train: TrainSection, round_: int) -> int | None:
    """The number of a round's stage, from 0; None where the job has none, or outside rounds (0)."""
    ends = list(accumulate(stage.rounds for stage in train.stages))
    return next((i for i, end in enumerate(ends) if 0 < round_ <= end), None)


def staged(request: PrepareRequest, stage: int | None) -> PrepareRequest:
    """The request as it is for one of its stages; itself where there is none."""
    if stage is None:
        return request
    section, train = request.train.stages[stage], request.train
    optimizer = train.optimizer
    if section.learning_rate is not None and optimizer is not None:
        settings = {**optimizer.settings, "learning_rate": section.learning_rate}
        optimizer = NamedConfig(name=optimizer.name, **settings)
    return request.model_copy(
        update={
            "freeze": (*request.freeze, *section.freeze),
            "train": train.model_copy(update={"optimizer": optimizer}),
        }
    )
